"""The report: one page that explains itself and needs no network, and results.json beside it."""

import base64
import csv
import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.forecast import advice
from components.report import numbers, paper, sections, verdict
from components.report.arms import shade
from components.report.reading import collect
from components.report.results import Results

if TYPE_CHECKING:
    from jinja2 import Environment, Template

    from components.report.charts import Chart

HERE = Path(__file__).parent


def write_report(build: Path, arms: Sequence[str], seeds: Sequence[int], out: Path) -> Results:
    """Write out/index.html, results.json and two tables of curves from what the earlier steps left in the build folder.

    Raises:
        UserError: a file is missing or damaged, or not every run was evaluated on the same examples.
    """
    results = collect(build, arms, seeds)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(sections.results_json(results), encoding="utf-8")
    (out / "index.html").write_text(render(results), encoding="utf-8", errors="replace")
    for name, column in (("p", "train/p_estimate"), ("validation", f"validation/maj_at_{results.k}")):
        _write_curves(results, column, name, out / f"{name}.csv")
    return results


def _write_curves(results: Results, column: str, name: str, path: Path) -> None:
    """One figure of every arm and seed by step, a row each, as `dvc plots` draws them in one chart."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["arm", "seed", "step", name])
        for arm in results.arms:
            for run in arm.runs:
                known = zip(run.curves["step"].tolist(), run.curves.get(column, np.array([])).tolist(), strict=False)
                rows.writerows([arm.name, run.seed, int(step), value] for step, value in known if not math.isnan(value))


def render(results: Results) -> str:
    """The page. Equal results give equal bytes."""
    from markupsafe import Markup  # slow to import, and whoever imports this module may have come for something else

    charts, by_kind = _charts(results), _kind_charts(results)
    named = charts | {f"{kind}: {what}": chart for kind, drawn in by_kind.items() for what, chart in drawn.items()}
    outlooks = sections.outlooks(results)
    return template("page.html.j2").render(
        results=results,
        headline=verdict.headline(results),
        rule=verdict.rule(results),
        outcomes=[(verdict.outcome(arm, results), verdict.succeeded(arm, results)) for arm in results.ordered],
        steps=verdict.steps(results),
        palette=[(shade(item.arm, dark=False), shade(item.arm, dark=True)) for item in results.ordered],
        charts=charts,
        kind_charts=by_kind,
        problems=[Markup(svg) for svg in _problem_charts(results)],
        difficulties=[] if results.kinds else sections.difficulties(results),
        impossible=int(np.isinf(results.probe.log_p).sum()),
        escapes=sections.escapes(results),
        p0=math.exp(sections.typical_log_p0(results)),
        outlooks=outlooks,
        advice=advice([outlook.forecast for outlook in outlooks]) if outlooks else "",
        foretold=sections.foretold(results),
        answers=sections.answers(results),
        compared=sections.compared(results),
        paper=paper.beside_ours(results),
        paper_base=paper.base_of(results),
        runs=[(number, arm, run) for number, arm in enumerate(results.ordered) for run in arm.runs],
        settings=sections.settings_told(results),
        downloads=sections.downloads(results, named),
    )


def template(name: str, folder: Path = HERE) -> "Template":
    """A page of this room, or of another folder, which escapes what it is given and refuses to leave anything out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = {"percent": numbers.percent, "interval": numbers.interval, "scientific": numbers.scientific}
    environment.filters |= formats | {"drawn": Markup}
    environment.globals["script"] = script = Markup(_script(environment))
    environment.globals["policy"] = _policy(script)
    return environment.get_template(name)


def _script(environment: "Environment") -> str:
    return environment.get_template("values.js.j2").render()


def _policy(script: str) -> str:
    """What a page may do: nothing but run this one script, so that no text in it could, were it ever taken for code."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    script_alone = f"default-src 'none'; script-src 'sha256-{digest}'"
    return f"{script_alone}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _charts(results: Results) -> "dict[str, Chart]":
    from components.report import charts

    coarse = partial(charts.curves, results, points=20, height=180)
    drawn = {
        "maj": charts.maj_at_k(results),
        "probe": charts.probe(results),
        "p": charts.curves(results, "train/p_estimate", log=True),
        "validation": charts.curves(results, f"validation/maj_at_{results.k}", shares=True),
        "reward": charts.curves(results, "train/effective_reward", log=True),
        "norm": coarse("train/grad_norm", log=True),
        "samples": coarse("train/effective_samples"),
        "silent": coarse("train/groups_without_gradient"),
    }
    return {name: chart for name, chart in drawn.items() if chart is not None}


def _kind_charts(results: Results) -> "dict[str, dict[str, Chart]]":
    """P and maj@k over steps on each kind of problem, as far as the runs have them."""
    from components.report import charts

    coarse = partial(charts.curves, results, points=30, height=180)
    drawn = {
        kind: {
            "P": coarse(f"train/kinds/{kind}/p_estimate", log=True),
            f"maj@{results.k}": coarse(f"validation/kinds/{kind}/maj_at_{results.k}", shares=True),
        }
        for kind in results.kinds
    }
    return {kind: {what: chart for what, chart in found.items() if chart is not None} for kind, found in drawn.items()}


def _problem_charts(results: Results) -> Iterator[str]:
    from components.report import charts

    return (charts.problems(results, item) for item in results.ordered)
