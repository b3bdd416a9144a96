"""From a registered version back to the data and the code it was made from, every step of the way looked at."""

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from posixpath import normpath
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

from components.data.digest import dvc_md5
from components.errors import UserError
from components.tracking.card import DIRTY_TAG, LOCK_TAG
from components.tracking.lineage import LINEAGE, git
from components.tracking.registry import Registry
from components.tracking.runs import flat
from components.tracking.version import WEIGHTS_TAG, Version
from tasks.workspace import EXPERIMENTS

LOCK = "dvc.lock"


class State(StrEnum):
    """What looking at a named thing has shown."""

    TRUE = "true"
    ABSENT = "not here"  # it may be true, but what it names cannot be looked at
    FALSE = "FALSE"


@dataclass(frozen=True)
class Fact:
    """A thing that a version names, what is there of it now, and a note for people."""

    name: str
    value: str
    state: State
    note: str


@dataclass(frozen=True)
class _Stage:
    """A stage in the dvc.lock of a build, with all paths from the project's folder."""

    name: str
    where: str  # of which dvc.lock
    deps: Mapping[str, str]  # md5 by path
    outs: Mapping[str, str]
    params: Mapping[str, Any]


def lineage(registry: Registry, reference: str, root: Path) -> list[Fact]:
    """What a version was made from, and whether it still is what the version says.

    root: the project, a git repository with DVC; what is missing there is told as such.

    Raises:
        UserError: there is no such version.
    """
    return list(_Trace(registry, registry.find(reference), root).facts())


