"""The command line: every step by hand, and the sweep that runs them all.

Heavy libraries are imported by the command that needs them, so that `thaw --help` answers at once.
"""

import errno
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from components.config import Arm, Settings, load_settings
from components.errors import FAILED, STATUSES, TEMPORARY_ERROR, USER_ERROR, TemporaryError, UserError
from components.names import as_folder
from flows import doctor, gc, init, logs, plan, probe, push, registry_commands, schema, status, theory
from flows.ending import builds_kept, heed_signals, keeps, nothing_kept, run_kept, servers_kept
from flows.options import BUILD, PARAMS, Base, Data, Overrides, Params, TestData, quiet_prefect, repeated
from flows.output import AsJson, aside, print_json, read_json, say_in
from flows.prepared import told

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


data_app = typer.Typer(help="Download published data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

ArmOption = Annotated[
    str | None,
    typer.Option("--arm", help="The estimator and its q: grpo, garl-q0.75, garl-debiased-q1, paft-q0.75, ..."),
]


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


@app.command()
@keeps(nothing_kept)
def prepare(
    out: Annotated[Path, typer.Option(help="Where the splits go.")] = BUILD / "data",
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Read the raw files of a task and write its training, validation and test splits."""
    from components.job import working_on
    from tasks.inputs import make_data

    with aside(as_json), working_on("prepare", out, name="prepare"):
        found = make_data(load_settings(params, overrides or []), out)
    if as_json:
        print_json(found)
        return
    for split, facts in found.items():
        typer.echo(told(split, facts))


@data_app.command()
@keeps(nothing_kept)
def fetch(
    task: Annotated[str, typer.Argument(help="finqa, hotpotqa or musique.")],
    out: Annotated[Path | None, typer.Option(help="Where the files go; raw/TASK by default.")] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Download a published data set from the Hugging Face hub, in the form of its authors' files.

    Repositories and revisions stand in params.yaml under `hub`.
    """
    settings = load_settings(params, overrides or [])
    if task not in settings.hub:
        raise UserError(f"there is no '{task}' under hub in {params}; it has {', '.join(settings.hub)}.")
    from components.data.hub import fetch as fetch_files

    out = out or Path("raw") / task
    for name, records in fetch_files(task, settings.hub[task], out).items():
        typer.echo(f"{out / name}: {records} records")
    typer.echo(f"`dvc add {out}` pins these files by their hash; --set task.path={out} uses them.")


@app.command()
@keeps(nothing_kept)
def base(
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = BUILD / "base",
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Fetch the base model, or teach the embedded one, into a Hugging Face folder."""
    from components.job import working_on
    from tasks.inputs import make_base

    with working_on("base", out):
        make_base(load_settings(params, overrides or []), out)
    typer.echo(f"base model: {out}")


@app.command()
@keeps(run_kept)
def train(
    out: Annotated[Path, typer.Option(help="Run again on the same folder, it goes on where it was.")],
    arm: ArmOption = None,
    seed: Annotated[int | None, typer.Option(help="Default: the first of `seeds`.")] = None,
    until: Annotated[int | None, typer.Option(help="Pause at this step; the next call goes on.")] = None,
    data: Data = None,
    base: Base = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Train one arm with one seed; the result is the Hugging Face folder OUT/final, the best checkpoint by validation.

    [dim]thaw train --arm garl-q0.75 --out runs/mine --set train.steps=20[/dim]
    """
    settings = load_settings(params, overrides or [])
    chosen = _arm(settings, arm)
    seed = settings.seeds[0] if seed is None else seed
    from components.job import working_on
    from components.tracking.store import check_store
    from tasks.inputs import find_base, find_data
    from tasks.launch import launch, needs_launch
    from tasks.workspace import project_root

    store = check_store(project_root())  # now and not when data and model are made
    what = f"train {chosen.name} seed {seed}"
    with working_on(what, out):
        data, base = find_data(settings, data, BUILD, out), find_base(settings, base, BUILD, out)
    if needs_launch(settings.compute):
        inputs = ["--data", str(data), "--base", str(base), *repeated(params, overrides)]
        arguments = ["train", "--arm", chosen.name, "--seed", str(seed), "--out", str(out), *inputs]
        arguments += [] if until is None else ["--until", str(until)]
        raise typer.Exit(launch(settings.compute, arguments))
    from components.progress import speaks
    from components.tracking.runs import connect
    from components.training.loop import train as run_training
    from components.training.zero import end_ranks
    from tasks.folder_lock import working_in

    tracker = connect(project_root(), store=store)
    with working_in(out), working_on(what, out):
        record = run_training(settings, chosen, seed, data=data, base=base, out=out, tracker=tracker, until=until)
    end_ranks()
    if not speaks():
        return
    if record is None:
        typer.echo(f"{out}: paused at step {until}; run again without --until to go on")
        return
    typer.echo(
        f"{out / 'final'}: step {record.best_step} of {record.steps}, validation"
        f" maj@{settings.evaluation.samples} {record.validation:.1%},"
        f" {record.model_name}/{record.model_version} in MLflow"
    )


@app.command()
@keeps(nothing_kept)
def evaluate(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, or a registered version: NAME/3, NAME@ALIAS.")],
    data: TestData = None,
    out: Annotated[Path | None, typer.Option(help="Where evaluation.json and the samples go.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    record: Annotated[
        str | None, typer.Option(help="A name for the test set, to keep figures and samples with the version.")
    ] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on held-out problems: p@1, p@k, maj@k, with 95% bootstrap intervals.

    [dim]thaw evaluate runs/mine/final
    thaw evaluate thaw-skills@best --data new.jsonl --record november   a raw file, kept with the version[/dim]
    """
    settings = load_settings(params, overrides or [])
    from components.job import working_on
    from components.progress import speaks
    from tasks.evaluation import evaluate_model
    from tasks.inputs import find_examples
    from tasks.launch import launch, needs_launch

    out = out or BUILD / "evaluations" / as_folder(model)
    with aside(as_json):
        examples = find_examples(settings, data, split, BUILD, out)
    if needs_launch(settings.compute):
        arguments = ["evaluate", model, "--out", str(out), "--split", split, *repeated(params, overrides)]
        arguments += [] if data is None else ["--data", str(data)]
        arguments += [] if record is None else ["--record", record]
        with aside(as_json):
            status = launch(settings.compute, arguments)
        if not status and as_json:
            print_json(_evaluation(out))
        raise typer.Exit(status)
    with aside(as_json), working_on(f"evaluate {model}", out):
        figures = evaluate_model(settings, model, examples, split=split, out=out, record=record)
    if not speaks():
        return
    if as_json:
        print_json(_evaluation(out))
        return
    _show_figures(figures, settings.evaluation.samples)
    typer.echo(f"every sample is in {out / 'samples.jsonl'}")


@app.command()
def report(
    build: Annotated[Path, typer.Option(help="The build with train, evaluate and probe.")] = BUILD,
    out: Annotated[
        Path | None, typer.Option(help="Where index.html and results.json go.", show_default="build/report")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Instead, gather all sweeps' reports in one folder, build/reports.")
    ] = False,
    params: Params = PARAMS,
    overrides: Overrides = None,
) -> None:
    """Put the results of a sweep on one page, and into results.json; or gather the pages of all sweeps."""
    if every:
        from components.report.gallery import write_gallery
        from tasks.workspace import finished_reports

        out = out or BUILD / "reports"
        entries = write_gallery(finished_reports(), out)
        typer.echo(f"gathered {len(entries)}: {out / 'index.html'}, and beside it all that it leads to")
        return
    out = out or BUILD / "report"
    settings = load_settings(params, overrides or [])
    from components.report.page import write_report

    write_report(build, settings.arm_names, settings.seeds, out)
    typer.echo(f"report: {out / 'index.html'}")


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


def _arm(settings: Settings, name: str | None) -> Arm:
    if name is None and len(settings.arms) > 1:
        raise UserError(f"name the arm to train with --arm, for example --arm {settings.arms[-1]}.")
    return Arm.parse(settings.with_arm(name or settings.arms[0]).arms[0])


def _show_results(settings: Settings, folder: Path) -> None:
    from rich.console import Console

    from components.report.reading import collect
    from components.report.tables import results_table

    console = Console()
    console.print(results_table(collect(folder / BUILD, settings.arm_names, settings.seeds)))
    console.print(f"report    {folder / BUILD / 'report' / 'index.html'}", soft_wrap=True)
    console.print("runs      mlflow ui      every run and, under Models, every checkpoint")
    console.print("models    thaw compare   the registered checkpoints, best first")


def _evaluation(out: Path) -> dict[str, Any]:
    return read_json(out / "evaluation.json") | {"samples": out / "samples.jsonl"}


def _show_figures(figures: dict[str, float], k: int) -> None:
    for name in ("p_at_1", f"p_at_{k}", f"maj_at_{k}", "exact_at_1", "value_at_1"):
        if name not in figures:
            continue  # value_at_1 is FinQA's alone
        typer.echo(f"{name:>10}  {figures[name]:6.1%}  [{figures[name + '_low']:.1%}, {figures[name + '_high']:.1%}]")


if __name__ == "__main__":
    main()
