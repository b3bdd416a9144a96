"""What the documents tell to type, typed in the order of the pages, in one copy of a project after its sweep."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.flows.conftest import Thaw
from tests.flows.scratch import Scratch
from tests.test_docs import TYPED

# What stands for the documents' own words here: the project is small, and has other files.
STAND_INS = {"FOLDER": "build/base", "100": "8", "new.jsonl": "data/skills/test.jsonl"}
# What is not run here, by words that are in the command, and where it is instead or why nowhere.
ELSEWHERE = {
    ("sweep", "--race"): "tests/flows/test_race.py",
    ("sweep",): "tests/flows/test_experiments.py",
    ("serve",): "tests/flows/test_deployments.py",
    ("init",): "tests/flows/test_init.py",
    ("status",): "tests/flows/test_status.py",
    ("logs",): "tests/flows/test_status.py",
    ("push",): "tests/flows/test_push.py",
    ("data", "fetch"): "tests/components/data/test_hub.py",
    ("prepare", "task.name=jsonl"): "tests/components/data/test_jsonl.py",
    ("train", "compute.processes=8"): "eight GPUs; with two processes in tests/tasks/test_launch.py",
}
CHECKS = ("doctor", "lineage", "promote")  # end with 1 where they find something


def run_here() -> list[tuple[str, list[str]]]:
    """The commands of Thaw's that nothing keeps from being run, each once, and where they stand."""
    found: dict[tuple[str, ...], str] = {}
    for where, lines in TYPED.items():
        if "generated" in where:  # from the help of commands
            continue
        entered = False
        for words in lines:
            entered = entered or words[0] == "cd"  # a project of the reader's own
            if words[0] == "thaw" and not entered and not any(set(keys) <= set(words) for keys in ELSEWHERE):
                found.setdefault(tuple(words[1:]), where)
    return [(where, list(arguments)) for arguments, where in found.items()]


def test_it_says_where_else_a_command_is_run() -> None:
    for words, place in ELSEWHERE.items():
        assert any(set(words) <= set(line) for lines in TYPED.values() for line in lines), words
        assert (PROJECT / place.split(" in ")[-1]).exists(), place


@pytest.mark.slow
def test_every_other_command_does_what_it_is_documented_for(copied: Scratch, thaw: Thaw, tmp_path: Path) -> None:
    results = json.loads((copied.folder / "build/report/results.json").read_text())
    versions = [f"thaw-skills/{run['model_version']}" for run in results if run["model_version"]]
    stand_ins = STAND_INS | {"thaw-skills/3": versions[0], "thaw-skills/21": versions[1]}
    for where, arguments in run_here():
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        typed = [stand_ins.get(word, word.replace("=FOLDER", "=build/base")) for word in arguments]
        said = thaw(copied.folder, *typed)
        allowed = (0, 1) if typed[0] in CHECKS else (0,)
        assert said.status in allowed, f"{where}: thaw {' '.join(typed)}\n{said.err}"
        assert said.out or said.err, where
    assert (tmp_path / "project/runs/mine/final/model.safetensors").exists()
