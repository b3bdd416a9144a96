"""Checkpoints in the registry: the same bytes out as in, each one once, from many processes."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.data.digest import dvc_md5
from components.errors import UserError
from components.tracking.runs import Tracker, connect
from components.tracking.version import Version
from tests.conftest import PROJECT

TAGS = {"estimator": "garl", "q": "0.75", "task": "skills"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def version(tracker: Tracker, checkpoint: Path) -> Version:
    with tracker.run("arm") as run:
        return run.register(checkpoint, "thaw-skills", step=20, tags=TAGS, metrics={"validation/maj_at_16": 0.1 + 0.2})


def test_a_checkpoint_comes_back_byte_for_byte(
    tracker: Tracker, version: Version, checkpoint: Path, tmp_path: Path
) -> None:
    assert contents(tracker.registry.download(version.reference)) == contents(checkpoint)
    folder = tracker.registry.download("models:/thaw-skills/1", tmp_path / "new" / "model")
    assert folder == tmp_path / "new" / "model"
    assert contents(folder) == contents(checkpoint)
    assert (folder / "model.safetensors").samefile(checkpoint / "model.safetensors")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    with pytest.raises(UserError, match="model is not empty"):
        tracker.registry.download("thaw-skills/1", folder)


def test_a_version_tells_where_it_comes_from(tracker: Tracker, version: Version) -> None:
    assert (version.name, version.version, version.reference, version.step) == ("thaw-skills", 1, "thaw-skills/1", 20)
    assert version.metrics == {"validation/maj_at_16": 0.1 + 0.2}
    assert TAGS.items() <= version.tags.items()
    assert abs((datetime.now(UTC) - version.created).total_seconds()) < 60
    assert tracker.registry.versions("thaw-skills") == [version]
    model = tracker.store.client.search_logged_models(
        [tracker.store.experiment_id], "metrics.`validation/maj_at_16` > 0.2 AND params.q = '0.75'"
    )[0]
    assert model.model_id == version.tags["thaw.model_id"]
    assert model.source_run_id == version.run_id
    outputs = tracker.store.client.get_run(version.run_id).outputs
    assert outputs is not None
    assert [(output.model_id, output.step) for output in outputs.model_outputs] == [(model.model_id, 20)]


def test_the_same_step_of_the_same_run_is_registered_once(tracker: Tracker, version: Version, checkpoint: Path) -> None:
    with tracker.run("arm", resume=version.run_id) as run:
        again = run.register(checkpoint, "thaw-skills", step=20, tags=TAGS, metrics={})
        later = run.register(checkpoint, "thaw-skills", step=40, tags=TAGS, metrics={})
    assert again == version
    assert later.version == 2
    assert tracker.registry.versions("thaw-skills") == [version, later]
    assert len(tracker.store.client.search_logged_models([tracker.store.experiment_id])) == 2


def test_an_alias_moves(tracker: Tracker, version: Version, checkpoint: Path) -> None:
    with tracker.run("other") as run:
        second = run.register(checkpoint, "thaw-skills", step=1, tags={}, metrics={})
    for number in (version.version, second.version):
        tracker.registry.set_alias("thaw-skills", "best", number)
        assert tracker.registry.find("thaw-skills@best").version == number
    assert [item.aliases for item in tracker.registry.versions("thaw-skills")] == [(), ("best",)]
    assert contents(tracker.registry.download("models:/thaw-skills@best")) == contents(checkpoint)


def test_versions_are_found_by_name_and_tags(tracker: Tracker, version: Version, checkpoint: Path) -> None:
    with tracker.run("other") as run:
        other = run.register(checkpoint, "thaw-finqa", step=1, tags={"q": "it's", "a.b": "1"}, metrics={})
    registry = tracker.registry
    assert registry.versions() == [other, version]
    assert registry.versions(tags={"q": "0.75", "task": "skills"}) == [version]
    assert registry.versions(tags={"q": "it's", "a.b": "1"}) == [other]
    assert registry.versions("thaw-finqa", {"q": "0.75"}) == []


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("thaw-skills", "write NAME/VERSION or NAME@ALIAS"),
        ("thaw-skills/2", "there is no thaw-skills/2; thaw-skills has the versions 1 to 1, @best"),
        ("thaw-skills@worst", "there is no thaw-skills@worst; thaw-skills has the versions 1 to 1, @best"),
        ("thaw-finqa/1", "there is no registered model 'thaw-finqa'; there is thaw-skills"),
    ],
)
def test_what_is_not_there_is_said_plainly(tracker: Tracker, version: Version, reference: str, sentence: str) -> None:
    tracker.registry.set_alias("thaw-skills", "best", version.version)
    with pytest.raises(UserError, match=sentence):
        tracker.registry.download(reference)


def test_a_checkpoint_with_a_link_out_of_its_folder_is_not_stored(
    tracker: Tracker, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the key")
    (checkpoint / "extra" / "link").symlink_to(tmp_path / "secret")
    with tracker.run("arm") as run, pytest.raises(UserError, match=r"link to .*secret, out of the model's folder"):
        run.register(checkpoint, "thaw-skills", step=1, tags={}, metrics={})
    assert tracker.registry.versions() == []
    assert not [file for file in tracker.root.rglob("*") if file.is_file() and b"the key" in file.read_bytes()]


@pytest.mark.parametrize("name", ["../thaw", "..", "a/b", "a:b", "", "a b", "=1", "x" * 61])
def test_names_that_lead_elsewhere_are_refused(tracker: Tracker, checkpoint: Path, name: str) -> None:
    with tracker.run("arm") as run, pytest.raises(UserError, match="cannot name a registered model; write at most 60"):
        run.register(checkpoint, name, step=1, tags={}, metrics={})
    for reference in (f"{name}/1", f"thaw@{name}", f"models:/{name}@best"):
        with pytest.raises(UserError, match=r"names no registered model; write NAME/VERSION or NAME@ALIAS"):
            tracker.registry.download(reference)


def test_bad_aliases_and_folders_are_refused(tracker: Tracker, version: Version, tmp_path: Path) -> None:
    for alias in ("latest", "v1"):
        with pytest.raises(UserError, match=f"'{alias}' cannot be an alias of thaw-skills: "):
            tracker.registry.set_alias("thaw-skills", alias, version.version)
    with pytest.raises(UserError, match="'q=1' cannot name an alias of thaw-skills; write at most 60 letters"):
        tracker.registry.set_alias("thaw-skills", "q=1", version.version)
    with pytest.raises(UserError, match="no thaw-skills/7"):
        tracker.registry.set_alias("thaw-skills", "best", 7)
    with tracker.run("arm") as run, pytest.raises(UserError, match="no checkpoint to register"):
        run.register(tmp_path / "missing", "thaw-skills", step=1, tags={}, metrics={})


def test_the_card_says_what_a_version_is(tracker: Tracker, version: Version) -> None:
    def described() -> str:
        return str(tracker.store.client.get_model_version("thaw-skills", "1").description)

    first = described()
    assert first.startswith("**garl-q0.75** on skills")
    assert "| validation | 30.0 |" in first
    assert f"- run: `{version.run_id}`" in first
    assert f"- weights (md5): `{version.tags['thaw.weights_md5']}`" in first
    tracker.registry.set_tags(version, {"metric.test/maj_at_16": "0.5", "metric.test/maj_at_16_low": "0.25",
                                        "metric.test/maj_at_16_high": "0.75"})  # fmt: skip
    assert "| test | 50.0 [25.0, 75.0] |" in described()


def test_an_evaluation_is_kept_with_its_version(tracker: Tracker, version: Version, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "samples.jsonl").write_text("{}\n")
    registry = tracker.registry
    with pytest.raises(UserError, match="thaw-skills/1 was not evaluated on 'test'; `thaw evaluate thaw-skills/1"):
        registry.evaluation(version, "test", tmp_path)
    evaluated = registry.add_evaluation(version, "test", folder, {"maj_at_16": 0.5}, "digest")
    assert evaluated == registry.find("thaw-skills/1")
    assert evaluated.metrics == {"validation/maj_at_16": 0.1 + 0.2, "test/maj_at_16": 0.5}
    assert tracker.store.client.get_run(version.run_id).data.metrics["test/maj_at_16"] == 0.5
    assert contents(registry.evaluation(evaluated, "test", tmp_path)) == contents(folder)

    (folder / "samples.jsonl").write_text("[]\n")
    again = registry.add_evaluation(evaluated, "test", folder, {"maj_at_16": 0.25}, "digest")
    assert again.metrics["test/maj_at_16"] == 0.25
    assert contents(registry.evaluation(again, "test", tmp_path)) == contents(folder)
    with pytest.raises(UserError, match="has figures of other examples under the name 'test'"):
        registry.add_evaluation(again, "test", folder, {"maj_at_16": 1.0}, "another digest")
    with pytest.raises(UserError, match="'a/b' cannot name a test set"):
        registry.add_evaluation(again, "a/b", folder, {}, "digest")
    shutil.rmtree(tracker.root / "mlartifacts" / "thaw" / version.run_id)
    with pytest.raises(UserError, match="the samples of thaw-skills/1 on 'test' are gone"):
        registry.evaluation(again, "test", tmp_path)


def test_weights_that_dvc_had_before_are_one_file_with_its_cache(
    tracker: Tracker, version: Version, checkpoint: Path, tmp_path: Path
) -> None:
    stored, cache = tracker.registry.download(version.reference) / "model.safetensors", tmp_path / "cache"
    md5 = dvc_md5(stored)
    (cache / md5[:2]).mkdir(parents=True)
    shutil.copy(stored, cache / md5[:2] / md5[2:])
    tracker.registry.share_files(version.run_id, cache)
    assert stored.samefile(checkpoint / "model.safetensors")  # a checkpoint that lies there still
    (checkpoint / "model.safetensors").unlink()  # as DVC does, which has other names for these weights
    tracker.registry.share_files(version.run_id, cache)
    assert stored.samefile(cache / md5[:2] / md5[2:])
    assert contents(tracker.registry.download(version.reference)).keys() == {*contents(checkpoint), "model.safetensors"}


def test_changed_files_are_not_taken_for_the_model(tracker: Tracker, version: Version) -> None:
    (tracker.registry.download(version.reference) / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"the files of thaw-skills/1 cannot be read .* their digest is"):
        tracker.registry.download(version.reference)


def test_lost_files_are_said_plainly(tracker: Tracker, version: Version) -> None:
    shutil.rmtree(tracker.registry.download(version.reference))
    with pytest.raises(UserError, match="the files of thaw-skills/1 cannot be read"):
        tracker.registry.download("thaw-skills/1")


WORKER = """
import json, sys
from pathlib import Path
from components.tracking.runs import connect

