"""Runs: what was tried, with which settings and data, and how it went.

tracker = connect(root)
sweep = tracker.sweep("skills", settings.digest())
with tracker.run("garl-q0.75-seed0", parent=sweep, params=settings.model_dump()) as run:
    run.metrics(step, {"train/loss": loss})
    run.register(folder, "thaw-skills", step=step, tags={"estimator": "garl"}, metrics={"validation/maj_at_16": 0.5})
"""

import csv
import io
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from components.addresses import shown
from components.errors import UserError
from components.tracking.lineage import LINEAGE, Lineage
from components.tracking.registry import Registry
from components.tracking.store import LONGEST_PAUSE, Store, first_line, is_outage, open_store, quoted
from components.tracking.version import Version

SWEEP_TAG = "thaw.sweep"
FLUSH_SECONDS = 3.0  # how old a metric may get before it is sent
METRIC_NAME = re.compile(r"[\w/.\- ]+")
FORMULA = re.compile(r"\s*[=+\-@]|[\t\r\n]")  # https://owasp.org/www-community/attacks/CSV_Injection
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?", re.ASCII)


def connect(root: Path, *, timeout: float | None = None, patience: float = 300.0, make: bool = True) -> "Tracker":
    """Open the store of the project in the folder `root`; see `open_store` for where that is and for the options.

    Raises:
        UserError: no server answers, or the store cannot be used.
        NothingYet: there is no store, and none is to be made.
    """
    store = open_store(root, timeout=timeout, patience=patience, make=make)
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
            if sweeps := self._sweeps(digest):
                return sweeps[0]
            client, call = self.store.client, self.store.call
            made = call(
                client.create_run, self.store.experiment_id, run_name=name, tags={SWEEP_TAG: digest}
            ).info.run_id
            call(client.update_run, made, "FINISHED")
            first, *others = self._sweeps(digest)
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
    ) -> "Run":
        """Start a run, or go on with the run whose id is `resume`.

        A resumed run logs the steps behind its checkpoint once more; MLflow keeps both values of such a step, and its
        charts draw the later one over the earlier.

        params: nested as settings are; logged flat, with dots (`train.steps`). MLflow cuts values at 6,000 characters.

        Raises:
            UserError: there is no such run to resume, or it was started with other parameters.
        """
        client, call = self.store.client, self.store.call
        if resume is None:
            run_id = call(client.create_run, self.store.experiment_id, run_name=name).info.run_id
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

    def _sweeps(self, digest: str) -> list[str]:
        runs = self.store.call(
            self.store.client.search_runs,
            [self.store.experiment_id],
            f"tags.`{SWEEP_TAG}` = {quoted(digest)}",
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
        self._writer = _Writer(lambda batch: store.client.log_batch(run_id, metrics=batch))

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
        """Keep columns of equal length with the run as `name`.csv, which the UI shows as a table.

        A text that a spreadsheet would take for a formula gets an apostrophe in front, as people write one there.
        """
        text = io.StringIO()
        rows = csv.writer(text)  # its own line end; with another, Python leaves a \r in a cell without quotes
        rows.writerow(map(_cell, columns))
        rows.writerows(map(_cell, row) for row in zip(*columns.values(), strict=True))
        self._store.call(self._store.client.log_text, self.id, text.getvalue(), f"{name}.csv")

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


class _Writer:
    """Sends metrics from a thread of its own, so that a slow or absent store never holds up training."""

    def __init__(self, send: Callable[[list[Metric]], object]):
        self.refusal: Exception | None = None  # why the store will never take these metrics
        self._send = send
        self._pending: list[Metric] = []  # extended here, cut by the thread; both are atomic
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._hurry = threading.Event()  # do not wait for the next few seconds to pass
        self._thread = threading.Thread(target=self._work, name="mlflow-metrics", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        self._pending.extend(metrics)

    def flush(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        self._hurry.set()
        while self._pending and not self.refusal and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, limit: float) -> int:
        """Send what is left for at most `limit` seconds; returns how many values could not be sent."""
        self._closing.set()
        self._hurry.set()
        self._thread.join(limit)
        self._abandoned.set()
        return len(self._pending)

    def _work(self) -> None:
        closing = False
        while not closing:
            self._hurry.wait(FLUSH_SECONDS)
            self._hurry.clear()
            closing = self._closing.is_set()  # nothing is put after it
            while batch := self._pending[:MAX_METRICS_PER_BATCH]:
                if not self._delivered(batch):
                    return
                del self._pending[: len(batch)]

    def _delivered(self, batch: list[Metric]) -> bool:
        pause = 0.5
        while True:
            try:
                self._send(batch)
                return True
            except Exception as error:  # whatever it is: nobody hears of it in this thread
                if not is_outage(error):
                    self.refusal = error
                    return False
            if self._abandoned.wait(pause):
                return False
            pause = min(2 * pause, LONGEST_PAUSE)


def _cell(value: Any) -> Any:
    formula = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if formula else value


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under names with dots: {"train": {"steps": 60}} becomes {"train.steps": 60}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            result |= {f"{key}.{name}": inner for name, inner in flat(value).items()}
        else:
            result[key] = value
    return result