class _Trace:
    def __init__(self, registry: Registry, version: Version, root: Path) -> None:
        self.registry, self.version, self.root = registry, version, root
        self.tags = version.tags
        self.run = self._run(version.run_id)
        self.lock = self._kept_lock()
        self.train = next(self._recorded(), None)

    def facts(self) -> Iterator[Fact]:
        yield self._weights()
        yield self._made_by("run", self.version.run_id)
        if parent := self.tags.get(MLFLOW_PARENT_RUN_ID):
            yield self._made_by("sweep", parent)
        yield self._commit()
        yield self._dvc_lock()
        yield self._data()
        if raw := self._raw():
            yield self._hashed("raw data", raw[1], [self.root / raw[0]])
        if base := self._param("base"):
            yield self._hashed("base model", base, [build / "build/base" for build in self._builds()])
        yield self._record()
        if self.train is not None:
            yield self._settings(self.train)
            yield self._code(self.train)

    def _weights(self) -> Fact:
        expected = self.tags.get(WEIGHTS_TAG)
        if expected is None:
            return Fact("weights", "unknown", State.ABSENT, "registered without a digest")
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.registry.download(self.version.reference, Path(folder) / "weights")  # which compares the digest
            except UserError as error:
                return Fact("weights", expected, State.FALSE, str(error))
        return Fact("weights", expected, State.TRUE, "the stored files have this md5")

    def _made_by(self, name: str, run_id: str) -> Fact:
        run = self._run(run_id)
        if run is None or run.info.lifecycle_stage != "active":
            return Fact(name, run_id or "unknown", State.ABSENT, "this MLflow store does not have it")
        return Fact(name, run_id, State.TRUE, str(run.info.run_name))

    def _commit(self) -> Fact:
        commit = self.tags.get(MLFLOW_GIT_COMMIT)
        if commit is None:
            return Fact("git commit", "unknown", State.ABSENT, "made outside a git repository")
        if git(self.root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
            return Fact("git commit", commit, State.ABSENT, "this clone does not have it: git fetch")
        if self.tags.get(DIRTY_TAG) == "true":
            return Fact("git commit", commit, State.TRUE, f"with changes, kept as {LINEAGE}/changes.diff with the run")
        return Fact("git commit", commit, State.TRUE, "nothing was changed since")

    def _dvc_lock(self) -> Fact:
        expected = self.tags.get(LOCK_TAG)
        if expected is None:
            return Fact(LOCK, "none", State.ABSENT, "there was none when the run began")
        if self.lock is None:
            return Fact(LOCK, expected, State.ABSENT, "its copy is gone from the run's artifacts")
        same = hashlib.md5(self.lock.encode()).hexdigest() == expected
        return Fact(LOCK, expected, State.TRUE if same else State.FALSE, f"kept as {LINEAGE}/{LOCK} with the run")

    def _data(self) -> Fact:
        expected = self.tags.get("data_md5", "")
        found = self._hashed("data", expected, [build / "build/data" for build in self._builds()])
        prepared = [md5 for stage in self._kept_stages() if stage.name == "prepare" for md5 in stage.outs.values()]
        if prepared and expected not in prepared:
            return Fact("data", expected, State.FALSE, f"that {LOCK} has other prepared data, {', '.join(prepared)}")
        return found

    def _raw(self) -> tuple[str, str] | None:
        """The path and md5 of the raw data, of which the kept dvc.lock says that `prepare` read it."""
        for stage in self._kept_stages():
            if stage.name == "prepare" and self.tags.get("data_md5") in stage.outs.values():
                wanted = self._param("settings.task.path") or ""
                return next(((path, md5) for path, md5 in stage.deps.items() if path.endswith(normpath(wanted))), None)
        return None

    def _hashed(self, name: str, md5: str, places: list[Path]) -> Fact:
        for place in places:
            if place.exists() and dvc_md5(place) == md5:
                return Fact(name, md5, State.TRUE, f"{place.relative_to(self.root)} has this md5")
        if (self.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).is_file():
            return Fact(name, md5, State.TRUE, "in DVC's cache")
        return Fact(name, md5 or "unknown", State.ABSENT, "neither built here nor in DVC's cache: dvc pull")

    def _record(self) -> Fact:
        if self.train is None:
            note = f"no {LOCK} here or in git's history has these weights; commit it after a build"
            return Fact("recorded as", "unknown", State.ABSENT, note)
        return Fact("recorded as", self.train.name, State.TRUE, f"in {self.train.where}")

    def _settings(self, train: _Stage) -> Fact:
        run = {name: self._param(f"settings.{name}") for name in train.params}
        differing = [name for name, value in train.params.items() if not _same(run[name], value)]
        if differing:
            return Fact("settings", f"{len(run)}", State.FALSE, f"run and {LOCK} differ in {', '.join(differing)}")
        return Fact("settings", f"{len(run)}", State.TRUE, f"equal in the run and in {LOCK}")

    def _code(self, train: _Stage) -> Fact:
        """Whether the commit holds the code whose md5s dvc.lock has."""
        commit = self.tags.get(MLFLOW_GIT_COMMIT, "")
        code = {path: md5 for path, md5 in train.deps.items() if "build/" not in path}
        with tempfile.TemporaryDirectory() as folder:
            if not _check_out(self.root, commit, list(code), Path(folder)):
                return Fact("code", commit or "unknown", State.ABSENT, "cannot be checked out here")
            differing = [path for path, md5 in code.items() if dvc_md5(Path(folder) / path) != md5]
        if not differing:
            return Fact("code", commit, State.TRUE, f"{len(code)} dependencies have the md5s of {LOCK}")
        changed = self.tags.get(DIRTY_TAG) == "true"
        note = f"{', '.join(differing)} had changes" if changed else f"{', '.join(differing)} is not what {LOCK} has"
        return Fact("code", commit, State.ABSENT if changed else State.FALSE, note)

    def _recorded(self) -> Iterator[_Stage]:
        """The stages that the run's final weights are an output of, in the builds here and then in git's history."""
        siblings = self.registry.versions(self.version.name)
        weights = {item.tags.get(WEIGHTS_TAG) for item in siblings if item.run_id == self.version.run_id} - {None}
        name = f"train@{self.version.arm}-{self.tags.get('seed')}"  # arms that learned nothing have equal weights
        for where, text in self._locks():
            stages = [stage for stage in _stages(text, where) if stage.name.startswith("train@")]
            found = [stage for stage in stages if weights & set(stage.outs.values())]
            yield from sorted(found, key=lambda stage: stage.name != name)

    def _locks(self) -> Iterator[tuple[str, str]]:
        for build in self._builds():
            path = build / LOCK
            yield str(path.relative_to(self.root)), path.read_text(encoding="utf-8")
        history = git(self.root, "log", "--all", "--format=@%H", "--name-only", "--", f":(glob)**/{LOCK}") or ""
        for entry in history.split("@")[1:]:
            commit, *paths = entry.split()
            for path in paths:
                if text := git(self.root, "show", f"{commit}:{path}"):
                    yield f"{path} of commit {commit}", text

    def _builds(self) -> list[Path]:
        """The folders with a dvc.lock: the project and its experiments."""
        return [
            path.parent for path in (self.root / LOCK, *self.root.glob(f"{EXPERIMENTS}/*/{LOCK}")) if path.is_file()
        ]

    def _kept_stages(self) -> list[_Stage]:
        return _stages(self.lock, LOCK) if self.lock else []

    def _kept_lock(self) -> str | None:
        if LOCK_TAG not in self.tags:
            return None
        client, call = self.registry.store.client, self.registry.store.call
        with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError):
            path = call(client.download_artifacts, self.version.run_id, f"{LINEAGE}/{LOCK}", folder)
            return Path(path).read_text(encoding="utf-8")
        return None

    def _run(self, run_id: str) -> Any:
        with suppress(MlflowException):
            return self.registry.store.call(self.registry.store.client.get_run, run_id)
        return None

    def _param(self, name: str) -> str | None:
        return None if self.run is None else self.run.data.params.get(name)


def _same(logged: str | None, value: object) -> bool:
    """Whether a setting that MLflow has as text is this one: 0 is 0.0."""
    with suppress(TypeError, ValueError):
        return float(logged or "") == float(str(value))
    return logged == str(value)


def _stages(text: str, where: str) -> list[_Stage]:
    """The stages of a dvc.lock that lies in the folder `where` names; none of a file that is no dvc.lock."""
    with suppress(yaml.YAMLError, AttributeError, KeyError, TypeError):
        folder = where.split()[0].removesuffix(LOCK)

        def hashes(entries: list[dict[str, str]]) -> dict[str, str]:
            return {normpath(folder + entry["path"]): entry["md5"] for entry in entries}

        return [
            _Stage(
                name=name,
                where=where,
                deps=hashes(stage.get("deps", [])),
                outs=hashes(stage.get("outs", [])),
                params={key: value for file in stage.get("params", {}).values() for key, value in flat(file).items()},
            )
            for name, stage in yaml.safe_load(text)["stages"].items()
        ]
    return []


def _check_out(root: Path, commit: str, paths: list[str], folder: Path) -> bool:
    """Write these files and folders as they were at a commit to `folder`; whether the commit has them."""
    import subprocess

    prefix = (git(root, "rev-parse", "--show-prefix") or "").strip()
    command = ["git", "-C", str(root), "archive", f"{commit}:{prefix}", "--", *paths]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode != 0:
        return False
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return True
