"""The command `thaw plan`: what a run would take, before anything is loaded."""

from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.config import Settings, load_settings
from components.errors import UserError
from flows.options import PARAMS, Overrides, Params
from flows.output import AsJson, aside, print_json

if TYPE_CHECKING:
    from tasks.plan import Plan

WIDTH = 80  # columns


def plan(
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory of each GPU, in 10⁹ bytes; what this machine has otherwise."),
    ] = None,
    params: Params = PARAMS,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """See what a run would take: memory of each process, disk, tokens of a step. Loads and fetches nothing.

    The figures are computed from the model's config and the settings, and are upper bounds.

    [dim]thaw plan --params infra/profiles/paper/finqa-cold.yaml --set model.name=FOLDER --memory 80[/dim]
    """
    settings = load_settings(params, overrides or [])
    if memory is not None and not 0 < memory < 1e6:
        raise UserError(f"--memory {memory:g} is no memory of a GPU; give its GB, such as --memory 80.")
    from tasks.plan import make_plan

    with aside(as_json):
        found = make_plan(settings, memory)
    if as_json:
        print_json(_figures(found))
        return
    for line in _lines(settings, found):
        typer.echo(line)


def _figures(plan: "Plan") -> dict[str, Any]:
    """What was computed, in bytes and tokens; `lacking` is null where it fits."""
    lacking = plan.found.lacking(plan.memory)
    device = {"device": plan.device, "memory": plan.memory, "fits": lacking is None, "lacking": lacking}
    return device | {"peak": plan.found.peak, **asdict(plan.found)}


def _lines(settings: Settings, plan: "Plan") -> list[str]:
    """At most 80 characters each."""
    from components.capacity import in_bytes

    found, train = plan.found, settings.train
    trained = f", {found.trained:,} trained" if found.trained < found.parameters else ""
    return [
        "Computed, not measured: at most so much. The context of CUDA comes on top.",
        f"{found.parameters:,} parameters{trained}, {settings.model.dtype}; ZeRO {train.zero_stage}"
        f"{' with offloading' if train.offload else ''}; processes: {found.processes}",
        *_memory(plan),
        *_table("Disk, one arm and seed", {name: in_bytes(size) for name, size in found.disk.items()}),
        *_table(
            "Tokens of a step",
            {
                "sampled": f"{found.sampled:,}",
                "of prompts": f"{found.prompts:,}",
                "in one gradient pass": f"{found.micro_batch:,}",
                "gradient passes of a process": f"{found.passes:,}",
            },
        ),
    ]


def _memory(plan: "Plan") -> list[str]:
    from components.capacity import in_bytes

    found, state = plan.found, plan.found.state
    lasting = {
        "weights": state.weights,
        "float32 copy of those that are trained": state.master,
        "AdamW's moments": state.moments,
        "gradients": state.gradients,
        "the sampler's": found.sampler,
    }
    passing = {f"while it lasts: {phase.name}": phase.bytes for phase in found.phases}
    rows = {name: in_bytes(size) for name, size in (lasting | passing).items() if size}
    rows |= {"in all, at most at one time": in_bytes(found.peak)}
    rows |= {"beside it, in the machine's memory": in_bytes(found.host)} if found.host else {}
    lacking = found.lacking(plan.memory)
    device = f"{plan.device} ({in_bytes(plan.memory)} a process)"
    verdict = f"Fits {device}." if lacking is None else f"Does not fit {device}: {lacking}."
    return [*_table("Memory of a process on its device", rows), "", *wrap(verdict, WIDTH)]


def _table(title: str, rows: dict[str, str]) -> list[str]:
    return ["", title, *(f"  {name:<{WIDTH - 22}}{value:>20}" for name, value in rows.items())]