heavy = [name for name in ("torch", "transformers", "prefect", "dvc") if name in sys.modules]
root, checkpoint, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
tracker = connect(root)
sweep = tracker.sweep("skills", "digest")
with tracker.run(name, parent=sweep, params={"seed": name}) as run:
    made = []
    for step in range(2):
        run.metrics(step, {"loss": float(step)})
        made += [run.register(checkpoint, "thaw-skills", step=step, tags={}, metrics={"m": 1.0}).version]
        made += [run.register(checkpoint, "thaw-skills", step=step, tags={}, metrics={"m": 1.0}).version]
print(json.dumps({"sweep": sweep, "run": run.id, "made": made, "heavy": heavy}))
"""


@pytest.mark.slow
def test_four_processes_start_from_an_empty_folder_at_once(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    command = [sys.executable, "-c", WORKER, str(folder), str(checkpoint)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    workers = [
        subprocess.Popen([*command, f"arm-{index}"], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(4)
    ]
    results = [json.loads(worker.communicate(timeout=120)[0]) for worker in workers]
    assert len({result["sweep"] for result in results}) == 1
    assert all(result["made"][::2] == result["made"][1::2] for result in results)
    assert sorted(number for result in results for number in result["made"][::2]) == list(range(1, 9))
    assert all(result["heavy"] == [] for result in results), "importing the room must stay light"
    tracker = connect(folder)
    assert len(tracker.store.client.search_runs([tracker.store.experiment_id])) == 5
    for result in results:
        assert len(tracker.store.client.get_metric_history(result["run"], "loss")) == 2
    assert {version.run_id for version in tracker.registry.versions()} == {result["run"] for result in results}
