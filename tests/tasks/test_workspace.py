"""Which folder a sweep builds in: the project for its own settings, an experiment for any other."""

from pathlib import Path

import pytest
import yaml

from components.config import load_settings
from components.errors import UserError
from tasks.workspace import open_workspace, project_root
from tests.conftest import PROJECT

PARAMS = Path("params.yaml")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with settings and a pipeline."""
    (tmp_path / ".dvc").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_projects_own_settings_are_built_in_the_project(root: Path):
    assert open_workspace(load_settings(PARAMS), PARAMS, [], None) == root
    assert not (root / "experiments").exists()


def test_other_settings_get_a_folder_of_their_own_that_reaches_the_projects_data_and_code(root: Path):
    overrides = ["train.steps=3", "arms=[iwae]"]
    settings = load_settings(PARAMS, overrides)
    folder = open_workspace(settings, PARAMS, overrides, None)
    assert folder.parent == root / "experiments"
    assert folder.name.startswith("skills-mixed-")
    written = load_settings(folder / "params.yaml")
    assert written.train.steps == 3
    assert written.arm_names == ["garl-plugin-q1"]
    assert (folder / written.task.path).resolve() == root / "data/skills"
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    assert pipeline["vars"] == [{"code": "../.."}]
    assert pipeline["stages"] == yaml.safe_load((root / "dvc.yaml").read_text())["stages"]


def test_equal_settings_find_the_same_experiment_and_leave_its_files_alone(root: Path):
    def opened(*overrides: str) -> Path:
        return open_workspace(load_settings(PARAMS, overrides), PARAMS, overrides, None)

    first = opened("train.steps=3")
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert opened("train.steps=3") == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    assert opened("train.steps=4") != first
    assert (root / "params.yaml").read_bytes() == (PROJECT / "params.yaml").read_bytes()


def test_a_name_is_the_folders(root: Path):
    assert open_workspace(load_settings(PARAMS), PARAMS, [], "mine") == root / "experiments/mine"


@pytest.mark.parametrize(
    "name", ["../mine", "a/b", ".", "..", "", ".dvc", "-x", "a\0", "a\nb", "a b", "x" * 61, "/tmp/x"]
)
def test_a_name_that_leads_elsewhere_is_refused(root: Path, name: str):
    with pytest.raises(
        UserError, match="cannot name a sweep, whose folder goes below experiments/; write at most 60 letters"
    ):
        open_workspace(load_settings(PARAMS), PARAMS, [], name)
    assert {path.name for path in root.iterdir()} == {".dvc", "params.yaml", "dvc.yaml"}


@pytest.mark.usefixtures("root")
def test_data_outside_the_project_is_named_by_its_full_path(tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("data")
    overrides = [f"task.path={elsewhere}"]
    folder = open_workspace(load_settings(PARAMS, overrides), PARAMS, overrides, "mine")
    assert load_settings(folder / "params.yaml").task.path == str(elsewhere)


def test_the_root_is_found_from_below_and_a_folder_without_dvc_is_its_own(root: Path):
    (root / "a/b").mkdir(parents=True)
    assert project_root(root / "a/b") == root
    assert project_root(Path("/")) == Path("/")


def test_a_sweep_outside_of_a_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"has no dvc\.yaml; a sweep runs inside a clone of the project"):
        open_workspace(load_settings(PROJECT / "params.yaml"), PARAMS, [], None)
