"""Every checkpoint a version of a registered model, without a pickle: plain files in, the same plain files out.

MLflow asks for a "logged model" (the files, with parameters and metrics that can be searched) and, on top of it, a
version of a registered model (a number, tags, aliases): https://mlflow.org/docs/latest/ml/model-registry/

The files lie in MLflow's artifact store, where every machine finds them, also after `dvc gc`; their md5 is on the
version and compared whenever they are fetched. A build keeps some of them in DVC too, for its own stages (`train.keep`
says how many); on one disk the weights are one file under all their names, see `components/links.py`.
"""

import atexit
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from components.data.digest import dvc_md5
from components.errors import UserError
from components.links import check_model, copy_model
from components.names import PATTERN, RULE, check_name
from components.tracking.card import card
from components.tracking.store import Store, quoted
from components.tracking.trouble import first_line
from components.tracking.version import METRIC_TAG, STEP_TAG, WEIGHTS_TAG, Version, version_of
from components.tracking.version_files import files_of, log_model, share_with_cache

MODEL_TAG = "thaw.model_id"  # the open-source registry forgets which logged model a version was made from
EXAMPLES_TAG = "thaw.examples."  # of which examples the figures of a test set are
DOWNLOADING = ".download-"  # how the name of a folder begins that a version's files are being copied into
REFERENCE = re.compile(rf"(?:models:/)?(?P<name>{PATTERN})(?:/(?P<version>[0-9]+)|@(?P<alias>{PATTERN}))")


