"""DVC decides what is stale and records what was built; the stage's own command runs between the two, unlocked.

So several stages can run side by side, and a later `dvc repro` finds nothing to do. `dvc repro` itself would hold its
lock for as long as a stage runs.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from filelock import FileLock

from components.errors import UserError
from components.links import WEIGHTS
from tasks.workspace import project_root, stage_note

# It would announce every write of dvc.lock.
logging.getLogger("dvc").setLevel(logging.WARNING)


@dataclass(frozen=True)
class StaleStage:
    """A stage that has to be run, and what it was going to be built from."""

    name: str
    command: str
    inputs: dict[str, Any]


class Build:
    """The DVC stages of one folder; safe to use from several threads and processes.

    Raises:
        UserError: the working directory lies outside the folder's project.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        root = project_root(self.folder)
        if not Path.cwd().is_relative_to(root):  # where DVC's cache of runs takes its paths from
            raise UserError(f"DVC records the stages of {root} only from within; start this in that folder.")

    def cache(self) -> Path:
        """The folder of DVC's cache on this machine that is divided by md5."""
        with Repo(str(self.folder)) as repo:
            return Path(repo.cache.local.path)

    def stages(self) -> list[str]:
        """The names of all stages, those of a matrix one by one."""
        with self._stages() as load:
            return [stage.name for stage in load()]

    def begin(self, name: str) -> StaleStage | None:
        """What to run for a stage; None where its outputs are up to date, or are now, from DVC's cache of runs.

        As in `dvc repro`, the outputs of a stage that will run are removed first; not those of a run from the same
        inputs that was not recorded, for its flow died: the command goes on there, or finds that it had finished.

        Raises:
            UserError: a dependency of the stage does not exist, or dvc.yaml is broken.
        """
        with self._stages() as load:
            [stage] = load(name)
            missing = [str(dep) for dep in stage.deps if not dep.exists]
            if missing:
                raise UserError(
                    f"stage {name} needs {', '.join(missing)}, which does not exist; `dvc pull` or make it."
                )
            if not stage.changed():
                self._note(name).unlink(missing_ok=True)  # `dvc repro` may have built it meanwhile
                return None
            [now] = load(name)  # another one: DVC's cache of runs looks for what a stage has not saved yet
            now.save_deps()
            stale = StaleStage(name, now.cmd, _inputs(now))
            if self._begun(name) == stale.inputs:
                return stale
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                stage.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                self._note(name).write_text(json.dumps(stale.inputs, default=str), encoding="utf-8")
                return stale
            self._record(stage)
            return None

    def commit(self, built: StaleStage) -> None:
        """Record a stage whose command has ended well.

        Raises:
            UserError: something the stage depends on was changed while it ran, so nobody knows what it was built from.
        """
        with self._stages() as load:
            [stage] = load(built.name)
            stage.save_deps()
            now = _inputs(stage)
            changed = sorted(path for path in built.inputs | now if built.inputs.get(path) != now.get(path))
            if changed:
                raise UserError(
                    f"{', '.join(changed)} changed while {built.name} ran; its result was not recorded, run again."
                )
            self._record(stage)

    def _record(self, stage: Any) -> None:
        stage.save()
        stage.commit()
        if _shares(stage.repo):
            for file in (file for out in stage.outs for file in _files(Path(out.fs_path))):
                if file.suffix != WEIGHTS:  # people edit it, and DVC's cache must not change with it
                    stage.repo.cache.local.unprotect(str(file))
        stage.dump(update_pipeline=False)
        self._note(stage.name).unlink(missing_ok=True)

    def _begun(self, name: str) -> dict[str, Any] | None:
        """The inputs of a stage that was begun here and has not been recorded."""
        with suppress(FileNotFoundError, ValueError):  # half of a note is none
            return json.loads(self._note(name).read_text(encoding="utf-8"))
        return None

    def _note(self, name: str) -> Path:
        return Path(f"{stage_note(self.folder, name)}.begun")

    @contextmanager
    def _stages(self) -> Iterator[Any]:
        """A function that loads the stages of this folder, under DVC's lock; a fresh look at the files every time."""
        with locked(self.folder) as repo:
            if _shares(repo):
                repo.cache.local.cache_types = ["hardlink", "copy"]
            yield lambda name=None: list(repo.stage.load_all(str(self.folder / "dvc.yaml"), name))


@contextmanager
def locked(folder: Path) -> Iterator[Repo]:
    """DVC in a folder of a project, whose cache and records nobody else changes meanwhile.

    Raises:
        UserError: DVC cannot do what it is asked to.
    """
    with FileLock(project_root(folder) / ".dvc" / "tmp" / "thaw.lock"):
        try:
            with Repo(str(folder)) as repo, repo.lock:
                yield repo
        except DvcException as error:
            raise UserError(f"DVC in {folder}: {' '.join(str(error).split())}") from error


def _inputs(stage: Any) -> dict[str, Any]:
    return {str(dep): dep.hash_info.value if dep.hash_info else None for dep in stage.deps} | {"the command": stage.cmd}


def _shares(repo: Repo) -> bool:
    """Whether a build's weights are one file with DVC's cache; not where the user has said how DVC is to link."""
    return "type" not in repo.config["cache"]


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
