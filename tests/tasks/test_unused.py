"""Which of a store's files nobody needs: those of deleted runs and of models without a version, and no others."""

from pathlib import Path

import pytest

from components.tracking.runs import Run, Tracker
from components.tracking.version import Version
from tasks.unused import Kept


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def registered(run: Run, checkpoint: Path, step: int) -> Version:
    return run.register(checkpoint, "thaw-skills", step=step, tags={}, metrics={})


def files_of(tracker: Tracker, version: Version) -> Path:
    return tracker.registry.download(version.reference)


def unused(tracker: Tracker) -> dict[Path, str]:
    return {path: item.why for item in Kept(tracker.store).unused() for path in item.paths}


def delete(tracker: Tracker, version: Version) -> None:
    tracker.store.client.delete_model_version(version.name, str(version.version))


def test_a_checkpoint_without_a_version_is_unused_once_its_run_has_ended(tracker: Tracker, checkpoint: Path):
    with tracker.run("arm") as run:
        versions = [registered(run, checkpoint, step) for step in (1, 2)]
        kept, files = (files_of(tracker, version) for version in versions)
        delete(tracker, versions[1])
        assert unused(tracker) == {}  # as while a checkpoint is registered, which has no version yet either
    assert unused(tracker) == {files: "a checkpoint of run arm without a version"}
    [item] = Kept(tracker.store).unused()
    item.forget()
    models = tracker.store.client.search_logged_models([tracker.store.experiment_id])
    assert [model.model_id for model in models] == [kept.parent.name]
    # The files of a model that was deleted are found all the same, here or where MLflow's page did it.
    assert list(unused(tracker)) == [files]


def test_a_model_that_others_have_logged_stays(tracker: Tracker, checkpoint: Path):
    client = tracker.store.client
    with tracker.run("arm") as run:
        model = client.create_logged_model(tracker.store.experiment_id, source_run_id=run.id, model_type="theirs")
        client.log_model_artifacts(model.model_id, str(checkpoint))
    assert unused(tracker) == {}
    client.delete_logged_model(model.model_id)
    assert unused(tracker) == {}  # nor is it known whose it was


def test_files_of_a_deleted_run_are_unused_unless_a_version_names_it(tracker: Tracker, checkpoint: Path):
    with tracker.run("without") as without:
        without.artifact(checkpoint / "config.json")
    with tracker.run("with") as one:
        one.artifact(checkpoint / "config.json")
        version = registered(one, checkpoint, 1)
    assert unused(tracker) == {}
    for run in (without, one):
        tracker.store.client.delete_run(run.id)
    [[folder, why]] = unused(tracker).items()
    assert folder.parent.name == without.id
    assert why == "run without was deleted"
    files = files_of(tracker, version)
    delete(tracker, version)
    assert set(unused(tracker)) == {folder, folder.parent.parent / one.id / "artifacts", files}


def test_a_run_is_needed_while_it_goes_on_or_a_version_names_it_or_nothing_is_known_of_it(
    tracker: Tracker, checkpoint: Path
):
    with tracker.run("arm") as run:
        assert Kept(tracker.store).needs(run.id)
        version = registered(run, checkpoint, 1)
    assert Kept(tracker.store).needs(run.id)
    delete(tracker, version)
    assert not Kept(tracker.store).needs(run.id)
    assert not Kept(tracker.store).deleted(run.id)
    assert Kept(tracker.store).needs("of another store")


@pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED"])
def test_a_deleted_run_that_goes_on_keeps_its_files(tracker: Tracker, checkpoint: Path, status: str):
    run = tracker.run("arm")
    run.artifact(checkpoint / "config.json")
    tracker.store.client.update_run(run.id, status)
    tracker.store.client.delete_run(run.id)
    assert unused(tracker) == {}
