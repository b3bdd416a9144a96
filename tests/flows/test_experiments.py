"""`thaw sweep` with other settings: a build of its own beside the project's, here of a published data set's sample."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5
from tests.conftest import SAMPLES
from tests.flows.conftest import Swept
from tests.flows.scratch import Scratch, built_in

pytestmark = pytest.mark.slow

TASK = "finqa" if SAMPLES else "skills"
ARM = "garl-debiased-q1"
CHANGED = [
    f"arms=[{ARM}]", "task.train=8", "task.validation=4", "task.test=4", "rollout.group_size=2",
    "probe.examples=2", "probe.look_ahead=1",
    "train.steps=2", "train.validate_every=2", "train.groups_per_step=2", "evaluation.samples=2",
    "task.start=cold", *([f"task.name={TASK}", f"task.path={SAMPLES}/finqa"] if SAMPLES else []),
]  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    project: Scratch
    log: str

    @property
    def folder(self) -> Path:
        return self.project.folder / "experiments" / "mine"

    def json(self, path: str):
        return json.loads((self.folder / "build" / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def experiment(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment in a copy of the swept project: the FinQA sample where there is one, else the embedded task."""
    project = swept.project.copy(tmp_path_factory.mktemp("experiment") / "project")
    overrides = [part for setting in CHANGED for part in ("--set", setting)]
    return Experiment(project, project.run("thaw", "sweep", "--name", "mine", *overrides))


def test_an_experiment_builds_all_its_stages_below_its_own_folder(experiment: Experiment):
    assert built_in(experiment.log) == {
        "prepare", "base", "probe", f"train@{ARM}-0", f"evaluate@{ARM}-0", "report",
    }  # fmt: skip
    assert str(experiment.folder / "build/report/index.html") in experiment.log
    for path in (f"train/{ARM}/0/final/model.safetensors", "report/index.html", "report/results.json"):
        assert (experiment.folder / "build" / path).is_file()


def test_an_experiment_leaves_the_projects_build_and_settings_alone(experiment: Experiment, swept: Swept):
    folder = experiment.project.folder
    assert dvc_md5(folder / "build") == dvc_md5(swept["."])
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        assert (folder / name).read_bytes() == (swept.project.folder / name).read_bytes()


def test_neither_the_project_nor_the_experiment_is_stale_afterwards(experiment: Experiment):
    assert experiment.project.stale() == set()
    below = Scratch(experiment.folder, experiment.project.prefect, program=experiment.project.folder)
    assert "Running stage" not in below.run("dvc", "repro", "--dry")


def test_an_experiment_writes_down_its_settings(experiment: Experiment):
    content = yaml.safe_load((experiment.folder / "params.yaml").read_text(encoding="utf-8"))
    assert content["arms"] == [ARM]
    assert content["task"]["name"] == TASK
    assert content["train"]["steps"] == 2
    changes = experiment.project.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    new = {line.split()[-1] for line in changes}
    assert new == {"dvc.lock", *(f"experiments/mine/{name}" for name in ("params.yaml", "dvc.yaml", "dvc.lock"))}


def test_an_experiment_is_registered_beside_the_projects_checkpoints(experiment: Experiment):
    registry = experiment.project.tracker().registry
    record = experiment.json(f"train/{ARM}/0/train.json")
    version = registry.find(f"{record['model_name']}/{record['model_version']}")
    assert version.name == f"thaw-{TASK}"
    assert {name: version.tags[name] for name in ("estimator", "q", "task", "start", "seed")} == {
        "estimator": "garl-debiased", "q": "1", "task": TASK, "start": "cold", "seed": "0",
    }  # fmt: skip
    assert version.tags["data_md5"] == dvc_md5(experiment.folder / "build/data")
    assert {"validation/maj_at_2", "test/maj_at_2"} <= version.metrics.keys()
    assert len(registry.versions("thaw-skills")) == (12 if SAMPLES else 13)


def test_a_backfill_sweeps_over_each_combination_and_checks_all_before_the_first(experiment: Experiment):
    project = experiment.project
    options = "arms=['garl-q0.75'], params=Path('params.yaml')"
    header = "from pathlib import Path; from flows.sweep import backfill; "
    wrong = f"{header}backfill(over={{'train.learning_rate': [0.02, -1]}}, {options})"
    log = project.run("python", "-c", wrong, status=1)
    assert "train.learning_rate" in log
    assert "q_sweep" not in log

    right = f"{header}backfill(over={{'train.learning_rate': [0.02, 0.03], 'train.steps': [2]}}, {options})"
    log = project.run("python", "-c", right)
    made = {folder for folder in (project.folder / "experiments").iterdir() if folder.name != "mine"}
    rates = [yaml.safe_load((folder / "params.yaml").read_text())["train"]["learning_rate"] for folder in made]
    assert sorted(rates) == [0.02, 0.03]
    for folder in made:
        rows = json.loads((folder / "build/report/results.json").read_text(encoding="utf-8"))
        assert [(row["arm"], row["steps"]) for row in rows[1:]] == [("garl-q0.75", 2)]


@pytest.mark.usefixtures("real_samples")
def test_published_data_is_counted_and_reaches_the_report(experiment: Experiment):
    report = experiment.json("data/report.json")
    for split, size in (("train", 8), ("validation", 4), ("test", 4)):
        facts = report[split]
        assert facts["final"] == size
        assert facts["present"] == facts["loaded"] + sum(facts["skipped"].values()) + facts["duplicates"]
    page = (experiment.folder / "build/report/index.html").read_text(encoding="utf-8")
    assert "finqa" in page
    assert "debiased GARL q=1" in page


@pytest.mark.usefixtures("real_samples")
def test_a_tiny_model_is_not_said_to_have_learned_finance(experiment: Experiment):
    """86,000 weights and two steps answer no question about annual reports, and nothing may say otherwise."""
    rows = {row["arm"]: row for row in experiment.json("report/results.json")}
    assert set(rows) == {"base", ARM}
    for row in rows.values():
        assert row["task"] == "finqa"
        assert row["p_at_1"] == row["p_at_2"] == row["maj_at_2"] == 0
    assert experiment.json("probe/probe.json")["p0"]["mean"] < 1e-3
    assert "frozen" in experiment.log.partition("4 test problems")[2]
    assert "thawed" not in experiment.log
