"""The picture of a sweep: what became of every seed of every arm on every kind of problem, light and dark.

`make picture` draws it of what is kept of the study `ordering`, without running anything.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from components.config import Arm
from components.data.skills import PREFERENCES
from components.report.arms import label_of, place_of, shade
from components.report.numbers import scientific
from components.report.page import template
from components.report.results import LEARNED
from studies.study import Study
from studies.tables import Row, by_arm, in_sweep, maj_of

STUDY, OUT = Path("studies/ordering"), Path("docs/images")
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1b1d20", "faint": "#5d646c", "track": "#eef0f1"},
    "dark": {"paper": "#0d1117", "ink": "#e6e7e8", "faint": "#a0a7ae", "track": "#21262d"},
}


@dataclass(frozen=True)
class Line:
    """An arm: its name, its colour by theme, maj@k of each seed by kind, and the median seed's of all problems."""

    label: str
    tints: dict[str, str]
    kinds: dict[str, list[float]]
    whole: float

    @property
    def learned(self) -> int:
        """The kinds that the median seed has learned."""
        return sum(median(seeds) >= LEARNED for seeds in self.kinds.values())


def write_pictures(folder: Path = STUDY, out: Path = OUT) -> list[Path]:
    """Write sweep-light.svg and sweep-dark.svg: the first sweep of a study whose base model starts `mixed`."""
    study = Study.read(folder)
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    first = in_sweep(rows, study.sweeps[0].name)
    lines = _lines(first)
    written = []
    out.mkdir(parents=True, exist_ok=True)
    for theme, colours in THEMES.items():
        text = template("picture.svg.j2", Path(__file__).parent).render(
            lines=lines,
            theme=theme,
            colours=colours,
            k=maj_of(first)[1],
            seeds=max(len(runs) for _, runs in by_arm(first)),
            steps=max(row["steps"] or 0 for row in first),
            start={kind: _start(kind) for kind in lines[0].kinds},
        )
        written.append(out / f"sweep-{theme}.svg")
        written[-1].write_text(text, encoding="utf-8")
    return written


def _lines(rows: Sequence[Row]) -> list[Line]:
    maj = maj_of(rows)[0]
    base, *arms = by_arm(rows)
    ordered = [base, *sorted(arms, key=lambda item: place_of(Arm.parse(item[0])))]
    return [
        Line(
            "base model" if arm == "base" else label_of(Arm.parse(arm)),
            {theme: _tint(arm, theme) for theme in THEMES},
            {kind: [run["kinds"][kind][maj] for run in runs] for kind in runs[0]["kinds"]},
            median(run[maj] for run in runs),
        )
        for arm, runs in ordered
    ]


def _tint(arm: str, theme: str) -> str:
    return THEMES[theme]["faint"] if arm == "base" else shade(Arm.parse(arm), dark=theme == "dark")


def _start(kind: str) -> str:
    """P of a kind's problems under the base model, as it was made."""
    return scientific(PREFERENCES["mixed"][kind].skill * PREFERENCES["mixed"][kind].format, 1).removeprefix("1 × ")


if __name__ == "__main__":
    print(*write_pictures(), sep="\n")
