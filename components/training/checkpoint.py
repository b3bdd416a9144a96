"""What a run needs to go on after it was killed, written so that a half-written one is never read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from components.errors import UserError
from components.training.ranks import Ranks

BEGUN = "begun"


@dataclass
class RunState:
    """Where a run is. Random states are not part of it: every seed is derived from the run's seed and the step."""

    identity: dict[str, Any]  # what must be the same for the run to go on: settings, arm, seed, data, base model
    run_key: str = field(default_factory=lambda: uuid4().hex)  # by which its MLflow run is found before the id is known
    step: int = 0  # updates done
    best_step: int = 0
    best_score: float = -1.0  # validation maj@k of the best step, a fraction of 1
    mlflow_run_id: str | None = None
    wall_seconds: float = 0.0
    ended: bool = False  # before its time, for it collapsed
    curves: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)  # step to registered model version
    # By step of validation: `right`, 1 or 0, and `log_p` of every problem, None for log 0. A race decides by them.
    validated: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    # By step of the first and of the last validation: rollouts of a few problems as text (see shown.py).
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    # Rollouts of the next step, by place, where they were sampled a step ahead, from weights that are gone.
    ahead: list[list[dict[str, Any]]] = field(default_factory=list)

    def kept(self, keep: int | None) -> set[int]:
        """The steps whose checkpoints are kept: the last ones and the best; all where `keep` is None."""
        steps = sorted(map(int, self.versions))
        last = steps[-(keep or len(steps)) :]
        return {*last, self.best_step}


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder that appears under its name only when it is complete."""
    partial = _partial(folder)
    _begin(partial)
    write(partial)
    _publish(partial, folder)


def save_state(root: Path, state: RunState, save_trainer: Callable[[Path], object]) -> None:
    """Write root/step-N and then remove the states before it. Every process has to; the first one writes `state`."""
    ranks, folder = Ranks(), root / f"step-{state.step}"
    partial = _partial(folder)
    if ranks.first:
        _begin(partial)
    ranks.wait()
    save_trainer(partial)
    ranks.wait()
    if ranks.first:
        (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
        _publish(partial, folder)
        for older in root.iterdir():
            if older != folder:
                shutil.rmtree(older)
    ranks.wait()


def save_begun(root: Path, state: RunState) -> None:
    """Write down that a run has begun, and its MLflow run; the first `save_state` takes its place."""
    write_folder(
        root / BEGUN, lambda partial: (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    )


def begun_state(root: Path, identity: dict[str, Any]) -> RunState:
    """That of a run without `find_state`; killed once before, it still has the same MLflow run."""
    path = root / BEGUN / "state.json"
    if path.is_file():
        state = RunState(**json.loads(path.read_text(encoding="utf-8")))
        if state.identity == identity:
            return state
    return RunState(identity)


def forget(root: Path, identity: dict[str, Any]) -> None:
    """Remove what a run left that has ended; the state of another run, which may go on, is kept."""
    for file in root.glob("*/state.json"):
        complete = file.parent.suffix != ".partial"
        if complete and json.loads(file.read_text(encoding="utf-8"))["identity"] == identity:
            shutil.rmtree(root)
            return


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _begin(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _publish(partial: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def find_state(root: Path) -> Path | None:
    """The folder of the latest complete state, if there is one."""
    complete = [path for path in root.glob("step-*") if path.suffix != ".partial"]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load_state(folder: Path, identity: dict[str, Any]) -> RunState:
    """Read a state and make sure that it belongs to the run that wants to go on.

    Raises:
        UserError: a run of other settings, other data or another base model wrote it; the differences are named.
    """
    state = RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    refuse_other(state.identity, identity, folder)
    return state


def refuse_other(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raise a UserError that names every difference between two runs' identities, if there is one."""
    before, now = _flat(found), _flat(wanted)
    differences = [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise UserError(
            f"{folder} belongs to another run ({'; '.join(differences)}); take another --out or delete that folder."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
