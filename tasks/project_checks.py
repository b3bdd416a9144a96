"""Checks of a project for `thaw doctor`: settings, git, data and where it is from, what dead runs have left."""

import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.finding import Finding, fault, ok, warning, worst

if TYPE_CHECKING:
    from dvc.repo import Repo

    from components.config import Settings

ANSWER_SECONDS = 5.0
PARAMS = "params.yaml"
NOT_CODE = ":(exclude)experiments"  # which are written by sweeps, and committed by whoever wants to keep them


def project(root: Path) -> Finding:
    """Whether this is a folder that Thaw works in."""
    if lacking := [name for name in (".dvc", "dvc.yaml", PARAMS) if not (root / name).exists()]:
        return fault(f"{root} is no clone of Thaw: it has no {' and no '.join(lacking)}.", "cd CLONE")
    return ok(f"{root}.")


def settings(root: Path) -> Finding:
    """Whether params.yaml holds valid settings."""
    found = load(root)
    return ok(f"{PARAMS} is valid; arms: {len(found.arms)}, seeds: {len(found.seeds)}.")


def load(root: Path) -> "Settings":
    """The project's settings.

    Raises:
        UserError: they are not valid.
    """
    from components.config import load_settings

    return load_settings(root / PARAMS, [])


def git(root: Path) -> Finding:
    """Whether this is a git repository, in which everything that a stage depends on is committed."""
    if shutil.which("git") is None:
        return fault("git is not installed.", "apt-get install git")
    done = _git(root, "rev-parse", "--git-dir")
    if done.returncode != 0:
        told = " ".join(done.stderr.split()).removeprefix("fatal: ")[:200].rstrip(".")
        if "safe.directory" in told:
            return fault(f"git refuses {root}: {told}.", f"git config --global --add safe.directory {root}")
        if _without_git(root):
            return warning("no git repository, so no run can be traced back to its code.", "git init")
        return fault(f"{root} is no git repository, and DVC needs one.", "git init")
    done = _git(root, "status", "--porcelain", "-z", "--", *_dependencies(root), NOT_CODE)
    changed = [entry[3:] for entry in done.stdout.split("\0") if entry[2:3] == " "]
    if changed:
        told = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        return warning(
            f"not committed, though stages depend on it: {told}; runs made now lead back to no commit.",
            "git add --all && git commit",
        )
    return ok("everything that stages depend on is committed.")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


def _without_git(root: Path) -> bool:
    """Whether DVC was told to do without."""
    from dvc.config import Config

    return bool(Config(str(root / ".dvc"))["core"].get("no_scm"))


@contextmanager
def _repo(root: Path) -> "Iterator[Repo]":
    """DVC in the project.

    Raises:
        UserError: it refuses, as where a dvc.yaml or a .dvc file is damaged.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from components.errors import UserError

    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC: {' '.join(str(error).split()).rstrip('.')}.") from error


def _dependencies(root: Path) -> list[str]:
    """The files and folders that stages are made from, but for what other stages make."""
    with _repo(root) as repo:
        stages = repo.index.stages
        made = {out.fs_path for stage in stages for out in stage.outs}
        used = {dep.fs_path for stage in stages for dep in stage.deps} - made
    return sorted({*used, str(root / "dvc.yaml"), str(root / PARAMS)})


def data(root: Path) -> Finding:
    """Whether the files are there that .dvc files pin; those of the present task have to be."""
    task, findings = (root / load(root).task.path).resolve(), []
    with _repo(root) as repo:
        pinned = [(stage, out) for stage in repo.index.stages if stage.is_data_source for out in stage.outs]
        for stage, out in pinned:
            place, name = Path(out.fs_path), Path(out.fs_path).relative_to(root)
            trouble = fault if task.is_relative_to(place.resolve()) else warning
            pull = f"dvc pull {Path(stage.path_in_repo)}"
            if not place.exists():
                findings.append(trouble(f"{name} is not there.", pull))
            elif out.meta.size is not None and (size := _size(place)) != (out.meta.nfiles or 1, out.meta.size):
                told = f"{name} is not what {stage.path_in_repo} pins: {size[0]} files, {size[1]} bytes."
                findings.append(trouble(told, f"dvc checkout {stage.path_in_repo}"))
    if not task.exists() and not any(task.is_relative_to(Path(out.fs_path).resolve()) for _, out in pinned):
        findings.append(fault(f"task.path = {task} is not there.", "thaw data fetch TASK"))
    return worst(findings or [ok(f"{task} is there.")])


def _size(place: Path) -> tuple[int, int]:
    """How many files, and their bytes."""
    files = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
    return len(files), sum(path.stat().st_size for path in files)


def remotes(root: Path) -> Finding:
    """Whether DVC's remotes can be reached."""
    with _repo(root) as repo:
        names = list(repo.config["remote"])
        return worst([_remote(repo, name) for name in names] or [ok("DVC has no remote.")])


