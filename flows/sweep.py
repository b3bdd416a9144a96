"""The flows: one arm from data to figures, and the whole sweep with its report."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture, wait

from components.config import Arm, Settings, load_settings
from components.errors import UserError
from tasks.stage import Slots, StageFailed, run_stage


@flow(name="post_train", flow_run_name="{arm}-seed{seed}")
def post_train(arm: str, seed: int = 0, folder: Path = Path()) -> None:
    """Train one arm of a build's params.yaml with one seed, from raw data to held-out figures."""
    settings = load_settings(folder / "params.yaml")
    name = Arm.parse(arm).name
    if name not in settings.arm_names or seed not in settings.seeds:
        raise UserError(f"{folder / 'params.yaml'} has no arm {name} with seed {seed}; add them to arms and seeds.")
    with Slots(1) as slots:
        for stage in ("prepare", "base", f"train@{name}-{seed}", f"evaluate@{name}-{seed}"):
            run_stage(folder, stage, slots)


@flow(name="q_sweep")
def q_sweep(folder: Path = Path()) -> None:
    """Train and evaluate every arm with every seed, and report; only what is stale is run.

    folder: the build, with params.yaml and dvc.yaml: the project, or one of its experiments.

    An arm that fails does not stop the others; the flow fails at the end and names it.
    """
    settings = load_settings(folder / "params.yaml")
    runs = [f"{arm}-{seed}" for seed in settings.seeds for arm in settings.arm_names]
    with Slots(settings.sweep.parallel) as slots:
        run_stage(folder, "prepare", slots)
        run_stage(folder, "base", slots)
        # All of training before any evaluation: a waiting evaluation must not take a thread from an arm.
        trained = {run: run_stage.submit(folder, f"train@{run}", slots) for run in runs}
        others = [run_stage.submit(folder, "probe", slots)]
        others += [run_stage.submit(folder, f"evaluate@{run}", slots, wait_for=[done]) for run, done in trained.items()]
        _raise_failures([*trained.values(), *others])
        run_stage(folder, "report", slots)
    _publish(folder, settings)


def _raise_failures(futures: list[PrefectFuture[str]]) -> None:
    """Wait for all of them, then raise what went wrong, if anything did."""
    wait(futures)
    # An evaluation whose arm failed has not ended, since it never began.
    ended = [future.result(raise_on_failure=False) for future in futures if future.state.is_final()]
    errors = [error for error in ended if isinstance(error, Exception)]
    told = [error for error in errors if isinstance(error, (UserError, StageFailed))]
    for error in told[1:]:
        get_run_logger().error("%s", error)
    for error in told or errors:
        raise error


def _publish(folder: Path, settings: Settings) -> None:
    """Show the results where the flow run is shown."""
    from components.report.results import collect

    results = collect(folder / "build", settings.arm_names, settings.seeds)
    create_table_artifact(table=results.rows(), key="sweep-results", description="Held-out figures, as fractions of 1")
    create_markdown_artifact(
        f"The report: `{(folder / 'build/report/index.html').resolve()}`",
        key="sweep-report",
        description="The sweep's page",
    )
