"""The stages of dvc.yaml depend on the code that they run: what their commands reach by imports is compared with it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from components.config import Section
from tests.conftest import PROJECT

STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CODE = "${code}/"

# What a stage reaches and does not depend on, and why a change to it leaves what the stage makes as it is.
OF_NO_STAGE = {
    "components/addresses.py": "how addresses are shown",
    "components/config.py": "it has no defaults: every setting is a param of the stages that read it",
    "components/data/digest.py": "an md5 that is DVC's",
    "components/errors.py": "what ends a stage, which has made nothing then",
    "components/job.py": "what is said meanwhile to others",
    "components/links.py": "one file on the disk under several names, and which folders are refused",
    "components/methods.py": "names, and how charts tell them apart; what is trained is a param",
    "components/names.py": "which names are refused",
    "components/progress.py": "what is said meanwhile",
}
TAUGHT = {"components/data/skills.py": "what the embedded model was taught, which lies in build/base"}
TRACKED = {"components/tracking": "what MLflow keeps beside the stage's own files"}
NOT_OF = {
    "prepare": {},
    "base": {"components/data/jsonl.py": "how raw files are read"},
    "probe": TAUGHT | TRACKED | {"components/report": "the table in the terminal"},
    "train": TAUGHT,
    "evaluate": TAUGHT
    | TRACKED
    | {
        "components/data/reading.py": "how raw files are read; and a digest of the examples, which names them",
        "components/training/zero.py": "how processes find each other",
    },
    "report": {},
}
# Functions of tasks/ that a stage calls only where it was not given what an earlier stage made.
MADE_BEFORE = {"build/data": {"make_data", "load_file"}, "build/base": {"make_base"}}


def code_deps(stage: str) -> list[Path]:
    return [PROJECT / dep.removeprefix(CODE) for dep in STAGES[stage]["deps"] if dep.startswith(CODE)]


def file_of(module: str) -> Path | None:
    path = PROJECT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All that may run of a tree: what stands under TYPE_CHECKING does not."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running(child)


def imported(node: ast.AST) -> dict[str, tuple[Path, str | None]]:
    """The project's files and names that a part of a file imports, by the names they get there."""
    found: dict[str, tuple[Path, str | None]] = {}
    for part in running(node):
        if isinstance(part, ast.ImportFrom) and part.module:
            for alias in part.names:
                if file := file_of(f"{part.module}.{alias.name}"):
                    found[alias.asname or alias.name] = file, None
                elif file := file_of(part.module):
                    found[alias.asname or alias.name] = file, alias.name
    return found


def used(node: ast.AST) -> set[str]:
    return {part.id for part in running(node) if isinstance(part, ast.Name)}


def definitions(path: Path) -> dict[str, ast.AST]:
    return {node.name: node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def reached(path: Path, name: str, left_out: set[str], without: list[Path]) -> set[Path]:
    """The files of components/ that a function of flows/ or tasks/ may run.

    There functions are followed one by one, for a file holds those of several stages; of components/ whole files are.
    """
    components: set[Path] = set()
    waiting, seen = [(path, name)], set()
    while waiting:
        path, name = key = waiting.pop()
        if key in seen or name in left_out or name not in definitions(path):
            continue
        seen.add(key)
        node, at_top = definitions(path)[name], imported(ast.Module(top_level(path), []))
        found = imported(node) | {name: place for name, place in at_top.items() if name in used(node)}
        waiting += [(path, other) for other in used(node) & definitions(path).keys()]
        for file, of_file in found.values():
            if file.is_relative_to(PROJECT / "components"):
                components |= {file} if of_file not in left_out else set()
            elif of_file:
                waiting.append((file, of_file))
    return with_imports(components, without)


def top_level(path: Path) -> list[ast.stmt]:
    return [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]


def with_imports(files: set[Path], without: list[Path]) -> set[Path]:
    """Files and all that they import, which those `without` do not count for."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        if (file := waiting.pop()) not in found:
            found.add(file)
            if any(file.is_relative_to(other) for other in without):
                continue
            waiting += [other for other, _ in imported(tree(file)).values()]
    return {file for file in found if file.is_relative_to(PROJECT / "components") and file.name != "__init__.py"}


def code_of(stage: str) -> set[Path]:
    command = STAGES[stage]["cmd"].split()[1]
    steps = PROJECT / "flows" / "steps.py"
    file = steps if command in definitions(steps) else PROJECT / "flows" / f"{command}.py"
    left_out = set().union(*(names for dep, names in MADE_BEFORE.items() if dep in STAGES[stage]["deps"]))
    return reached(file, command, left_out, without(stage))


def without(stage: str) -> list[Path]:
    return [PROJECT / name for name in OF_NO_STAGE | NOT_OF[stage]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_runs(stage: str) -> None:
    known = [*code_deps(stage), *without(stage)]
    missing = [file for file in code_of(stage) if not any(file.is_relative_to(one) for one in known)]
    assert sorted(str(file.relative_to(PROJECT)) for file in missing) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_code_that_it_depends_on(stage: str) -> None:
    """As well as what is said not to matter to it."""
    code = code_of(stage)
    named = [*code_deps(stage), *(PROJECT / name for name in NOT_OF[stage])]
    assert [one for one in named if not any(file.is_relative_to(one) for file in code)] == []


def test_settings_have_no_defaults() -> None:
    """What DVC compares is params.yaml alone."""
    for section in Section.__subclasses__():
        assert [name for name, field in section.model_fields.items() if not field.is_required()] == []
