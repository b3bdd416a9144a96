"""What an MLflow store on this machine keeps for nobody: files of deleted runs, and models that no version names.

Models are MLflow's "logged models", the files of a checkpoint. One without a version is left where a version was
deleted, or where a run was killed while it registered one.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow.entities import LoggedModel, Run, RunStatus, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from components.tracking.registry import MODEL_TAG
from components.tracking.store import Store
from components.tracking.version_files import CHECKPOINT


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Unused:
    """Files and folders that nothing needs any more, and why.

    forget: to be called before they are removed, so that nobody finds what is half gone.
    """

    paths: list[Path]
    why: str
    forget: Callable[[], object] = _nothing


class Kept:
    """What a store has, as it is now; a run that goes on keeps all that is its own."""

    def __init__(self, store: Store) -> None:
        self._store, client = store, store.client
        # In this order: a run that had ended when it was looked at has made its versions, and no model came later.
        models = store.every(client.search_logged_models, [store.experiment_id])
        self._models: dict[str, LoggedModel] = {model.model_id: model for model in models}
        runs = store.every(client.search_runs, [store.experiment_id], run_view_type=ViewType.ALL)
        self._runs: dict[str, Run] = {run.info.run_id: run for run in runs}
        # Ids of runs and models, however a version says where its files are: by tag, or as a part of an address.
        self._named: set[str | None] = set()
        for version in store.every(client.search_model_versions, ""):
            self._named |= {version.run_id, version.tags.get(MODEL_TAG), *re.split("[/:]", version.source or "")}

    def needs(self, run_id: str) -> bool:
        """Whether a version names this run, or it goes on, or nothing is known of it."""
        return run_id not in self._runs or run_id in self._named or self._goes_on(run_id)

    def deleted(self, run_id: str) -> bool:
        """Whether somebody deleted this run, which can go on no more."""
        return run_id in self._runs and self._runs[run_id].info.lifecycle_stage == "deleted"

    def unused(self) -> Iterator[Unused]:
        """Files of this store on this machine that no version and no run needs; of other stores, nothing."""
        root = self._store.call(self._store.client.get_experiment, self._store.experiment_id).artifact_location
        if not is_local_uri(root):
            return
        for run_id, run in self._runs.items():
            if self.deleted(run_id) and not self.needs(run_id):
                folder = Path(local_file_uri_to_path(run.info.artifact_uri))
                yield from _there(Unused([folder], f"run {self._name(run_id)} was deleted"))
        for model_id, run_id in self._checkpoints().items():
            if model_id not in self._named and not self._goes_on(run_id):
                folder = Path(local_file_uri_to_path(root)) / "models" / model_id / "artifacts"
                why = f"a checkpoint of run {self._name(run_id)} without a version"
                yield from _there(Unused([folder], why, partial(self._forget, model_id)))

    def _checkpoints(self) -> dict[str, str]:
        """The run of every model that a run of ours has registered, or somebody has deleted."""
        made = (
            (output.model_id, run) for run in self._runs.values() if run.outputs for output in run.outputs.model_outputs
        )
        deleted = {model_id: run.info.run_id for model_id, run in made if model_id not in self._models}
        ours = (model for model in self._models.values() if model.model_type == CHECKPOINT)
        return deleted | {model.model_id: model.source_run_id or "" for model in ours}

    def _forget(self, model_id: str) -> None:
        with suppress(MlflowException):  # somebody has deleted it
            self._store.call(self._store.client.delete_logged_model, model_id)

    def _goes_on(self, run_id: str) -> bool:
        run = self._runs.get(run_id)
        return run is not None and not RunStatus.is_terminated(RunStatus.from_string(run.info.status))

    def _name(self, run_id: str) -> str:
        run = self._runs.get(run_id)
        return run.info.run_name or run_id if run else f"{run_id}, which is gone"


def _there(unused: Unused) -> Iterator[Unused]:
    if any(folder.is_dir() and any(folder.iterdir()) for folder in unused.paths):
        yield unused
