"""Where a build lives: the project itself, or a folder under experiments/ with settings of its own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from components.config import Settings
from components.errors import UserError
from components.names import as_folder, check_name
from components.settings_file import read_yaml

EXPERIMENTS = "experiments"


def project_root(start: Path | None = None) -> Path:
    """The folder with .dvc at or above `start` (the working directory); the working directory itself where none is.

    MLflow's default store lies there, so that a project's experiments share one registry.
    """
    start = (start or Path.cwd()).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / ".dvc").is_dir()), start)


def stage_note(folder: Path, stage: str) -> Path:
    """Where something is noted about a stage of the build in a folder while it runs; add a suffix."""
    root = project_root(folder)
    where = f"{folder.resolve().relative_to(root)}-{stage}".replace("/", "-")
    return root / ".dvc" / "tmp" / f"thaw-stage-{where}"


def open_workspace(
    settings: Settings, params: Path, overrides: Sequence[str], name: str | None, *, race: bool = False
) -> Path:
    """The folder whose build has these settings: that of a params.yaml beside a dvc.yaml, an experiment for any other.

    An experiment is a folder with params.yaml and dvc.yaml; opening it again finds its build as it was left. It
    shares DVC's cache, the data and the MLflow store with the project, and can be committed to git like any code. A
    race always has one, and what it decided there stands for as long as the other settings stay.

    Raises:
        UserError: this is no Thaw project, or `name` is no folder name.
    """
    if name is not None:
        check_name(name, f"a sweep, whose folder goes below {EXPERIMENTS}/")
    root = project_root()
    if not (root / "dvc.yaml").is_file():
        raise UserError(f"{root} has no dvc.yaml; a sweep runs inside a clone of the project.")
    beside = params.resolve().parent
    is_build = params.name == "params.yaml" and (beside / "dvc.yaml").is_file()
    if name is None and not overrides and is_build and not (race and beside == root):
        return beside
    folder = root / EXPERIMENTS / (name or ("race-" if race else "") + _name(settings, params))
    folder.mkdir(parents=True, exist_ok=True)
    content = settings.model_dump(mode="json")
    content["task"]["path"] = _reach(folder, Path(settings.task.path).resolve(), root)
    if (local := Path(settings.model.name)).is_dir():
        content["model"]["name"] = _reach(folder, local.resolve(), root)
    content["race"]["stopped"] = _stopped_before(folder / "params.yaml", content)
    _write_if_changed(folder / "params.yaml", yaml.safe_dump(content, sort_keys=False))
    pipeline = (root / "dvc.yaml").read_text(encoding="utf-8").replace("- code: .\n", "- code: ../..\n")
    _write_if_changed(folder / "dvc.yaml", pipeline)
    return folder


def finished_reports() -> dict[str, Path]:
    """The folders of the reports that are built, the project's own as `project`, the others as experiments/NAME."""
    root = project_root()
    folders = {"project": root} | {f"{EXPERIMENTS}/{one.name}": one for one in sorted(root.glob(f"{EXPERIMENTS}/*"))}
    reports = {name: folder / "build/report" for name, folder in folders.items()}
    return {name: report for name, report in reports.items() if (report / "results.json").is_file()}


def _stopped_before(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What an earlier race in a folder decided, if its other settings were those of `content`."""
    found = read_yaml(path) if path.is_file() else {}
    race = found.get("race")
    stopped = race.get("stopped", {}) if isinstance(race, dict) else {}
    same = found == content | {"race": content["race"] | {"stopped": stopped}}
    return stopped if same else content["race"]["stopped"]


def _name(settings: Settings, params: Path) -> str:
    stem = "" if params.stem == "params" else f"{as_folder(params.stem)}-"
    return f"{stem}{settings.task.name}-{settings.task.start}-{settings.digest()}"


def _reach(folder: Path, target: Path, root: Path) -> str:
    """A path that `folder` can use: relative inside the project, so that the project can move, else absolute."""
    return os.path.relpath(target, folder) if target.is_relative_to(root) else str(target)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
