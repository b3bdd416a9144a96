"""The command line: what a user gets wrong is one sentence and the exit status 2, and nothing is begun."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5
from tests.conftest import PROJECT
from tests.flows.conftest import Said, Swept, Thaw


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def sentence(said: Said) -> str:
    """The one sentence of a refusal."""
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with settings and nothing else."""
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    return tmp_path


TRAIN = ("train", "--out", "runs/x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*TRAIN, "--arm", "garl-q1.5"], "arm 'garl-q1.5': q = 1.5 lies outside [0, 1]"),
        ([*TRAIN, "--arm", "paft-q-0.1"], "arm 'paft-q-0.1': q = '-0.1' is no commitment; write 0.75, 1to0"),
        ([*TRAIN, "--arm", "ppo-q0.5"], "arm 'ppo-q0.5' names no known method; write METHOD-qQ"),
        ([*TRAIN, "--arm", "garl"], "arm 'garl' needs a commitment q between 0 and 1"),
        ([*TRAIN, "--arm", "grpo-q0.5"], "grpo has no commitment q; write plain 'grpo'"),
        ([*TRAIN], "name the arm to train with --arm"),
        ([*TRAIN, "--set", "arms=[garl-q0]", "--set", "rollout.group_size=1"], "compares each rollout with the others"),
        ([*TRAIN, "--set", "arms=[grpo]", "--set", "rollout.group_size=0"], "rollout.group_size = 0"),
        ([*TRAIN, "--arm", "grpo", "--set", "train.stepz=3"], "there is no setting 'train.stepz'"),
        ([*TRAIN, "--arm", "grpo", "--set", "train.steps"], "write name=value"),
        ([*TRAIN, "--arm", "grpo", "--set", "train.steps=many"], "train.steps = 'many'"),
        ([*TRAIN, "--arm", "grpo", "--set", "train.learning_rate=-1"], "train.learning_rate = -1"),
        ([*TRAIN, "--arm", "grpo", "--params", "mine.yaml"], "no settings file mine.yaml"),
        ([*TRAIN, "--arm", "grpo", "--data", "nowhere"], "--data nowhere holds no prepared data"),
        ([*TRAIN, "--arm", "grpo", "--set", "task.path=nowhere"], "nowhere"),
        (["prepare", "--set", "task.path=nowhere"], "nowhere"),
        (["base", "--set", "model.name=./no-model"], "no model can be loaded from './no-model'"),
        (["probe", "--set", "task.path=nowhere"], "nowhere"),
        (["evaluate", "a/b/c", "--set", "task.path=nowhere"], "nowhere"),
        (["report"], "there is no build/evaluate/"),
        (["report", "--all"], "no sweep has a report yet; run `thaw sweep`"),
        (["data", "fetch", "squad"], "there is no 'squad' under hub in params.yaml; it has finqa, hotpotqa, musique"),
        ([*TRAIN, "--arm", "../grpo"], "arm '../grpo' names no known method"),
        ([*TRAIN, "--arm", "grpo", "--set", "task.name=../skills"], "task.name = '../skills'"),
        ([*TRAIN, "--arm", "grpo", "--set", "seeds=2024-13-45"], "is no valid YAML value"),
        (["data", "fetch", "../finqa"], "there is no '../finqa' under hub"),
        (
            ["sweep", "--name", "../x"],
            "'../x' cannot name a sweep, whose folder goes below experiments/; write at most",
        ),
        (["sweep", "--set", "rollout.engine=vllm", "--set", "rollout.placement=http://me:key@a:1"], "holds a password"),
        (["sweep"], "has no dvc.yaml"),
        (["sweep", "--set", "arms=[garl-q2]"], "q = 2 lies outside [0, 1]"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_bad_setting_is_told_in_one_sentence_and_nothing_is_made(
    folder: Path, thaw: Thaw, arguments: list[str], told: str
):
    before = files(folder)
    assert told in sentence(thaw(folder, *arguments))
    assert files(folder) == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "params.yaml holds no settings"),
        ("arms: [grpo", "params.yaml is no valid YAML"),
        ("arms: [grpo]\n", "the setting 'seeds' is missing"),
    ],
)
def test_a_broken_settings_file_is_told_in_one_sentence(folder: Path, thaw: Thaw, content: str, told: str):
    (folder / "params.yaml").write_text(content)
    before = files(folder)
    assert told in sentence(thaw(folder, *TRAIN, "--arm", "grpo"))
    assert files(folder) == before