def _remote(repo: "Repo", name: str) -> Finding:
    from components.addresses import shown

    url = repo.config["remote"][name]["url"]
    where = f"DVC's remote {name}, {shown(url)},"
    change = f"dvc remote modify {name} url ..."
    try:
        files = repo.cloud.get_remote_odb(name=name).fs
        if files.protocol == "local":
            there = Path(url).is_dir()
            return ok(f"{name} is there.") if there else fault(f"{where} is not there.", f"mkdir -p {url}; {change}")
        if files.protocol in ("http", "https"):
            return _web_remote(repo.config["remote"][name], name, where, change)
        files.exists(url)
    except ImportError as error:
        scheme = url.partition(":")[0]
        return fault(f"{where} needs a package: {' '.join(str(error).split())}.", f"pip install dvc-{scheme}")
    except Exception as error:  # each kind of remote has its own
        told = shown(" ".join(str(error).split())[:200].rstrip("."))
        return fault(f"{where} does not answer, or refuses: {told}.", change)
    return ok(f"{name} answers.")


def _web_remote(config: dict[str, Any], name: str, where: str, change: str) -> Finding:
    """DVC itself takes a server that is gone for one that has nothing."""
    import requests

    user = (config["user"], config.get("password", "")) if "user" in config else None
    try:
        status = requests.get(config["url"], auth=user, timeout=ANSWER_SECONDS, stream=True).status_code
    except requests.RequestException as error:
        return fault(f"{where} does not answer ({type(error).__name__}).", change)
    if status in (401, 403):
        cure = f"dvc remote modify --local {name} user ...; dvc remote modify --local {name} password ..."
        return fault(f"{where} refuses the credentials ({status}).", cure)
    if status >= 500:
        return fault(f"{where} fails ({status}).", change)
    return ok(f"{name} answers.")


def leftovers(root: Path) -> Finding:
    """Whether killed runs have left locks or processes that stand in the way."""
    return worst([_locks(root / ".dvc" / "tmp" / "rwlock"), *_orphans(root / ".dvc" / "tmp")])


def _locks(path: Path) -> Finding:
    """What DVC's commands note of the files that they use. It forgets who is dead, but not whose number was reused."""
    import psutil

    remove = f"rm {path}"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        notes = [*held.get("write", {}).values(), *(note for many in held.get("read", {}).values() for note in many)]
        holders = {int(note["pid"]): str(note["cmd"]) for note in notes}
    except FileNotFoundError:
        return ok("no locks or processes of dead runs.")
    except (ValueError, KeyError, TypeError, AttributeError):
        return fault(f"{path} is damaged, and DVC refuses to work.", remove)
    findings = [ok("no locks or processes of dead runs.")]
    for pid, command in holders.items():
        try:
            if psutil.Process(pid).create_time() > path.stat().st_mtime + 1:
                told = f"process {pid} has the number of a `{command}` that was killed, for which DVC waits."
                findings.append(fault(told, remove))
        except psutil.NoSuchProcess:
            told = f"a killed `{command}` (process {pid}) holds files of DVC; its next command frees them."
            findings.append(warning(told, remove))
    return worst(findings)


def _orphans(folder: Path) -> list[Finding]:
    """Stages that run on though their flow is dead: their note is locked, the flow's lock beside it is not."""
    from filelock import FileLock, Timeout

    findings = []
    for note in [path for path in folder.glob("thaw-stage-*") if path.suffix != ".lock"]:
        with note.open() as text, suppress(Timeout), FileLock(f"{note}.lock", timeout=0):
            try:
                fcntl.flock(text, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                group, name = text.read(), note.name.removeprefix("thaw-stage-")
                told = f"stage {name} still runs, process group {group}, and its flow is dead; the next one ends it."
                findings.append(warning(told, f"kill -KILL -- -{group}"))
    return findings
