"""What a project's disk keeps for nobody, each with its reason; whatever cannot be proven to be unused stays.

`dvc gc` is not what finds the unused objects of DVC's cache: it drops what dvc.lock has of an arm that params.yaml no
longer names, and to look at a project's history it takes the better part of a second a commit.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from components.errors import UserError
from components.tracking.lineage import git
from components.tracking.registry import DOWNLOADING
from components.tracking.store import Store
from tasks.build import locked
from tasks.folder_lock import alone_in
from tasks.unused import Kept, Unused
from tasks.workspace import EXPERIMENTS

HALF_WRITTEN = ("final.partial", "checkpoints/*.partial", f"checkpoints/{DOWNLOADING}*", "state/*.partial")
MD5 = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")


@contextmanager
def garbage(root: Path, store: Store | None) -> Iterator[list[Unused]]:
    """What can be removed from a project; as long as this lasts, nobody begins to use it.

    root: the folder with .dvc. store: MLflow's; None where there is none yet.

    Raises:
        UserError: DVC is at work, MLflow does not answer, or nobody knows what git's history needs.
    """
    with locked(root) as repo, ExitStack() as stack:

        @cache
        def idle(run: Path) -> bool:
            return stack.enter_context(alone_in(run))

        kept, folders = store and Kept(store), list(_folders(root))
        runs = [folder for folder in folders if (folder / "checkpoints").is_dir() or (folder / "state").is_dir()]
        found = list(kept.unused()) if kept else []
        for run in runs:
            if (left := list(_left_by(run))) and idle(run):
                found += left
        for build in _abandoned(root):
            inside = [run for run in runs if run.is_relative_to(build)]
            if all(map(idle, inside)):
                found += _outputs(build, inside, kept)
        yield [*found, *_objects(repo.cache.local, root, folders)]


def remove(unused: Unused) -> None:
    """Remove it for ever."""
    unused.forget()
    for path in unused.paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def size(paths: Iterable[Path]) -> int:
    """The bytes of files and of all files in folders; one with several names counts once."""
    return sum(status.st_size for status, _ in _files(paths))


def freed(paths: Iterable[Path]) -> int:
    """The bytes that are free when all of this is removed: not those of files that have a name elsewhere."""
    return sum(status.st_size for status, names in _files(paths) if names >= status.st_nlink)


def _files(paths: Iterable[Path]) -> list[tuple[os.stat_result, int]]:
    """Every file below these paths, and how many of its names are there."""
    found: dict[tuple[int, int], os.stat_result] = {}
    names: Counter[tuple[int, int]] = Counter()
    for file in {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])}:
        if not file.is_dir():
            status = file.lstat()
            found[key := (status.st_dev, status.st_ino)] = status
            names[key] += 1
    return [(status, names[key]) for key, status in found.items()]


def _folders(root: Path) -> Iterator[Path]:
    """The folders of a project, but for hidden ones."""
    for folder, below, _ in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        yield Path(folder)


def _left_by(run: Path) -> Iterator[Unused]:
    """What a run has left behind that was killed while it wrote, or after its record and before its end."""
    for path in sorted(path for pattern in HALF_WRITTEN for path in run.glob(pattern)):
        yield Unused([path], "half-written by a process that is gone")
    # A state of another run is where that one goes on: DVC brought this record back from its cache.
    if (run / "train.json").is_file() and (run / "state").is_dir() and len(_made_by(run)) == 1:
        yield Unused([run / "state"], "where to resume a run that has ended")


def _made_by(run: Path) -> set[str]:
    """The MLflow runs that the record and the states in a run's folder name."""
    found: set[Any] = set()
    for file in (run / "train.json", *run.glob("state/*/state.json")):
        with suppress(OSError, ValueError, KeyError):
            found.add(json.loads(file.read_text(encoding="utf-8"))["mlflow_run_id"])
    return found - {None}


def _abandoned(root: Path) -> Iterator[Path]:
    """The builds of experiments whose dvc.yaml and dvc.lock are gone, and of which no commit has anything."""
    for build in root.glob(f"{EXPERIMENTS}/*/build") if _in_git(root) else ():
        place = build.parent.relative_to(root).as_posix()
        described = any((build.parent / name).exists() for name in ("dvc.yaml", "dvc.lock"))
        if not described and not _git(root, "log", "--all", "--max-count=1", "--format=%H", "--", place):
            yield build


def _outputs(build: Path, runs: Iterable[Path], kept: Kept | None) -> Iterator[Unused]:
    """All of an abandoned build but runs that may go on, or have a registered version, or of which nothing is known."""
    why = "of an experiment without dvc.yaml and dvc.lock, which no commit has"
    for path in sorted(path for path in build.iterdir() if path.name != "train"):
        yield Unused([path], why)
    for run in runs if kept else ():
        made_by = _made_by(run)
        ended = (run / "train.json").is_file() or all(map(kept.deleted, made_by))
        if made_by and ended and not any(map(kept.needs, made_by)):
            yield Unused([run], f"{why}; no version is of this run")


def _objects(cached: Any, root: Path, folders: Iterable[Path]) -> Iterator[Unused]:
    """The objects of DVC's cache that no dvc.lock and no .dvc file names, neither here nor in a commit."""
    if not Path(cached.path).is_relative_to(root):
        return  # other projects may use it
    named = {md5 for text in _records(root, folders) for md5 in MD5.findall(text)}
    for md5 in [md5 for md5 in named if md5.endswith(".dir")]:
        with suppress(FileNotFoundError):
            named |= {entry.value for _, _, entry in Tree.load(cached, HashInfo("md5", md5))}
    if unused := sorted(set(cached.all()) - named):
        why = "named by no dvc.lock and no .dvc file, here or in a commit"
        yield Unused([Path(cached.oid_to_path(md5)) for md5 in unused], why)


def _records(root: Path, folders: Iterable[Path]) -> Iterator[str]:
    """The text of every dvc.lock and .dvc file, of these folders and of git's history."""
    for folder in folders:
        for path in (folder / "dvc.lock", *folder.glob("*.dvc")):
            if path.is_file():
                yield path.read_text(encoding="utf-8")
    if _in_git(root):
        for line in _git(root, "rev-list", "--all", "--objects").splitlines():
            blob, _, path = line.partition(" ")
            if re.search(r"(^|/)(dvc\.lock|[^/]+\.dvc)$", path):
                yield _git(root, "cat-file", "blob", blob)


def _in_git(root: Path) -> bool:
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def _git(root: Path, *arguments: str) -> str:
    said = git(root, *arguments)
    if said is None:
        told = " ".join(arguments)
        raise UserError(f"nobody knows what the commits of {root} need, for git refuses: see `git {told}`.")
    return said
