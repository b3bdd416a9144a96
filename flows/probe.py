"""`thaw probe`: what to expect of a base model and of every arm, before any training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.config import Settings, load_settings
from flows.options import BUILD, PARAMS, Base, Data, Overrides, Params, repeated
from flows.output import AsJson, aside, print_json, read_json

if TYPE_CHECKING:
    from tasks.probe import Probed


def probe(
    data: Data = None,
    base: Base = None,
    out: Annotated[Path, typer.Option(help="Where probe.json goes.")] = BUILD / "probe",
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Ask before training: would RL stall here, what would every arm do, and which is the one to take?

    Estimates how often the base model is right, then takes a few real steps with every arm on a copy of it.
    """
    settings = load_settings(params, overrides or [])
    from components.job import working_on
    from components.tracking.store import check_store
    from tasks.inputs import find_base, find_data
    from tasks.launch import launch, needs_launch
    from tasks.workspace import project_root

    store = check_store(project_root())  # now and not when data and model are made
    with aside(as_json), working_on("probe", out):
        data, base = find_data(settings, data, BUILD, out), find_base(settings, base, BUILD, out)
    if needs_launch(settings.compute):
        inputs = ["--data", str(data), "--base", str(base), *repeated(params, overrides)]
        with aside(as_json):
            status = launch(settings.compute, ["probe", "--out", str(out), *inputs])
        if not status and as_json:
            _print_json(settings, out)
        raise typer.Exit(status)
    from components.progress import speaks
    from components.tracking.runs import connect
    from tasks.probe import run_probe

    with aside(as_json), working_on("probe", out):
        found = run_probe(settings, data=data, base=base, out=out, tracker=connect(project_root(), store=store))
    if not speaks():
        return
    if as_json:
        _print_json(settings, out)
    else:
        _show(settings, found)


def _print_json(settings: Settings, out: Path) -> None:
    """{probe, forecasts, recommended, advice}: the step's two files, the arm to take or null, and the sentences."""
    from components.forecast import Forecast, advice, advice_on_rl, recommended

    found = read_json(out / "probe.json")
    path = out / "forecast.json"
    forecasts = [Forecast.read(record) for record in read_json(path)] if path.is_file() else []
    sentences = [advice_on_rl(found["log_p"], _rollouts(settings), found["grpo_groups_with_signal"])]
    print_json(
        {
            "probe": found,
            "forecasts": forecasts,
            "recommended": recommended(forecasts)[0].arm if forecasts else None,
            "advice": [*sentences, *([advice(forecasts)] if forecasts else [])],
        }
    )


def _rollouts(settings: Settings) -> int:
    """Of a run."""
    return settings.train.steps * settings.train.groups_per_step * settings.rollout.group_size


def _show(settings: Settings, probed: "Probed") -> None:
    from rich.console import Console

    from components.forecast import advice, advice_on_rl
    from components.probe import histogram
    from components.report.tables import forecast_table

    found, k = probed.probe, settings.evaluation.samples
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"P of {found.examples} training examples: mean {found.p0['mean']:.2g}, median {found.p0['median']:.2g}\n"
    )
    for line in histogram(found.log_p):
        console.print(line, markup=False)
    for kind, of in found.kinds.items():
        console.print(f"{kind}: median P {of['median']:.2g}")
    console.print(f"held-out maj@{k} of the base model: {found.base[f'maj_at_{k}']:.1%}\n")
    if probed.forecasts:
        console.print(forecast_table(probed.forecasts))
        console.print()
    console.print(advice_on_rl(found.log_p, _rollouts(settings), found.grpo_groups_with_signal), markup=False)
    if probed.forecasts:
        console.print(advice(probed.forecasts), style="bold", markup=False)
