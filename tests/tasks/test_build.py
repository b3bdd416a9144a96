"""DVC through `Build`: what is stale, what is recorded, what comes back, with stages run outside of `dvc repro`."""

import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from components.data.digest import dvc_md5
from components.errors import UserError
from tasks.build import Build
from tests.tasks.conftest import Toy


def build(folder: Path, name: str) -> bool:
    """Build a stage as `run_stage` does; whether its command had to be run."""
    stages = Build(folder)
    stale = stages.begin(name)
    if stale is None:
        return False
    subprocess.run(stale.command, shell=True, cwd=folder, check=True)
    stages.commit(stale)
    return True


def build_all(folder: Path, *names: str) -> list[str]:
    """Build these stages or all; those whose command had to be run."""
    return [name for name in names or Build(folder).stages() if build(folder, name)]


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def change(folder: Path, old: str, new: str, file: str = "params.yaml") -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_the_stages_of_a_matrix_come_one_by_one_and_in_the_order_of_the_build(toy: Toy):
    arms = [f"{step}@{arm}" for step in ("train", "evaluate") for arm in ("grpo-0", "paft-q0.75-0")]
    assert Build(toy()).stages() == ["prepare", "base", "probe", *arms, "report"]


def test_what_was_built_is_up_to_date_for_us_and_for_dvc(toy: Toy):
    folder = toy()
    assert build_all(folder) == Build(folder).stages()
    assert build_all(folder) == []
    assert yaml.safe_load(dvc(folder, "status", "--json")) == {}
    assert "Running stage" not in dvc(folder, "repro")


def test_what_dvc_repro_built_is_up_to_date_for_us(toy: Toy):
    folder = toy()
    dvc(folder, "repro", "--quiet")
    assert build_all(folder) == []


def test_a_changed_setting_makes_what_uses_it_stale_and_nothing_else(toy: Toy):
    folder = toy()
    build_all(folder)
    change(folder, "validate_every: 2", "validate_every: 3")
    assert build_all(folder) == []
    change(folder, "steps: 4\n  groups", "steps: 5\n  groups")
    # Their outputs come out the same, so what depends on them is not run again.
    assert build_all(folder) == ["train@grpo-0", "train@paft-q0.75-0"]


def test_a_setting_that_returns_brings_the_outputs_back_without_a_run(toy: Toy):
    folder = toy(train="mkdir -p $2\ncat params.yaml > $2/final\n")
    stages = ("prepare", "base", "train@grpo-0", "evaluate@grpo-0")
    build_all(folder, *stages)
    final = folder / "build/train/grpo/0/final"
    first = final.read_bytes()
    change(folder, "steps: 4\n  groups", "steps: 5\n  groups")
    assert build_all(folder, *stages) == ["train@grpo-0", "evaluate@grpo-0"]
    assert final.read_bytes() != first
    change(folder, "steps: 5\n  groups", "steps: 4\n  groups")
    assert build_all(folder, *stages) == []
    assert final.read_bytes() == first
    assert not set(stages) & set(yaml.safe_load(dvc(folder, "status", "--json")))


WEIGHTS = "mkdir -p $2/final\necho weights > $2/final/model.safetensors\necho {} > $2/final/config.json\n"


def cached(path: Path, root: Path) -> Path:
    md5 = dvc_md5(path)
    return root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def test_weights_are_one_file_with_dvcs_cache_and_what_people_edit_is_not(toy: Toy):
    folder = toy(train=WEIGHTS)
    final = folder / "build/train/grpo/0/final"
    for _ in ("built", "from the cache"):
        build_all(folder, "prepare", "base", "train@grpo-0")
        weights, config = final / "model.safetensors", final / "config.json"
        assert weights.samefile(cached(weights, folder))
        assert stat.S_IMODE(weights.stat().st_mode) == 0o444
        assert not config.samefile(cached(config, folder))
        assert config.stat().st_mode & stat.S_IWUSR
        assert yaml.safe_load(dvc(folder, "status", "--json")).keys().isdisjoint({"prepare", "base", "train@grpo-0"})
        shutil.rmtree(final.parent)


def test_how_a_project_has_dvc_link_is_left_to_it(toy: Toy):
    folder = toy(train=WEIGHTS)
    with (folder / ".dvc" / "config").open("a") as config:
        config.write("[cache]\n    type = symlink\n")
    build_all(folder, "prepare", "base", "train@grpo-0")
    assert all(path.is_symlink() for path in (folder / "build/train/grpo/0/final").iterdir())


def test_a_lost_build_comes_back_from_the_cache(toy: Toy):
    folder = toy()
    build_all(folder)
    report = (folder / "build/report").read_bytes()
    shutil.rmtree(folder / "build")
    assert build_all(folder) == []
    assert (folder / "build/report").read_bytes() == report


