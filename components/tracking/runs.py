"""Runs: what was tried, with which settings and data, and how it went.

tracker = connect(root)
sweep = tracker.sweep("skills", settings.digest())
with tracker.run("garl-q0.75-seed0", parent=sweep, params=settings.model_dump()) as run:
    run.metrics(step, {"train/loss": loss})
    run.register(folder, "thaw-skills", step=step, tags={"estimator": "garl"}, metrics={"validation/maj_at_16": 0.5})
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from components.addresses import shown
from components.errors import UserError
from components.tracking.card import DIRTY_TAG
from components.tracking.csv_text import csv_text
from components.tracking.lineage import LINEAGE, Lineage
from components.tracking.metric_writer import MetricWriter
from components.tracking.registry import Registry
from components.tracking.store import Store, open_store, quoted
from components.tracking.trouble import first_line
from components.tracking.version import Version

SWEEP_TAG = "thaw.sweep"
KEY_TAG = "thaw.key"
METRIC_NAME = re.compile(r"[\w/.\- ]+")


def connect(
    root: Path,
    *,
    timeout: float | None = None,
    patience: float = 300.0,
    make: bool = True,
    store: Store | None = None,
) -> "Tracker":
    """Open the store of the project in the folder `root`; see `open_store` for where that is and for the options.

    store: the same one, where it is open already.

    Raises:
        UserError: no server answers, or the store cannot be used.
        NothingYet: there is no store, and none is to be made.
    """
    store = store or open_store(root, timeout=timeout, patience=patience, make=make)
    return Tracker(root, Path.cwd() / "dvc.lock", store, Registry(store))


@dataclass(frozen=True)
class Tracker:
    """The runs and, in `registry`, the registered models of a project.

    lock: of the build that the runs belong to; it need not exist.
    """

    root: Path
    lock: Path
    store: Store
    registry: Registry

    def sweep(self, name: str, digest: str) -> str:
        """The id of the run that groups the arms of a sweep.

        digest: of the sweep's settings. Whoever starts an arm with the same ones (by hand, DVC or a flow, also at the
            same moment) gets the same run. It is a heading and no process, and counts as finished from the start.
        """
        with self.store.lock:
            if sweeps := self._tagged(SWEEP_TAG, digest):
                return sweeps[0]
            client, call = self.store.client, self.store.call
            made = call(
                client.create_run, self.store.experiment_id, run_name=name, tags={SWEEP_TAG: digest}
            ).info.run_id
            call(client.update_run, made, "FINISHED")
            first, *others = self._tagged(SWEEP_TAG, digest)
            if made in others:  # another machine, which the lock does not bind, was first
                call(client.delete_run, made)
            return first

    def publish(self, run_id: str, report: Path, lock: Path) -> None:
        """Keep a sweep's report with its run, and the dvc.lock that it ended with."""
        client, call = self.store.client, self.store.call
        call(client.log_artifacts, run_id, str(report), "report")
        lineage = Lineage.found(self.root, lock)
        for name, text in lineage.files.items():
            call(client.log_text, run_id, text, f"{LINEAGE}/{name}")
        for key, value in lineage.tags.items():
            call(client.set_tag, run_id, key, value)

    def link(self, run_id: str) -> str | None:
        """The page of a run, where a server shows one."""
        if not self.store.uri.startswith(("http://", "https://")):
            return None
        return f"{shown(self.store.uri).rstrip('/')}/#/experiments/{self.store.experiment_id}/runs/{run_id}"

    def run(
        self,
        name: str,
        *,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume: str | None = None,
        key: str | None = None,
    ) -> "Run":
        """Start a run, or go on with the run whose id is `resume`, or that was started with this key, if there is one.

        A resumed run logs the steps behind its checkpoint once more; MLflow keeps both values of such a step, and its
        charts draw the later one over the earlier.

        key: of whoever starts it, written down beforehand: killed at any moment, it finds the run that it has started.
        params: nested as settings are; logged flat, with dots (`train.steps`). MLflow cuts values at 6,000 characters.

        Raises:
            UserError: there is no such run to resume, or it was started with other parameters.
        """
        client, call = self.store.client, self.store.call
        if resume is None and key is not None:
            resume = next(iter(self._tagged(KEY_TAG, key)), None)
        if resume is None:
            made_by = {} if key is None else {KEY_TAG: key}
            run_id = call(client.create_run, self.store.experiment_id, run_name=name, tags=made_by).info.run_id
        else:
            run_id = self._reopen(resume)
        lineage = Lineage.found(self.root, self.lock)
        origin = lineage.tags | ({} if parent is None else {MLFLOW_PARENT_RUN_ID: parent})
        all_tags = {**(tags or {}), **origin}
        try:
            call(
                client.log_batch,
                run_id,
                params=[Param(key, str(value)) for key, value in flat(params or {}).items()],
                tags=[RunTag(key, value) for key, value in all_tags.items()],
            )
        except MlflowException as error:
            if resume is None or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"run {resume} cannot be resumed with other settings: {first_line(error)}") from error
        for name, text in lineage.files.items():
            call(client.log_text, run_id, text, f"{LINEAGE}/{name}")
        return Run(run_id, origin, self.store, self.registry)

    def _reopen(self, run_id: str) -> str:
        try:
            run = self.store.call(self.store.client.get_run, run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(
                f"MLflow at {shown(self.store.uri)} has no run {run_id} to resume; start a new one."
            ) from error
        if run.info.lifecycle_stage != "active":
            raise UserError(f"run {run_id} was deleted; restore it with `mlflow runs restore --run-id {run_id}`.")
        self.store.call(self.store.client.update_run, run_id, "RUNNING")
        return run_id

    def _tagged(self, tag: str, value: str) -> list[str]:
        runs = self.store.call(
            self.store.client.search_runs,
            [self.store.experiment_id],
            f"tags.`{tag}` = {quoted(value)}",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
        return [run.info.run_id for run in runs]


class Run:
    """A run that is going on; a context manager that ends it as FINISHED, FAILED or, interrupted, KILLED.

    A process that is killed outright loses the metrics of its last few seconds and leaves the run RUNNING, until it is
    resumed.
    """

    def __init__(self, run_id: str, origin: Mapping[str, str], store: Store, registry: Registry):
        self.id = run_id
        self._origin = origin  # what it is made from, for the versions it registers
        self._store = store
        self._registry = registry
        self._writer = MetricWriter(lambda batch: store.client.log_batch(run_id, metrics=batch))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of one step, without waiting for the store.

        They are sent every few seconds, from a thread of their own, and kept while the store is away.

        Raises:
            ValueError: MLflow does not take such a name; `maj@16` is written `maj_at_16`.
            UserError: the store refused earlier figures, as it does when somebody deleted the run.
        """
        for name in values:
            if not METRIC_NAME.fullmatch(name):
                raise ValueError(f"metric '{name}': MLflow takes letters, digits and _ - . / alone")
        if self._writer.refusal:
            raise self._refused(self._writer.refusal)
        now = int(time.time() * 1000)
        self._writer.put([Metric(name, float(value), now, step) for name, value in values.items()])

    def dataset(self, name: str, source: str, digest: str, context: str = "training") -> None:
        """Note what the run read: a path or URL, and a digest of at most 36 characters, such as the MD5 of DVC."""
        dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
        entry = DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        with self._store.lock:  # of runs that note the same data at the same moment, MLflow would refuse all but one
            try:
                self._store.call(self._store.client.log_inputs, self.id, [entry])
            except MlflowException as error:
                if "unique constraint" not in str(error).lower():
                    raise
                # Another machine, which the lock does not bind, was first: its entry is there now.
                self._store.call(self._store.client.log_inputs, self.id, [entry])

    @property
    def commit(self) -> str | None:
        """The code's commit, and whether the code had changed since; None outside a repository."""
        commit = self._origin.get(MLFLOW_GIT_COMMIT)
        return f"{commit}, with changes" if commit and self._origin.get(DIRTY_TAG) == "true" else commit

    def tag(self, key: str, value: str) -> None:
        """Note something about the run; a second value of a key takes the place of the first."""
        self._store.call(self._store.client.set_tag, self.id, key, value)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or all files of a folder, with the run, in the artifact folder `folder` or on top."""
        client, call = self._store.client, self._store.call
        if path.is_dir():
            call(client.log_artifacts, self.id, str(path), folder)
        else:
            call(client.log_artifact, self.id, str(path), folder)

    def table(self, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep columns of equal length with the run as `name`.csv, which the UI shows as a table."""
        self._store.call(self._store.client.log_text, self.id, csv_text(columns), f"{name}.csv")

    def register(
        self, folder: Path, name: str, *, step: int, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> Version:
        """Make a checkpoint a version of the registered model `name`; see `Registry.register`."""
        return self._registry.register(
            folder, name, run_id=self.id, step=step, tags=tags, metrics=metrics, lineage=self._origin
        )

    def flush(self, limit: float = 5.0) -> None:
        """Wait until the store has all metrics, but at most `limit` seconds: what is left is sent later.

        Called before a checkpoint is written, so that a run that is killed behind it has lost no metric of it.
        """
        self._writer.flush(limit)

    def finish(self, status: str = "FINISHED") -> None:
        """Send the metrics that are left and end the run as FINISHED, FAILED or KILLED.

        Raises:
            UserError: the store was away for the store's `patience`, or refused metrics.
        """
        left = self._writer.close(self._store.patience)
        if self._writer.refusal:
            raise self._refused(self._writer.refusal)
        if left:
            raise UserError(
                f"MLflow at {shown(self._store.uri)} did not answer for {self._store.patience:g} seconds;"
                f" the last {left} metric values of run {self.id} are lost. Once it is back, resume."
            )
        self._store.call(self._store.client.set_terminated, self.id, status)

    def _refused(self, error: Exception) -> UserError:
        return UserError(
            f"MLflow at {shown(self._store.uri)} refuses the metrics of run {self.id}: {first_line(error)}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return self.finish()
        try:
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        except UserError as second:
            error.add_note(str(second))  # what went wrong first matters more


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under names with dots: {"train": {"steps": 60}} becomes {"train.steps": 60}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        else:
            result[key] = value
    return result
