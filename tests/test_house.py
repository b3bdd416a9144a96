"""The house rules: imports run one way, no file is imported in a circle, and the ground floor stands alone."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from tests.conftest import PROJECT

FLOORS = {"components": set(), "tasks": {"components"}, "flows": {"components", "tasks"}}
GROUND_FLOOR = [
    "components/addresses.py",
    "components/policy/markers.py",
    "components/config.py",
    "components/methods.py",
    "components/settings_file.py",
    "components/objective",
    "components/data/example.py",
    "components/rollout/engine.py",
]
GROUND = tuple(entry.removesuffix(".py").replace("/", ".") for entry in [*GROUND_FLOOR, "components/errors.py"])


def modules() -> dict[str, Path]:
    """Every module of the three folders by its dotted name."""
    paths = [path for top in FLOORS for path in (PROJECT / top).rglob("*.py")]
    return {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in paths}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_run_from_flows_to_tasks_to_components():
    for name, path in modules().items():
        top = name.split(".")[0]
        used = {imported.split(".")[0] for imported in imports(path)} & set(FLOORS)
        assert used <= FLOORS[top] | {top}, f"{name} imports {used}"


def test_what_is_imported_by_name_is_there():
    """Pyright is not asked: it would complain about much of torch, transformers and DVC as well."""
    known = modules()
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in known:
                missing = {alias.name for alias in node.names} - bound(known[node.module])
                assert not missing, f"{name} imports {missing} from {node.module}"


def bound(path: Path) -> set[str]:
    """The names that a module defines, assigns or imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_the_ground_floor_imports_no_other_room():
    for entry in GROUND_FLOOR:
        path = PROJECT / entry
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            own = {name for name in imports(file) if name.startswith("components.")}
            assert all(name.startswith(GROUND) for name in own), f"{file} imports {own}"


def test_only_tasks_and_flows_know_prefect_and_dvc():
    for name, path in modules().items():
        used = {imported.split(".")[0] for imported in imports(path)}
        if name.startswith("components"):
            assert not used & {"prefect", "dvc"}, name


def test_nobody_but_the_steps_and_the_probe_imports_training():
    """It scores with a trainer and looks a few steps ahead; outside of the room, so that its change stales no run."""
    training = ("components.training", "components.look_ahead", "components.probe")
    for name, path in modules().items():
        if name.startswith("components.") and not name.startswith(training):
            assert not any(imported.startswith("components.training") for imported in imports(path)), name


def test_a_policy_knows_nothing_of_who_samples_or_trains_it():
    for name, path in modules().items():
        if name.startswith("components.policy"):
            assert not any(
                imported.startswith(("components.rollout", "components.training")) for imported in imports(path)
            )


def test_nothing_is_imported_in_a_circle():
    known = modules()
    graph = {name: imports(path) & set(known) - {name} for name, path in known.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_help_needs_none_of_the_heavy_libraries():
    code = (
        "import flows.cli, sys; print([m for m in ('torch', 'mlflow', 'prefect', 'dvc', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_loads_a_pickle_or_remote_code():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, name
        assert "import pickle" not in text, name
        assert "torch.load" not in text, name
