"""The probe as a step: how often the base model is right, what each arm would do, and both as a run in MLflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.config import Settings

if TYPE_CHECKING:
    from components.forecast import Forecast
    from components.probe import Probe
    from components.tracking.runs import Tracker


@dataclass(frozen=True)
class Probed:
    """What was found; forecasts is empty where probe.look_ahead is 0."""

    probe: "Probe"
    forecasts: "list[Forecast]"


def run_probe(settings: Settings, *, data: Path, base: Path, out: Path, tracker: "Tracker") -> Probed:
    """Probe the base model and look ahead, together with the other processes that a launcher started.

    Writes out/probe.json, samples.jsonl and forecast.json.

    Raises:
        UserError: data or base model cannot be used.
        TemporaryError: the sampler, or another process, is gone.
    """
    from components.forecast import write
    from components.look_ahead import look_ahead
    from components.probe import probe
    from components.training.ranks import Ranks, lost_processes_told
    from components.training.zero import end_ranks, start_ranks

    start_ranks()  # before vLLM, which would take the process group for its own
    with lost_processes_told():
        found = probe(settings, data=data, base=base, out=out)
        forecasts = look_ahead(settings, found.log_p, data=data, base=base) if settings.probe.look_ahead else []
    probed, first = Probed(found, forecasts), Ranks().first
    end_ranks()
    if first:
        # What an earlier probe forecast goes even where this one looks not ahead.
        (out / "forecast.json").unlink(missing_ok=True)
        if forecasts:
            write(out, forecasts)
        _track(settings, probed, out, tracker)
    return probed


def _track(settings: Settings, found: Probed, out: Path, tracker: "Tracker") -> None:
    parent = tracker.sweep(*settings.sweep_name())
    figures = {f"probe/p0_{name}": value for name, value in found.probe.p0.items()}
    figures["probe/grpo_groups_with_signal"] = found.probe.grpo_groups_with_signal
    for item in found.forecasts:
        figures[f"forecast/{item.arm}/gain_nats"] = item.gain.value
        figures[f"forecast/{item.arm}/gradient_norm"] = item.gradient.norm
        figures[f"forecast/{item.arm}/gradient_rms"] = item.gradient.rms
        if item.gradient.agreement is not None:
            figures[f"forecast/{item.arm}/gradient_agreement"] = item.gradient.agreement
        if item.escape_step is not None:
            figures[f"forecast/{item.arm}/escape_step"] = item.escape_step
    params = {"settings": settings.model_dump(mode="json")}
    with tracker.run("probe", parent=parent, params=params, tags={"task": settings.task.name}) as run:
        run.metrics(0, figures)
        for file in sorted(out.glob("*.json")):
            run.artifact(file)
