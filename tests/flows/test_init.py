"""`thaw init`: what it writes runs, and nothing is written of what cannot."""

import json
import subprocess
from pathlib import Path

import pytest

from components.config import load_settings
from tests.conftest import PROJECT
from tests.flows.conftest import Said, Thaw
from tests.flows.terminal import THAW, environment, on_terminal

SHORT = [
    "rollout.group_size=4", "rollout.max_new_tokens=20", "probe.examples=4", "probe.held_out=2", "probe.look_ahead=1",
    "train.steps=2", "train.validate_every=1", "train.groups_per_step=2", "evaluation.samples=2", "race.rungs=[1]",
    "compute.threads=1",
]  # fmt: skip
FLAGS = ("--question", "question", "--answer", "solution.final")


def settings(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a file of questions, and no project anywhere around."""
    rows = [{"question": f"w{i}?", "solution": {"final": f"a:{i * i}", "why": "..."}} for i in range(40)]
    lines = [json.dumps(row) for row in [*rows, {"question": "no answer"}, rows[0]]]
    (tmp_path / "own.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_it_writes_a_project_from_flags_alone(thaw: Thaw, desk: Path, embedded: Path):
    said = thaw(desk, "init", "mine", "--data", "own.jsonl", *FLAGS, "--model", str(embedded), *settings(*SHORT))
    assert said.status == 0, said.err
    assert "own.jsonl: 40 questions, 1 left out: broken JSON, 1 left out: no answer, 1 left out: repeated" in said.out
    assert "train: 32 examples of 36" in said.out
    assert "test: 4 examples of 4" in said.out
    assert "Training fits this machine's memory" in said.out
    assert said.out.splitlines()[-1].startswith("next:    cd mine && thaw probe")
    assert {"params.yaml", "dvc.yaml", "data/train.jsonl", "data/test.jsonl", ".dvc/config"} <= files(desk / "mine")
    found = load_settings(desk / "mine" / "params.yaml")
    assert (found.task.name, found.task.path, found.task.start) == ("jsonl", "data", "cold")
    assert (found.model.name, found.train.steps, found.task.validation) == (str(embedded), 2, 4)
    assert found.rollout.answer_reserve == 10  # half of the rollout, the longest answer has seven tokens and ROOM
    again = thaw(desk, "init", "mine", "--data", "own.jsonl", *FLAGS, "--model", str(embedded))
    assert (again.status, again.out) == (2, "")
    assert "mine/params.yaml exists and would be overwritten; name another folder" in again.err


@pytest.mark.slow
def test_what_it_wrote_is_probed_and_its_pipeline_is_known_to_dvc(thaw: Thaw, desk: Path, embedded: Path):
    said = thaw(desk, "init", "mine", "--data", "own.jsonl", *FLAGS, "--model", str(embedded), *settings(*SHORT))
    assert said.status == 0, said.err

    def run(*command: str) -> str:
        done = subprocess.run(
            [THAW.with_name(command[0]), *command[1:]], cwd=desk / "mine", env=environment({}), text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "P of 4 training examples" in run("thaw", "probe")
    assert (desk / "mine" / "build" / "probe" / "forecast.json").is_file()
    status = json.loads(run("dvc", "status", "--json"))
    assert {"prepare", "base", "probe", "train@garl-q1-0", "report"} <= set(status)


def test_a_project_inside_a_clone_shares_its_code_and_its_dvc(thaw: Thaw, desk: Path, monkeypatch: pytest.MonkeyPatch):
    (desk / ".dvc").mkdir()
    (desk / "dvc.yaml").write_bytes((PROJECT / "dvc.yaml").read_bytes())
    (desk / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    monkeypatch.setattr("tasks.new_project.CODE", desk)
    (desk / "mine").mkdir()
    said = thaw(desk / "mine", "init", "--data", "../own.jsonl", *FLAGS, "--model", "embedded")
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1].startswith("next:    thaw probe")
    assert not (desk / "mine" / ".dvc").exists()
    assert "  - code: ..\n" in (desk / "mine" / "dvc.yaml").read_text()
    assert (
        (desk / "mine" / "params.yaml")
        .read_text()
        .startswith("# yaml-language-server: $schema=../params.schema.json\n")
    )
    refused = thaw(desk, "init", "--force", "--data", "own.jsonl", *FLAGS, "--model", "embedded")
    assert "this folder is Thaw's own" in refused.err


NO_MODEL = ("--data", "own.jsonl", *FLAGS, "--model")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--data is missing, and there is no terminal to ask on"),
        (("--data", "own.jsonl"), "--question is missing, and there is no terminal to ask on"),
        (("--data", "own.jsonl", "--question", "question"), "--answer is missing"),
        (("--data", "own.jsonl", *FLAGS), "--model is missing"),
        (("--data", "none.jsonl"), "there is no none.jsonl"),
        (("--data", "."), "is a folder; name a file, or say whose it is: --task finqa"),
        (
            ("--data", "own.jsonl", "--question", "q", "--answer", "a", "--model", "embedded"),
            "has no field 'q'; it has",
        ),
        ((*NO_MODEL, "./nowhere"), "there is no model's folder ./nowhere"),
        ((*NO_MODEL, "."), "has no config.json; give the folder that save_pretrained wrote"),
        ((*NO_MODEL, "embedded", "--set", "train.step=1"), "--set train.step=1: there is no setting 'train.step'"),
        ((*NO_MODEL, "embedded", "--set", "train.steps=0"), "params.yaml with --set train.steps=0: train.steps = 0: "),
        (("--task", "finqa", "--data", ".", "--model", "embedded"), "has no training file; put train.json there"),
        (("--task", "squad", "--data", ".", "--model", "embedded"), "there is no task 'squad'; write jsonl, finqa,"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_one_sentence_and_nothing_is_written(
    thaw: Thaw, desk: Path, arguments: tuple[str, ...], told: str
):
    said: Said = thaw(desk, "init", "mine", *arguments)
    assert said.status == 2
    assert told in said.err
    assert said.err.splitlines()[-1].startswith("error: ")
    assert files(desk) == {"own.jsonl"}


@pytest.mark.slow
def test_it_asks_on_a_terminal_until_an_answer_can_be_used(desk: Path):
    typed = "nowhere.jsonl\nown.jsonl\n\nanswer\nsolution.final\n./no-model\nembedded\ny\n"
    said = on_terminal(desk, "init", "mine", typed=typed)
    assert said.status == 0, said.shown
    for text in ("there is no nowhere.jsonl", "[question]", "there is no field 'answer'", "there is no model's folder"):
        assert text in said.shown
    assert said.out.splitlines()[-1].startswith("next:    cd mine && thaw probe")
    assert load_settings(desk / "mine" / "params.yaml").model.name == "embedded"


def test_ctrl_d_at_a_question_is_an_interruption_and_leaves_nothing(desk: Path):
    assert on_terminal(desk, "init", "mine", typed="\x04").status == 130
    assert files(desk) == {"own.jsonl"}
