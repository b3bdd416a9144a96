"""What a run is made from, noted when it starts: the commit, the changes since, and the dvc.lock it finds."""

import hashlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from components.tracking.card import DIRTY_TAG, LOCK_TAG

LINEAGE = "lineage"  # the folder of these files among a run's artifacts
# A build writes its own records while it runs; they are no change of the code it is made with.
NOT_CODE = (":(exclude,glob)**/dvc.lock", ":(exclude)experiments")


@dataclass(frozen=True)
class Lineage:
    """tags: of the run and the versions it registers. files: of the run, by name."""

    tags: dict[str, str]
    files: dict[str, str]

    @classmethod
    def found(cls, root: Path, lock: Path) -> "Lineage":
        """As things are now in the project's folder `root`: nothing of git outside a repository, nor of a lock that is
        not there."""
        tags, files = {}, {}
        commit = git(root, "rev-parse", "HEAD")
        changes = git(root, "status", "--porcelain", "--", ".", *NOT_CODE)
        if commit is not None and changes is not None:
            tags |= {MLFLOW_GIT_COMMIT: commit.strip(), DIRTY_TAG: "true" if changes else "false"}
            if changes and (difference := git(root, "diff", "HEAD", "--", ".", *NOT_CODE)):
                files["changes.diff"] = difference
        if lock.is_file():
            text = _settled(lock)
            tags[LOCK_TAG] = hashlib.md5(text.encode()).hexdigest()
            files["dvc.lock"] = text
        return cls(tags, files)


def _settled(path: Path) -> str:
    """The text of a file that another process may be writing at this moment."""
    before, text = None, path.read_text(encoding="utf-8")
    while text != before:
        time.sleep(0.05)
        before, text = text, path.read_text(encoding="utf-8")
    return text


def git(root: Path, *arguments: str) -> str | None:
    """What git says of a folder; None where it refuses, or there is no git."""
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