def test_the_outputs_of_a_stage_that_will_run_are_removed_and_what_else_lies_there_is_kept(toy: Toy):
    folder = toy()
    build_all(folder, "prepare", "base", "train@grpo-0")
    run = folder / "build/train/grpo/0"
    (run / "state").mkdir()
    change(folder, "steps: 4\n  groups", "steps: 5\n  groups")
    assert Build(folder).begin("train@grpo-0") is not None
    assert {path.name for path in run.iterdir()} == {"log", "state", ".gitignore"}


@pytest.mark.parametrize("name", ["train@grpo-0", "train@paft-q0.75-0"])
def test_what_a_run_made_that_was_not_recorded_is_kept_for_the_next_from_the_same_inputs(toy: Toy, name: str):
    folder = toy()
    build_all(folder, "prepare", "base")
    made = folder / "build/train" / name.removeprefix("train@").removesuffix("-0") / "0/final"
    stale = Build(folder).begin(name)
    assert stale is not None
    subprocess.run(stale.command, shell=True, cwd=folder, check=True)
    kept = made.read_bytes()

    assert Build(folder).begin(name) == stale  # its flow died, and the next one begins
    assert made.read_bytes() == kept
    change(folder, "steps: 4\n  groups", "steps: 5\n  groups")
    other = Build(folder).begin(name)
    assert other is not None
    assert not made.exists()  # it was made of other inputs

    dvc(folder, "repro", "--quiet")  # builds and records it too
    assert Build(folder).begin(name) is None
    made.unlink()
    made.write_text("edited\n")
    assert Build(folder).begin(name) is None  # what DVC has recorded is back
    assert made.read_bytes() == kept
    change(folder, "steps: 5\n  groups", "steps: 4\n  groups")
    assert Build(folder).begin(name) is not None
    assert not made.exists()  # and so was what has been recorded


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("train.sh", "echo training", "echo  training", "train.sh"),
        ("build/data", "raw", "other", "build/data"),
        ("params.yaml", "steps: 4\n  groups", "steps: 5\n  groups", "params.yaml"),
        ("dvc.yaml", "sh train.sh", "sh ./train.sh", "the command"),
    ],
)
def test_a_result_is_not_recorded_if_what_it_was_made_of_changed_meanwhile(
    toy: Toy, file: str, old: str, new: str, named: str
):
    folder = toy()
    build_all(folder, "prepare", "base")
    before = (folder / "dvc.lock").read_bytes()
    stages = Build(folder)
    stale = stages.begin("train@grpo-0")
    assert stale is not None
    subprocess.run(stale.command, shell=True, cwd=folder, check=True)
    change(folder, old, new, file)
    with pytest.raises(UserError, match=f"^{named} changed while .*train@grpo-0 ran.*not recorded"):
        stages.commit(stale)
    assert (folder / "dvc.lock").read_bytes() == before
    assert stages.begin("train@grpo-0") is not None


def test_a_stage_without_its_output_is_not_recorded(toy: Toy):
    folder = toy(train="true")
    build_all(folder, "prepare", "base")
    with pytest.raises(UserError, match="build/train/grpo/0/final"):
        build(folder, "train@grpo-0")
    assert Build(folder).begin("train@grpo-0") is not None


def test_a_missing_dependency_is_named_before_anything_runs(toy: Toy):
    folder = toy()
    (folder / "raw.txt").unlink()
    with pytest.raises(UserError, match=r"stage prepare needs raw\.txt, which does not exist"):
        Build(folder).begin("prepare")


def test_a_broken_pipeline_is_one_sentence(toy: Toy):
    folder = toy()
    (folder / "dvc.yaml").write_text("stages: {prepare: {command: x}}\n")
    with pytest.raises(UserError, match=r"^DVC in .*dvc.yaml"):
        Build(folder).begin("prepare")


def test_from_outside_the_project_nothing_is_begun(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = toy()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="only from within; start this in that folder"):
        Build(folder)


def test_stages_built_at_the_same_time_are_all_recorded(toy: Toy):
    folder = toy("seeds=[0, 1]")
    build_all(folder, "prepare", "base")
    arms = [name for name in Build(folder).stages() if name.startswith("train@")]
    assert len(arms) == 4
    with ThreadPoolExecutor(len(arms)) as pool:
        assert list(pool.map(lambda name: build(folder, name), arms)) == [True] * 4
    assert set(arms) <= set(yaml.safe_load((folder / "dvc.lock").read_text())["stages"])
    assert not set(arms) & set(yaml.safe_load(dvc(folder, "status", "--json")))


def test_an_experiment_below_a_project_is_a_build_of_its_own(toy: Toy):
    folder = toy()
    stages = ("prepare", "base", "train@grpo-0")
    build_all(folder, *stages)
    experiment = folder / "experiments" / "mine"
    experiment.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "raw.txt", "train.sh", "evaluate.sh"):
        shutil.copy(folder / name, experiment / name)
    change(experiment, "steps: 4\n  groups", "steps: 5\n  groups")
    assert "train@grpo-0" in build_all(experiment, *stages)
    assert (experiment / "build/train/grpo/0/final").is_file()
    assert build_all(folder, *stages) == []
