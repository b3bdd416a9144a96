"""A gallery: the reports of many sweeps in one folder that can be handed on, and a page that leads to them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from components.config import Arm
from components.errors import UserError
from components.evaluation.metrics import Estimate
from components.report.arms import label_of
from components.report.page import template


@dataclass(frozen=True)
class Entry:
    """A sweep in the gallery: what it trained, its best arm and that arm's maj@k beside the base model's.

    when: the day its last run ended. link: its report, from the gallery's folder.
    """

    name: str
    task: str
    start: str
    arms: int
    seeds: int
    best: str
    k: str
    maj_at_k: Estimate
    base: float
    when: str
    link: str


def write_gallery(reports: Mapping[str, Path], out: Path) -> list[Entry]:
    """Copy the reports into folders of `out`, and lead to them in out/index.html.

    reports: their folders, by where they go below `out`; the last part is the name of the sweep.

    Returns the entries, the newest first.

    Raises:
        UserError: there is none, or a results.json is damaged.
    """
    if not reports:
        raise UserError("no sweep has a report yet; run `thaw sweep`.")
    entries = sorted((_entry(name, folder) for name, folder in reports.items()), key=lambda one: one.link)
    entries.sort(key=lambda one: one.when, reverse=True)
    for name, folder in reports.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in ("index.html", "results.json"):
            shutil.copyfile(folder / file, out / name / file)
    (out / "index.html").write_text(template("gallery.html.j2").render(entries=entries, palette=[]), encoding="utf-8")
    return entries


def _entry(name: str, folder: Path) -> Entry:
    file = folder / "results.json"
    try:
        base, *rows = json.loads(file.read_text(encoding="utf-8"))
        maj = next(key for key in base if key.startswith("maj_at_") and not key.endswith("_interval"))
        runs: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            runs.setdefault(row["arm"], []).append(row)
        best, figure = max(((arm, _typical(of, maj)) for arm, of in runs.items()), key=lambda item: item[1].value)
        return Entry(
            name=name.rpartition("/")[2],
            task=str(base["task"]),
            start=str(base["start"]),
            arms=len(runs),
            seeds=max(len(of) for of in runs.values()),
            best=label_of(Arm.parse(best)),
            k=maj.removeprefix("maj_at_"),
            maj_at_k=figure,
            base=base[maj],
            when=max(row.get("finished") or "" for row in rows)[:10] or _day(file),
            link=f"{name}/index.html",
        )
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise UserError(f"{file} is damaged ({' '.join(str(error).split())}); write it again: `thaw report`.") from None


def _typical(runs: Sequence[Mapping[str, Any]], maj: str) -> Estimate:
    """The medians over seeds of a figure and of the ends of its interval."""
    low, high = zip(*(run[f"{maj}_interval"] for run in runs), strict=True)
    return Estimate(median(run[maj] for run in runs), median(low), median(high))


def _day(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
