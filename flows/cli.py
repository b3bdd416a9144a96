"""The command line: the sweep, the servers, and every other command from where it is.

Heavy libraries are imported by the command that needs them, so that `thaw --help` answers at once.
"""

import errno
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from components.config import Settings, load_settings
from components.errors import FAILED, STATUSES, TEMPORARY_ERROR, USER_ERROR, TemporaryError, UserError
from flows import doctor, gc, init, logs, plan, probe, push, registry_commands, schema, status, steps, theory
from flows.ending import builds_kept, heed_signals, keeps, nothing_kept, servers_kept
from flows.options import BUILD, PARAMS, Overrides, Params, quiet_prefect
from flows.output import AsJson, aside, print_json, read_json, say_in

app = typer.Typer(
    name="thaw",
    help="Thaw a reasoning model that is stuck in a cold start.\n\n"
    "[bold]thaw sweep[/bold] runs everything params.yaml describes and reports it; the other commands are its steps, "
    "one by one. Settings come from params.yaml: --params takes another file, --set train.steps=20 changes one.",
    epilog=f"Exit status: {'; '.join(f'{status} {meaning}' for status, meaning in STATUSES.items())}.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thaw {version('thaw')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None: ...


@app.command()
@keeps(builds_kept)
def sweep(
    params: Params = PARAMS,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="The folder under experiments/ for changed settings; named by them otherwise.")
    ] = None,
    race: Annotated[bool, typer.Option("--race", help="Stop arms that stand still while others rise.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train every arm with every seed, evaluate, report; only what is stale is run.

    With params.yaml as it is, the sweep is the project's own DVC build in build/. Other settings (--params, --set) get
    an experiment folder with a params.yaml, a dvc.yaml and a build of its own, so that neither wipes the other. So
    does a race, which writes into its params.yaml which arms it stopped, at which step, and why.

    [dim]thaw sweep --set 'seeds=\\[0,1,2,3,4]'        five seeds of every arm
    thaw sweep --set 'arms=\\[grpo,garl-q0.9]'    other arms
    thaw sweep --set task.start=colder            a colder start[/dim]
    """
    from components.tracking.store import check_store
    from tasks.workspace import open_workspace, project_root

    settings = load_settings(params, overrides or [])
    folder = open_workspace(settings, params, overrides or [], name, race=race)
    check_store(project_root(folder))  # now and not when it is needed, after all that comes before training
    quiet_prefect()
    from flows.serve import with_server
    from flows.sweep import q_sweep
    from tasks.stage import StageFailed, StageLost

    try:
        with aside(as_json), with_server():
            q_sweep(folder / PARAMS, race=race)
    except StageFailed as error:
        say_in("red", f"error: {error}")
        raise typer.Exit(TEMPORARY_ERROR if isinstance(error, StageLost) else FAILED) from None
    if as_json:
        page = folder / BUILD / "report"
        print_json({"report": page / "index.html", "results": read_json(page / "results.json")})
    else:
        _show_results(settings, folder)


@app.command()
@keeps(servers_kept)
def serve(
    port: Annotated[int, typer.Option(help="Of Prefect's UI.")] = 4200,
    host: Annotated[
        str, typer.Option(help="The address it listens on; another than this needs a login.")
    ] = "127.0.0.1",
) -> None:
    """Serve the deployments of prefect.yaml on this machine: schedules, and runs on demand from Prefect's UI.

    Starts a Prefect server (or takes the one that PREFECT_API_URL names) and workers, until interrupted.
    """
    quiet_prefect()
    from flows.serve import serve as run_server

    run_server(port, host)


@app.command()
@keeps(servers_kept)
def team(
    only: Annotated[
        list[str] | None, typer.Option(help="Start this one alone, as for a backup; may be given several times.")
    ] = None,
) -> None:
    """Run a team's servers on this machine, without containers: MLflow, Prefect, a store, PostgreSQL, HTTPS, a worker.

    What infra/compose.yaml describes, as plain processes on the loopback interface, until interrupted. All they keep
    lies in team/, or in the folder that THAW_TEAM names.
    """
    quiet_prefect()
    from flows.team import serve_team

    serve_team(only or ())


data_app = typer.Typer(help="Download published data sets.", no_args_is_help=True)
data_app.command()(steps.fetch)
app.add_typer(data_app, name="data")

for step in (steps.prepare, steps.base, steps.train, steps.evaluate, steps.report):
    app.command()(step)
app.command()(init.init)
app.command()(plan.plan)
app.command()(keeps(nothing_kept)(probe.probe))
app.command()(registry_commands.compare)
app.command()(registry_commands.promote)
app.command()(registry_commands.lineage)
app.command(name="evaluate-registry")(registry_commands.evaluate_registry)
app.command()(push.push)
app.command()(push.card)
app.command()(theory.theory)
app.command()(gc.gc)
app.command()(doctor.doctor)
app.command()(status.status)
app.command()(logs.logs)
app.command()(schema.schema)


# All that PyTorch says of a checkpoint file that does not fit.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "inline_container.cc")


def main() -> None:
    """Run the command line; what a user can mend is one sentence, everything else a traceback."""
    heed_signals()
    try:
        app()
    except UserError as error:
        say_in("red", f"error: {error}")
        sys.exit(USER_ERROR)
    except TemporaryError as error:
        say_in("red", f"error: {error}")
        sys.exit(TEMPORARY_ERROR)
    except Exception as error:
        if (lacking := _what_lacks(error)) is None:
            raise
        traceback.print_exc()
        say_in("red", f"error: {lacking}")
        sys.exit(USER_ERROR)


def _what_lacks(error: Exception) -> str | None:
    """Of an error that trying again would only repeat: what the machine ran out of, and the cure."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "OutOfMemory" in text or "can't allocate memory" in text:
        return (
            "out of memory; lower train.micro_batch_tokens, rollout.batch_rollouts or sweep.parallel."
            f" ({' '.join(str(error).split())[:200]})"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        sign in text for sign in ("No space left", "disk is full", *TORCH_CANNOT_WRITE)
    ):
        return f"the disk is full; make room and run again, finished work is kept. ({' '.join(text.split())[:200]})"
    return None


def _show_results(settings: Settings, folder: Path) -> None:
    from rich.console import Console

    from components.report.reading import collect
    from components.report.tables import results_table

    console = Console()
    console.print(results_table(collect(folder / BUILD, settings.arm_names, settings.seeds)))
    console.print(f"report    {folder / BUILD / 'report' / 'index.html'}", soft_wrap=True)
    console.print("runs      mlflow ui      every run and, under Models, every checkpoint")
    console.print("models    thaw compare   the registered checkpoints, best first")


if __name__ == "__main__":
    main()
