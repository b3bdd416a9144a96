"""A study's rows as tables for people: every seed in sight, medians beside them."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from components.report.results import LEARNED
from studies.study import Study

Row = dict[str, Any]


def markdown(study: Study, rows: Sequence[Row]) -> str:
    """The question, and a table for each sweep: what changed, then an arm a line."""
    parts = [f"**{study.question}**\n"]
    for sweep in study.sweeps:
        changed = ", ".join(f"`{name}={value}`" for name, value in sweep.set.items() if name != "arms")
        parts.append(f"### {sweep.name}{f' ({changed})' if changed else ''}\n")
        parts.append(sweep_table([row for row in rows if row["sweep"] == sweep.name]) + "\n")
    return "\n".join(parts)


def sweep_table(rows: Sequence[Row]) -> str:
    """maj@k of each seed, in percent, its median, that of p@1, of each kind of problem, and of the escape step."""
    maj = next(name for name in rows[0] if name.startswith("maj_at_") and not name.endswith("interval"))
    k = maj.removeprefix("maj_at_")
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    seeds = sorted({row["seed"] for row in rows} - {None})
    kinds = list(rows[0].get("kinds", ()))
    head = ["arm", *(f"seed {seed}" for seed in seeds), "median", "p@1"]
    escapes = any(row.get(name) is not None for row in rows for name in ("escape_step", "forecast_step"))
    head += [*kinds, *(["kinds learned"] if kinds else []), *(["half at P = 0.1", "forecast"] if escapes else [])]
    lines = [head, ["---"] * len(head)]
    for arm in arms:
        runs = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"] or 0)
        each = {run["seed"]: f"{100 * run[maj]:.0f}" for run in runs}
        line = [arm, *(each.get(seed, "") for seed in seeds), f"**{_percent(runs, maj)}**", _percent(runs, "p_at_1")]
        line += [_percent([run["kinds"][kind] for run in runs], maj) for kind in kinds]
        if kinds:
            line.append(" ".join(str(kinds_learned(run)) for run in runs))
        if escapes:
            line += ["", ""] if arm == "base" else _escapes(runs)
        lines.append(line)
    note = f"\nmaj@{k} on held-out problems, percent; medians over seeds."
    if escapes:
        note += (
            " Half at P = 0.1: the training step by which half of the examples had it, of each seed, and what"
            " `thaw probe` forecast before; - is never."
        )
    if kinds:
        note += f" A kind is learned at maj@{k} of {100 * LEARNED:.0f}% or more; each seed's number of them is shown."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + note


def _escapes(runs: Sequence[Row]) -> list[str]:
    forecast = runs[0]["forecast_step"]
    return [
        " ".join(str(run["escape_step"] or "-") for run in runs),
        "-" if forecast is None else f"{forecast:.0f}",
    ]


def kinds_learned(row: Row) -> int:
    [k] = {name for name in next(iter(row["kinds"].values())) if name.startswith("maj_at_")}
    return sum(found[k] >= LEARNED for found in row["kinds"].values())


def _percent(runs: Sequence[Row], name: str) -> str:
    return f"{100 * median(run[name] for run in runs):.1f}"
