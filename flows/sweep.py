"""The flows: what precedes training, one arm from data to figures, a whole sweep with its report, sweeps over ranges.

Each of them brings DVC stages up to date and runs what is stale, nothing else; run again after a failure it goes on.
`params` and `changes` say which build is meant: params.yaml as it is means the project's own, anything else an
experiment below experiments/, by `name` or by its settings.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run

from components.config import Arm, ArmName, Settings, check_race, load_settings
from components.errors import UserError
from components.job import JOBS, working_on
from components.names import as_folder
from flows.options import PARAMS
from flows.parameters import Changes
from tasks.build import Build
from tasks.lost_runs import NOTED
from tasks.process import FlowEnded, Slots
from tasks.race import record_race, stop_arms
from tasks.stage import StageFailed, flow_log, run_stage
from tasks.workspace import open_workspace, project_root

SAME = Changes()


@flow(name="prepare", **NOTED)
def prepare(params: Path = PARAMS, changes: Changes = SAME, name: str | None = None) -> None:
    """Make what all arms share: the data, the base model, and the probe of how often it is right."""
    folder, settings = _open(params, changes, name)
    stages = ("prepare", "base", "probe")
    with _at_work("prepare", folder, stages, 1) as slots:
        for stage in stages:
            _stage(settings)(folder, stage, slots, settings.sweep)


@flow(name="post_train", flow_run_name="{arm}-seed{seed}", **NOTED)
def post_train(
    arm: ArmName, seed: int = 0, params: Path = PARAMS, changes: Changes = SAME, name: str | None = None
) -> None:
    """Train one arm of a build with one seed, from raw data to held-out figures."""
    folder, settings = _open(params, changes, name)
    arm = Arm.parse(arm).name
    if arm not in settings.arm_names or seed not in settings.seeds:
        raise UserError(f"{folder / PARAMS} has no arm {arm} with seed {seed}; add them to arms and seeds.")
    stages = ("prepare", "base", f"train@{arm}-{seed}", f"evaluate@{arm}-{seed}")
    with _at_work(f"post_train {arm} seed {seed}", folder, stages, 1) as slots:
        for stage in stages:
            _stage(settings)(folder, stage, slots, settings.sweep)


@flow(name="q_sweep", **NOTED)
def q_sweep(params: Path = PARAMS, changes: Changes = SAME, name: str | None = None, race: bool = False) -> None:
    """Train and evaluate every arm with every seed, and report.

    race: stop arms on the way that stand still while others rise (components/race.py).

    An arm that fails does not stop the others; the flow fails at the end and names it.
    """
    folder, settings = _open(params, changes, name, race=race)
    runs = [f"{arm}-{seed}" for seed in settings.seeds for arm in settings.arm_names]
    stage, limits = _stage(settings), settings.sweep
    with _at_work("sweep", folder, _stages(runs), limits.parallel) as slots:
        stage(folder, "prepare", slots, limits)
        stage(folder, "base", slots, limits)
        if race:
            _race(folder, settings, slots)
        # All of training before any evaluation: a waiting evaluation must not take a slot from an arm.
        trained = {run: stage.submit(folder, f"train@{run}", slots, limits) for run in runs}
        others = [stage.submit(folder, "probe", slots, limits)]
        others += [
            stage.submit(folder, f"evaluate@{run}", slots, limits, wait_for=[done]) for run, done in trained.items()
        ]
        _raise_failures([*trained.values(), *others])
        stage(folder, "report", slots, limits)
    _publish(folder, settings)


@flow(name="backfill", **NOTED)
def backfill(
    arms: list[ArmName] | None = None,
    seeds: list[int] | None = None,
    over: dict[str, list[Any]] | None = None,
    params: Path = PARAMS,
    changes: Changes = SAME,
) -> None:
    """Sweep over ranges: one sweep for each combination of settings in `over`, with these arms and seeds in each.

    over: the values of each setting by its dotted name, {"task.start": ["cold", "warm"]}.

    All of them are checked before the first begins; a sweep that fails does not stop the others.
    """
    over = over or {}
    shared = changes & Changes(arms=arms, seeds=seeds)
    sweeps = [shared & Changes.read(dict(zip(over, values, strict=True))) for values in product(*over.values())]
    for one in sweeps:
        load_settings(params, one.overrides())
    states = [q_sweep(params, one, return_state=True) for one in sweeps]
    for state in states:
        state.result()


@contextmanager
def _at_work(what: str, folder: Path, stages: Sequence[str], parallel: int) -> Iterator[Slots]:
    """Slots for the stages of a flow, which keeps a file of how far it is, and a log."""
    if run := flow_run.name:
        what = f"{what} ({run})"
    name = as_folder(f"flow {what.partition(' (')[0]}")
    options = {"build": folder, "name": name, "stages": stages}
    with (
        Slots(parallel) as slots,
        flow_log(folder / JOBS / f"{name}.log"),
        working_on(what, folder, **options, parallel=slots.number),
    ):
        yield slots


def _stages(runs: Sequence[str]) -> list[str]:
    """All stages of a sweep, in the order in which their turns come."""
    trained, evaluated = ([f"{step}@{run}" for run in runs] for step in ("train", "evaluate"))
    return ["prepare", "base", *trained, "probe", *evaluated, "report"]


def _open(params: Path, changes: Changes, name: str | None, *, race: bool = False) -> tuple[Path, Settings]:
    """The folder of the build that is meant, and its settings."""
    overrides = changes.overrides()
    settings = load_settings(params, overrides)
    if race:
        check_race(settings)
    folder = open_workspace(settings, params, overrides, name, race=race)
    return folder, load_settings(folder / PARAMS)


def _race(folder: Path, settings: Settings, slots: Slots) -> None:
    """Train all arms to the first rung, those that go on to the next, and so on; leaves who stops in params.yaml.

    Nothing is recorded by DVC yet: the stages that follow find the runs where they paused, end those that stopped, and
    take the others to their end. A race that is run again decides the same, for the runs are the same.
    """
    stage, limits = _stage(settings), settings.sweep
    arms, stopped, before = settings.arm_names, {}, None
    for rung in settings.race.rungs:
        runs = [f"train@{arm}-{seed}" for seed in settings.seeds for arm in arms]
        _raise_failures([stage.submit(folder, run, slots, limits, until=rung) for run in runs])
        stopped |= stop_arms(folder, settings, arms, rung, before)
        arms, before = [arm for arm in arms if arm not in stopped], rung
        if len(arms) == 1:
            break
    record_race(folder, stopped)


def _stage(settings: Settings):
    return run_stage.with_options(retries=settings.sweep.retries)


def _raise_failures(futures: list[PrefectFuture[str]]) -> None:
    """Wait for all of them, then raise what went wrong, if anything did."""
    wait(futures)
    # An evaluation whose arm failed has not ended, since it never began.
    ended = [future.result(raise_on_failure=False) for future in futures if future.state.is_final()]
    errors = [error for error in ended if isinstance(error, Exception)]
    told = [error for error in errors if isinstance(error, (UserError, StageFailed, FlowEnded))]
    for error in told[1:]:
        get_run_logger().error("%s", error)
    for error in told or errors:
        raise error


def _publish(folder: Path, settings: Settings) -> None:
    """Show the results where people look: the report with the sweep's MLflow run, the figures in Prefect's page."""
    from components.report.reading import collect
    from components.report.verdict import headline
    from components.tracking.runs import connect

    report, cache, tracker = folder / "build/report", Build(folder).cache(), connect(project_root(folder))
    run_id = tracker.sweep(*settings.sweep_name())
    tracker.publish(run_id, report, folder / "dvc.lock")
    results = collect(folder / "build", settings.arm_names, settings.seeds)
    for run in (run for arm in results.arms for run in arm.runs):
        tracker.registry.share_files(run.mlflow_run_id, cache)
    told = headline(results)
    create_table_artifact(table=results.rows(), key="sweep-results", description="Held-out figures, as fractions of 1")
    create_markdown_artifact(
        f"# {told.title}\n\n{' '.join(told.sentences)}\n\nThe report: `{(report / 'index.html').resolve()}`, and under"
        f" report/ among the artifacts of MLflow run `{run_id}`.",
        key="sweep-report",
        description="The sweep's page",
    )
    if link := tracker.link(run_id):
        create_link_artifact(link, key="sweep-run", description="The sweep in MLflow")
