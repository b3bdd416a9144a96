"""A race's decisions: taken from what the runs' validations say, and written where DVC and every command read them."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.config import Settings
from components.errors import UserError
from components.race import Standing, Validated, decide

Stopped = dict[str, dict[str, int | str]]  # as params.yaml has it under race.stopped


@task(task_run_name="rung {rung}", cache_policy=NO_CACHE)
def stop_arms(folder: Path, settings: Settings, arms: Sequence[str], rung: int, before: int | None) -> Stopped:
    """Which of the arms stop at a rung, to which all of them were trained; before: the rung before.

    Raises:
        UserError: a run was not validated at the rung.
    """
    logger, train = get_run_logger(), folder / "build" / "train"

    def at(arm: str, step: int) -> list[Validated]:
        return [validated(train / arm / str(seed), step) for seed in settings.seeds]

    standings = [Standing.of(arm, at(arm, rung), None if before is None else at(arm, before)) for arm in arms]
    stops = decide(standings, keep=settings.race.keep, error=settings.race.error)
    for arm in arms:
        logger.info("%s %s", arm, f"stops at step {rung}: {stops[arm]}" if arm in stops else "goes on")
    return {arm: {"step": rung, "reason": reason} for arm, reason in stops.items()}


def record_race(folder: Path, stopped: Stopped) -> None:
    """Write the decisions of all rungs into the folder's params.yaml, and leave the rest of it as it is."""
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if content["race"]["stopped"] != stopped:
        content["race"]["stopped"] = stopped
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def validated(run: Path, step: int) -> Validated:
    """What a run's validation at a step said of every problem, from its state or, if it has ended, from its record.

    Raises:
        UserError: it was not validated by then.
    """
    from components.training.checkpoint import find_state

    state = find_state(run / "state")
    for file in (run / "train.json", *([state / "state.json"] if state else [])):
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))["validated"]
            if steps := [number for number in map(int, found) if number <= step]:
                return found[str(max(steps))]  # an earlier one of a run that ended before
    raise UserError(f"{run} was not validated by step {step}; run the sweep again, or delete that folder.")
