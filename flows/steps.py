"""The steps of the pipeline, each a command that people type and that dvc.yaml's stages run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from components.config import Arm, Settings, load_settings
from components.errors import UserError
from components.names import as_folder
from flows.ending import keeps, nothing_kept, run_kept
from flows.options import BUILD, PARAMS, Base, Data, Overrides, Params, TestData, repeated
from flows.output import AsJson, aside, print_json, read_json
from flows.prepared import told

ArmOption = Annotated[
    str | None,
    typer.Option("--arm", help="The estimator and its q: grpo, garl-q0.75, garl-debiased-q1, paft-q0.75, ..."),
]


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


def _arm(settings: Settings, name: str | None) -> Arm:
    if name is None and len(settings.arms) > 1:
        raise UserError(f"name the arm to train with --arm, for example --arm {settings.arms[-1]}.")
    return Arm.parse(settings.with_arm(name or settings.arms[0]).arms[0])


def _evaluation(out: Path) -> dict[str, Any]:
    return read_json(out / "evaluation.json") | {"samples": out / "samples.jsonl"}


def _show_figures(figures: dict[str, float], k: int) -> None:
    for name in ("p_at_1", f"p_at_{k}", f"maj_at_{k}", "exact_at_1", "value_at_1"):
        if name not in figures:
            continue  # value_at_1 is FinQA's alone
        typer.echo(f"{name:>10}  {figures[name]:6.1%}  [{figures[name + '_low']:.1%}, {figures[name + '_high']:.1%}]")