@dataclass(frozen=True)
class Registry:
    """The registered models of a store."""

    store: Store

    def register(
        self,
        folder: Path,
        name: str,
        *,
        run_id: str,
        step: int,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        lineage: Mapping[str, str] | None = None,
    ) -> Version:
        """Store the files of a folder and make them a version of the registered model `name`, with a card.

        A resumed run comes past the same steps again: what was registered under this name, run and step is returned
        as it is. The tags also become parameters of the logged model, so that the UI can filter and sort by them, and
        the metrics are logged at `step` for the run as well.

        lineage: more tags, which say what the version was made from; see `runs.Run`.

        Raises:
            UserError: the folder holds no files or reads others than its own, `name` is no name, or the store is away
                or refuses the files.
        """
        check_name(name, "a registered model")
        if not folder.is_dir() or not any(folder.iterdir()):
            raise UserError(f"there is no checkpoint to register in {folder}; it is missing or empty.")
        check_model(folder)
        if version := self._registered(name, run_id, step):
            return version
        model = log_model(self.store, folder, f"{name}-step-{step}", run_id, tags)
        figures = [
            Metric(key, value, model.creation_timestamp, step, model_id=model.model_id)
            for key, value in metrics.items()
        ]
        self.store.call(self.store.client.log_batch, run_id, metrics=figures)
        self.store.call(self.store.client.log_outputs, run_id, [LoggedModelOutput(model.model_id, step)])
        all_tags = {
            **tags,
            **(lineage or {}),
            WEIGHTS_TAG: dvc_md5(folder),
            STEP_TAG: str(step),
            MODEL_TAG: model.model_id,
            **{METRIC_TAG + key: repr(float(value)) for key, value in metrics.items()},
        }
        with self.store.lock:
            version = self.store.call(self._create_version, name, model, run_id, step, all_tags)
        self._describe(version)
        return version

    def add_evaluation(
        self, version: Version, test_set: str, folder: Path, figures: Mapping[str, float], examples: str
    ) -> Version:
        """Keep an evaluation with a version: the files of `folder` with its run, the figures as `test_set`/figure.

        examples: a digest of the examples, so that a test set's name means one set of examples for ever.

        Raises:
            UserError: as `check_test_set` does.
        """
        self.check_test_set(version, test_set, examples)
        client, call = self.store.client, self.store.call
        values = {f"{test_set}/{name}": float(value) for name, value in figures.items()}
        # The files first: a version that shows figures has the samples behind them.
        call(client.log_artifacts, version.run_id, str(folder), _evaluation_path(version, test_set))
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, version.step or 0) for name, value in values.items()]
        call(client.log_batch, version.run_id, metrics=metrics)
        tags = {METRIC_TAG + name: repr(value) for name, value in values.items()}
        return self.set_tags(version, tags | {EXAMPLES_TAG + test_set: examples})

    def check_test_set(self, version: Version, test_set: str, examples: str) -> None:
        """Whether `add_evaluation` would take these.

        Raises:
            UserError: the version has figures of other examples under this name, the name is none, or nobody knows
                which run made the version.
        """
        check_name(test_set, "a test set")
        if version.tags.get(EXAMPLES_TAG + test_set, examples) != examples:
            raise UserError(
                f"{version.reference} has figures of other examples under the name '{test_set}';"
                " choose another with --record."
            )
        if not version.run_id:
            raise UserError(f"{version.reference} was registered without a run, which would keep its evaluations.")

    def evaluation(self, version: Version, test_set: str, folder: Path) -> Path:
        """Fetch the files of an evaluation into `folder`.

        Raises:
            UserError: the version was not evaluated on this test set, or the files are gone.
        """
        if EXAMPLES_TAG + test_set not in version.tags:
            raise UserError(
                f"{version.reference} was not evaluated on '{test_set}';"
                f" `thaw evaluate {version.reference} --record {test_set}` does it."
            )
        path = _evaluation_path(version, test_set)
        try:
            return Path(self.store.call(self.store.client.download_artifacts, version.run_id, path, str(folder)))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"the samples of {version.reference} on '{test_set}' are gone: {first_line(error)}"
            ) from error

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> Version:
        """Put tags on a version, and write its card anew."""
        client, call = self.store.client, self.store.call
        for key, value in tags.items():
            call(client.set_model_version_tag, version.name, str(version.version), key, value)
        changed = self.find(version.reference)
        self._describe(changed)
        return changed

    def _describe(self, version: Version) -> None:
        self.store.call(
            self.store.client.update_model_version, version.name, str(version.version), description=card(version)
        )

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let `name@alias` mean this version, and no longer the one it meant before.

        Raises:
            UserError: there is no such version, the alias is no name, or MLflow refuses it: it takes no dots, and keeps
                "latest" and "v" with a number to itself.
        """
        check_name(alias, f"an alias of {name}")
        self.find(f"{name}/{version}")
        try:
            self.store.call(self.store.client.set_registered_model_alias, name, alias, str(version))
        except MlflowException as error:
            raise UserError(f"'{alias}' cannot be an alias of {name}: {first_line(error)}") from error

    def remove_alias(self, name: str, alias: str) -> None:
        """Let `name@alias` mean nothing, as it may already do."""
        self.store.call(self.store.client.delete_registered_model_alias, name, alias)

    def set_best(self, name: str, metric: str) -> None:
        """Let `name@best` mean the version with the highest value of `metric`; of equal ones the newest."""
        with self.store.lock:
            candidates = [version for version in self.versions(name) if metric in version.metrics]
            best = max(candidates, key=lambda version: (version.metrics[metric], version.version))
            if "best" not in best.aliases:
                self.set_alias(name, "best", best.version)

    def versions(self, name: str | None = None, tags: Mapping[str, str] | None = None) -> list[Version]:
        """The versions with these tags, of one registered model or of all, by name and number."""
        conditions = [f"name = {quoted(name)}"] if name is not None else []
        conditions += [f"tags.`{key}` = {quoted(value)}" for key, value in (tags or {}).items()]
        return self._search(" AND ".join(conditions))

    def find(self, reference: str) -> Version:
        """The version that `NAME/VERSION` or `NAME@ALIAS` means, with or without `models:/` in front.

        Raises:
            UserError: the reference has another form, or nothing is registered under it.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise UserError(
                f"'{reference[:200]}' names no registered model; write NAME/VERSION or NAME@ALIAS, where a name is"
                f" {RULE}."
            )
        versions = self.versions(match["name"])
        for version in versions:
            if str(version.version) == match["version"] or match["alias"] in version.aliases:
                return version
        if not versions:
            known = sorted({version.name for version in self.versions()})
            raise UserError(
                f"there is no registered model '{match['name']}'; there is {', '.join(known) or 'none at all yet'}."
            )
        aliases = "".join(f", @{alias}" for version in versions for alias in version.aliases)
        raise UserError(
            f"there is no {reference}; {match['name']} has the versions"
            f" {versions[0].version} to {versions[-1].version}{aliases}."
        )

    def download(self, reference: str, folder: Path | None = None) -> Path:
        """A local folder with the files of a version, ready for `from_pretrained`.

        reference: as for `find`.
        folder: where to put the files; missing or empty. Without it, a store on this machine gives its own folder,
            which is to be read only, and a server a new temporary one, which ends with this process.

        Raises:
            UserError: there is no such version, its files are gone, or the folder is in use.
        """
        version = self.find(reference)
        if folder is None:
            return files_of(self.store, version, _temporary())
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not empty; name a new folder for the files of {reference}.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Complete or absent: an interrupted download must not pass for a model.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=DOWNLOADING) as partial:
            copy_model(files_of(self.store, version, Path(partial)), Path(partial) / "complete")
            (Path(partial) / "complete").replace(folder)
        return folder

    def share_files(self, run_id: str, cache: Path) -> None:
        """Let a store on the same disk have one file with DVC's cache also for weights that the cache had before.

        Such are those of a run that learns nothing: all its checkpoints are the base model.

        cache: the folder of DVC's cache that is divided by md5.
        """
        for version in self._search(f"run_id = {quoted(run_id)}"):
            share_with_cache(self.store, version, cache)

    def _create_version(self, name: str, model: LoggedModel, run_id: str, step: int, tags: dict[str, str]) -> Version:
        # Looked up at every attempt: an answer that was lost on its way may have left the version behind.
        if version := self._registered(name, run_id, step):
            return version
        client = self.store.client
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The files' own address, not "models:/<id>": MLflow's SQL store looks the latter up in the tracking URI of the
        # process instead of its own.
        source = model.artifact_location
        return version_of(
            client.create_model_version(name, source, run_id, tags, await_creation_for=0, model_id=model.model_id), {}
        )

    def _registered(self, name: str, run_id: str, step: int) -> Version | None:
        found = self._search(f"name = {quoted(name)} AND run_id = {quoted(run_id)} AND tags.`{STEP_TAG}` = '{step}'")
        return found[0] if found else None

    def _search(self, filter_string: str) -> list[Version]:
        client, call = self.store.client, self.store.call
        found = self.store.every(client.search_model_versions, filter_string)
        # A search leaves the aliases out; the registered model knows them.
        aliases = {name: call(client.get_registered_model, name).aliases for name in {item.name for item in found}}
        versions = [version_of(item, aliases[item.name]) for item in found]
        return sorted(versions, key=lambda version: (version.name, version.version))


def _evaluation_path(version: Version, test_set: str) -> str:
    return f"evaluations/{version.name}-{version.version}/{test_set}"


def _temporary() -> Path:
    """A new folder that ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="thaw-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
