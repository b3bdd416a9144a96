"""The documents: they build without a warning, what they quote is there, and what they tell to type can be typed."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from markdown_it import MarkdownIt

from components.config import Arm, load_settings
from components.settings_file import read_yaml
from docs import reference
from flows.cli import app
from tests.conftest import PROJECT

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
SHELL, NOT_CODE = ("sh", "bash"), ("", "text", "json", "{eval-rst}")
GAP = "…"  # what a quoted message has in place of what changes

# Commands that are not Thaw's and stay unchecked but for their being there, or not even that, and why.
OTHERS = {
    "source": "the shell's own", "cd": "the shell's own", "git": "as everybody knows it",
    "mlflow": "MLflow's own", "prefect": "Prefect's own",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            assert token.map is not None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content)


def commands(block: Block) -> list[list[str]]:
    """The words of each line of a shell block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = [block for page in PAGES for block in blocks(page)]
GENERATED = [("docs/commands.md", block) for block in re.findall(r"```sh\n(.*?)```", reference.commands(), re.DOTALL)]
TYPED = {
    str(block): commands(block) for block in BLOCKS if block.language in SHELL
} | {
    f"{page}, generated {number}": commands(Block(PROJECT / page, 0, "sh", text))
    for number, (page, text) in enumerate(GENERATED)
}  # fmt: skip


def test_every_block_is_run_parsed_or_no_code() -> None:
    for block in BLOCKS:
        assert block.language in (*SHELL, *NOT_CODE, "python"), f"{block}: nothing looks at {block.language}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_python_runs(page: Path) -> None:
    """The blocks of a page one after the other, as a reader would."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)  # a block starts at the line that the error names


@pytest.mark.parametrize("where", TYPED)
def test_commands_can_be_typed(where: str) -> None:
    for words in TYPED[where]:
        program, *arguments = words[: words.index(">")] if ">" in words else words
        if program == "thaw":
            check_thaw(arguments)
        elif program == "make":
            check_make(arguments)
        elif program == "dvc":
            from dvc.cli import parse_args

            parse_args(arguments)
        elif program == "python":
            assert importlib.util.find_spec(arguments[1]), words
        else:
            assert program in OTHERS, words


def check_thaw(arguments: list[str]) -> None:
    """A command of Thaw's, by its own parser; arms and settings as it would read them."""
    command: Any = typer.main.get_command(app)
    while below := getattr(command, "commands", None):
        assert arguments[0] in below, arguments
        command, arguments = below[arguments[0]], arguments[1:]
    found = command.make_context("thaw", list(arguments)).params
    if found.get("arm"):
        Arm.parse(found["arm"])
    if overrides := found.get("overrides"):
        load_settings(PROJECT / found.get("params", "params.yaml"), overrides)


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        name, equals, _ = word.partition("=")
        assert name in (("STACK", "PYTHON", "TORCH_INDEX", "DEVICE", "QUICK") if equals else targets), arguments


def test_inline_commands_exist() -> None:
    """`thaw COMMAND` and `make TARGET` within sentences."""
    known = {name for name, _ in reference.walk("thaw", typer.main.get_command(app))}
    for page in PAGES:
        for code in re.findall(r"`((?:thaw|make) [^`\n]+)`", page.read_text(encoding="utf-8")):
            words = code.split()
            if words[0] == "make":
                check_make([word for word in words[1:] if word not in ("...",)])
            elif words[1].islower():  # `thaw COMMAND` stands for any
                assert {f"thaw {words[1]}", " ".join(words[:3])} & known, f"{page.name}: {code}"


@cache
def spoken() -> str:
    """Every text in the code, a line each; what an f-string fills in is a gap."""
    found = [(PROJECT / "infra/setup.sh").read_text(encoding="utf-8").replace("{sys.version.split()[0]}", GAP)]
    for top in ("components", "tasks", "flows"):
        for path in (PROJECT / top).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [text for node in ast.walk(tree) if (text := _text(node))]
    return "\n".join(found)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(GAP if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values)
    return ""


def quoted() -> list[str]:
    lines = (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("> ") for line in lines if line.startswith("> ")]


@pytest.mark.parametrize("message", quoted())
def test_quoted_messages_are_in_the_code(message: str) -> None:
    assert message in spoken()


def test_reference_has_every_setting_of_params_yaml_with_its_default() -> None:
    text = reference.settings()
    found = dict(re.findall(r"^`(\S+)`\n: .+\n\n  .*Default: `(.*)`\.$", text, re.MULTILINE))
    raw = read_yaml(PROJECT / "params.yaml")
    wanted = {name: value for name, value in raw.items() if not isinstance(value, dict) or name == "hub"}
    for name, value in raw.items():
        if name not in wanted:
            wanted |= {f"{name}.{inner}": one for inner, one in value.items()}
    assert {name: yaml.safe_load(value) for name, value in found.items()} == wanted


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """Every link and anchor between the documents leads somewhere, and nothing is fetched."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--conf-dir", "docs", "--fail-on-warning", "--quiet",
         "--doctree-dir", str(tmp_path / "cache"), ".", str(tmp_path / "site")],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "README.html" in (tmp_path / "site/index.html").read_text()
    assert (tmp_path / "site/docs/continuum.html").read_text().count("<svg viewBox") >= 6
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert not any(re.search(r'<(script|link|img)[^>]+(src|href)="https?:', page) for page in pages)