def test_a_setting_that_the_file_should_not_have_is_named(folder: Path, thaw: Thaw):
    content = yaml.safe_load((folder / "params.yaml").read_text())
    content["train"]["beta"] = 0.1
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    assert "there is no setting 'train.beta'" in sentence(thaw(folder, *TRAIN, "--arm", "grpo"))


def test_a_fetched_data_set_can_be_pinned_and_prepared(folder: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch):
    """From a folder with the files of MuSiQue's repository, here two questions each."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    for number, name in enumerate(("train", "dev")):
        path = folder / "repository" / f"musique_ans_v1.0_{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(musique_item(f"{name}-{k}", 2 * number + k)) + "\n" for k in range(2)))
    hub = ("--set", f"hub.musique.repository={folder / 'repository'}", "--set", "hub.musique.revision=null")
    said = thaw(folder, "data", "fetch", "musique", *hub)
    assert said.status == 0, said.err
    assert "raw/musique/train.jsonl: 2 records" in said.out
    assert "`dvc add raw/musique` pins" in said.out
    task = ("task.name=musique", "task.path=raw/musique", "task.start=warm", "task.max_prompt_tokens=520")
    said = thaw(folder, "prepare", *(part for setting in task for part in ("--set", setting)))
    assert said.status == 0, said.err
    assert "train: 2 examples of 2 in train.jsonl; 2 shortened; tokens of a prompt" in said.out


def musique_item(name: str, number: int) -> dict[str, object]:
    paragraphs = [
        {"idx": k, "title": f"T{k}", "paragraph_text": f"{number} " + "x" * 40, "is_supporting": k == 0}
        for k in range(4)
    ]
    steps = [{"id": 1, "question": "q", "answer": "a", "paragraph_support_idx": 0}]
    return {
        "id": name, "question": f"Q{number}?", "answer": "a", "answer_aliases": [], "answerable": True,
        "paragraphs": paragraphs, "question_decomposition": steps,
    }  # fmt: skip


@pytest.mark.parametrize("command", [("prepare",), (*TRAIN, "--arm", "grpo"), ("probe",)])
def test_a_damaged_line_of_a_users_own_data_is_named_by_its_number(folder: Path, thaw: Thaw, command: tuple[str, ...]):
    data = folder / "mine"
    data.mkdir()
    lines = [f'{{"prompt": "{number} + 1?", "answer": "{number + 1}"}}' for number in range(9)]
    for split in ("validation", "test"):
        (data / f"{split}.jsonl").write_text(lines[0].replace("+", split) + "\n")
    (data / "train.jsonl").write_text("\n".join([*lines[:4], lines[4][:20], *lines[5:]]) + "\n")
    before = files(folder)
    said = sentence(
        thaw(folder, *command, "--set", "task.name=jsonl", "--set", "task.start=cold", "--set", "task.path=mine")
    )
    assert "mine/train.jsonl:5: broken JSON" in said
    assert files(folder) == before


@pytest.mark.slow
def test_a_registered_version_generates_what_its_checkpoint_generates(swept: Swept, thaw: Thaw, tmp_path: Path):
    """The samples and not the figures alone, which an untrained model has in common with any other."""
    for arm in ("garl-q0.75", "paft-q0.75"):
        record = swept.json(f"train/{arm}/0/train.json")
        reference = f"{record['model_name']}/{record['model_version']}"
        said = thaw(swept.project.folder, "evaluate", reference, "--out", str(tmp_path / arm))
        assert said.status == 0
        assert "maj_at_4" in said.out
        for file in ("samples.jsonl", "metrics.json"):
            assert (tmp_path / arm / file).read_bytes() == swept[f"evaluate/{arm}/0/{file}"].read_bytes()
    assert dvc_md5(tmp_path / "garl-q0.75/samples.jsonl") != dvc_md5(tmp_path / "paft-q0.75/samples.jsonl")


@pytest.mark.slow
def test_an_earlier_version_is_the_checkpoint_of_its_step(swept: Swept, thaw: Thaw, tmp_path: Path):
    folder = swept["train/garl-q0.75/0/checkpoints/step-4"]
    run_id = swept.json("train/garl-q0.75/0/train.json")["mlflow_run_id"]
    [version] = [
        version
        for version in swept.project.tracker().registry.versions("thaw-skills")
        if version.run_id == run_id and version.step == 4
    ]
    for model, out in ((version.reference, "registered"), (str(folder), "folder")):
        assert thaw(swept.project.folder, "evaluate", model, "--out", str(tmp_path / out)).status == 0
    assert dvc_md5(tmp_path / "registered/samples.jsonl") == dvc_md5(tmp_path / "folder/samples.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("no-model", "there is no folder no-model, and a registered version is written NAME/VERSION or NAME@ALIAS."),
        ("thaw-skills/99", "there is no thaw-skills/99; thaw-skills has the versions 1 to 12"),
        ("thaw-skills@mine", "there is no thaw-skills@mine; thaw-skills has the versions 1 to 12, @best"),
        ("thaw-nothing/1", "there is no registered model 'thaw-nothing'; there is thaw-skills"),
    ],
)
def test_a_version_that_is_not_registered_is_told_in_one_sentence(
    swept: Swept, thaw: Thaw, tmp_path: Path, model: str, told: str
):
    said = thaw(swept.project.folder, "evaluate", model, "--out", str(tmp_path / "out"))
    assert told in sentence(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_data_of_other_settings_is_refused(swept: Swept, thaw: Thaw, tmp_path: Path):
    said = thaw(
        swept.project.folder, *TRAIN, "--arm", "grpo", "--data", "build/data", "--out", str(tmp_path / "out"),
        "--set", "task.train=32",
    )  # fmt: skip
    assert "--data build/data was prepared with other settings (task.train)" in sentence(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_compare_shows_the_last_of_every_arm_or_all_or_the_named_ones(swept: Swept, thaw: Thaw):
    said = thaw(swept.project.folder, "compare")
    assert said.status == 0
    shown = [line for line in said.out.splitlines() if "thaw-skills/" in line]
    records = [swept.json(f"train/{arm}/0/train.json") for arm in ("grpo", "garl-q0.75", "paft-q0.75")]
    named = {line.partition("thaw-skills/")[2].split()[0] for line in shown}
    assert {f"thaw-skills/{number}" for number in named} == {  # the evaluated ones; one of them is best
        f"thaw-skills/{record['model_version']}" for record in records
    }
    assert sum("@best" in line for line in shown) == 1
    assert "9 more with --all" in said.out
    said = thaw(swept.project.folder, "compare", "--all")
    assert said.out.count("thaw-skills/") == 12
    assert "maj@4" in said.out
    first, second, *_ = (f"thaw-skills/{number}" for number in sorted(named))
    said = thaw(swept.project.folder, "compare", first, second)
    assert said.status == 0
    assert {first, second} <= set(said.out.split())
    assert "thaw-skills/" not in said.out.replace(first, "").replace(second, "")


def test_it_tells_its_version(folder: Path, thaw: Thaw) -> None:
    said = thaw(folder, "--version")
    assert (said.status, said.out) == (0, f"thaw {version('thaw')}\n")
