"""The same figures for the terminal, as rich tables within 100 columns, most within 80."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from components.evaluation.compare import Comparison
from components.evaluation.metrics import Estimate
from components.forecast import Forecast, recommended
from components.report.results import Figures, KindFigures, Results
from components.report.verdict import kinds_range, outcome, race, succeeded


def results_table(results: Results) -> Table:
    """One row an arm: the median over seeds of every figure, maj@k's interval, and maj@k of each seed or kind."""
    k, seeds = results.k, max(len(arm.runs) for arm in results.arms)
    title = f"{results.task}, {results.start} start: percent of {results.examples} {results.split} problems"
    table = Table(
        title=title,
        min_width=len(title),  # or a narrow table would break it
        caption="95% intervals over problems, not over seeds"
        + ("; a typical seed's" if seeds > 1 else "")
        + (
            f"\nlearned: of {len(results.kinds)} kinds of problems; each kind's maj@{k}, the warmest first"
            if results.kinds
            else ""
        )
        + "".join(f"\n{sentence}" for sentence in race(results)),
        box=None,
        header_style="bold",
        pad_edge=False,
        collapse_padding=bool(results.kinds),
    )
    # Within 80 columns there is room for the kinds or for the other figures.
    figures = [f"maj@{k}", "p@1", *([] if results.kinds else [f"p@{k}"])]
    for name in ("arm", "learned" if results.kinds else "", *figures, *results.kinds):
        table.add_column(name, no_wrap=True, justify="right" if name in (*figures, *results.kinds) else "left")
    if each_seed := seeds > 1 and not results.kinds:
        table.add_column(f"maj@{k} of seeds")
    base = [*_cells(results.base)[: len(figures)], *_kinds(results, results.base_kinds)]
    table.add_row("base model", "", *base, style="dim")
    for arm in results.ordered:
        each = " ".join(f"{100 * run.figures.maj_at_k.value:.0f}" for run in arm.runs)
        told = kinds_range(arm, results, "–") if results.kinds else outcome(arm, results)
        row = [arm.label, f"[green]{told}[/]" if succeeded(arm, results) else told]
        row += [*_cells(arm.figures)[: len(figures)], *_kinds(results, results.kinds_of(arm))]
        table.add_row(*row, *([each] if each_seed else []))
    return table


def _kinds(results: Results, figures: Mapping[str, KindFigures]) -> list[str]:
    """maj@k of each kind of problem."""
    return [f"{100 * figures[kind].maj_at_k:.0f}" if kind in figures else "" for kind in results.kinds]


def forecast_table(forecasts: Sequence[Forecast]) -> Table:
    """One row an arm: where it has a gradient and how much of that is signal, and what its look-ahead did."""
    table = Table(
        title=f"what {forecasts[0].steps} steps of each arm did to examples that they did not train on",
        caption="gradient: share of groups that have one, its norm, its cosine between two batches"
        "\nlog P: change of the mean, nats, 95% interval over examples"
        "\nextrapolated: half at 0.1, the step at which half have P = 0.1; out, the share that has it by step"
        f" {forecasts[0].run_steps}",
        box=None,
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("arm", no_wrap=True)
    for name in ("gradient", "norm", "cosine", "log P", "half at 0.1", "out"):
        table.add_column(name, justify="right", no_wrap=True)
    best, _ = recommended(forecasts)
    for item in forecasts:
        agreement = "" if item.gradient.agreement is None else f"{item.gradient.agreement:.2f}"
        gain = f"{item.gain.value:+.1f} \\[{item.gain.low:+.1f}, {item.gain.high:+.1f}]"
        low, high = ("never" if end is None else f"{end:.0f}" for end in item.escape_interval)
        when = "never" if item.escape_step is None else f"{item.escape_step:.0f} \\[{low}, {high}]"
        figures = [f"{item.examples_with_gradient:.0%}", f"{item.gradient.norm:.2g}", agreement, gain, when]
        figures.append(f"{item.escaped:.0%}")
        table.add_row(item.arm, *figures, style="green" if item is best and item.gain.low > 0 else "")
    return table


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """p@1, p@k and maj@k of two models and their paired difference; bold where its interval leaves zero out."""
    table = Table(
        title=f"percent of {comparison.examples} problems",
        caption="95% intervals over problems, resampled in pairs; bold: the interval leaves zero out",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("")
    for name in (first, second, "difference"):
        table.add_column(escape(name), justify="right")
    k = comparison.k
    pairs = {"p@1": comparison.p_at_1, f"p@{k}": comparison.p_at_k, f"maj@{k}": comparison.maj_at_k}
    for name, pair in pairs.items():
        gap = pair.difference
        text = f"{100 * gap.value:+.1f} \\[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        certain = gap.low > 0 or gap.high < 0
        table.add_row(name, _cell(pair.first), _cell(pair.second), f"[bold]{text}[/]" if certain else text)
    return table


def _cells(figures: Figures) -> list[str]:
    plain = (f"{100 * figure.value:.1f}" for figure in (figures.p_at_1, figures.p_at_k))
    return [_cell(figures.maj_at_k), *plain]


def _cell(estimate: Estimate) -> str:
    low, high = (f"{100 * end:.{1 if end < 0.1 else 0}f}" for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.1f} \\[{low}, {high}]"
