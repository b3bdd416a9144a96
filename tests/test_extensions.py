"""The walks of docs/extend, each followed as it is written: edits put in, commands typed, and what they should say."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, SMALL
from tests.flows.scratch import Scratch
from tests.test_docs import Block, blocks, commands

TAKE_SETTINGS = ("prepare", "base", "train", "evaluate")
WALKS = sorted((PROJECT / "docs/extend").glob("*.md"))


def quick(words: list[str]) -> list[str]:
    """A command with the settings of a quick trial, which its own come behind."""
    if words[0] != "thaw" or words[1] not in TAKE_SETTINGS:
        return words
    return [*words[:2], *(part for setting in SMALL for part in ("--set", setting)), *words[2:]]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    """A fresh clone with its data, to be copied."""
    return Scratch.clone(tmp_path_factory.mktemp("clone") / "project", tmp_path_factory.mktemp("prefect"), ())


def edit(folder: Path, block: Block) -> None:
    """Put a block of a walk into the project: a diff, or a whole file that is headed by its path."""
    language, _, path = block.language.partition(" ")
    if language == "diff":
        done = subprocess.run(
            ["git", "apply", "-"], cwd=folder, input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"
    elif path:
        assert not (folder / path).exists(), f"{block}: there is a {path}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(block.text, encoding="utf-8")


def typed(walk: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The commands of a walk, and with the last one of a block what the block of text behind it says it prints."""
    found = list(blocks(walk))
    for number, block in enumerate(found):
        if block.language == "sh":
            after = found[number + 1] if number + 1 < len(found) else None
            lines = commands(block)
            says = after.text.splitlines() if after is not None and after.language == "text" else []
            yield from ((words, says if words is lines[-1] else []) for words in lines)


def test_there_is_a_walk_for_whatever_there_are_several_of() -> None:
    assert [walk.stem for walk in WALKS] == ["chart", "data-set", "engine", "estimator"]
    for walk in WALKS:
        assert list(typed(walk)), walk
        for block in blocks(walk):
            assert " " in block.language or block.language in ("diff", "sh", "text"), block


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.stem)
def test_a_walk_leads_where_it_says(clone: Scratch, walk: Path, tmp_path: Path) -> None:
    project = clone.copy(tmp_path / "project")
    for block in blocks(walk):
        edit(project.folder, block)
    steps = list(typed(walk))
    out = project.run("python", "-m", "tests.follow", json.dumps([quick(words) for words, _ in steps]))
    done = json.loads(out.splitlines()[-1])
    for (words, says), (status, said) in zip(steps, done, strict=False):
        assert status == 0, f"{walk.name}: {' '.join(words)}\n{said}"
        for line in says:
            assert line in said, f"{walk.name}: {' '.join(words)}\n{said}"
    assert len(done) == len(steps)
