"""The command `thaw theory`: what to expect of each commitment, before any model is trained."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from components.errors import UserError
from flows.options import BUILD
from flows.output import AsJson, print_json

PROBE = BUILD / "probe" / "probe.json"
DEFAULT_P0 = 1e-6
LOWEST_P0 = 1e-200  # times and the ticks of their axes stay within the range of floats
MOST = 20  # commitments that a chart has room for


def theory(
    p0: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="P of the untrained model; the median that `thaw probe` found, or 1e-6."),
    ] = None,
    q: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Commitments between 0 and 1, with commas.")
    ] = "0,0.25,0.5,0.75,1",
    noise: Annotated[str, typer.Option(metavar="NUMBER", help="The fraction of examples with a wrong label.")] = "0.1",
    page: Annotated[Path, typer.Option(help="The HTML file for the charts.")] = BUILD / "theory.html",
    as_json: AsJson = False,
) -> None:
    """See what the theory expects of each q: how long the escape takes, and what wrong labels cost. Trains nothing.

    [dim]thaw theory                            from the median P of `thaw probe`
    thaw theory --p0 1e-9 --q 0.5,0.9,1    another start, other commitments
    thaw theory --noise 0.3                three wrong labels in ten[/dim]
    """
    start, source = _start(p0)
    commitments = _commitments(q)
    wrong = _number(noise)
    if not 0 < wrong < 0.5:
        raise UserError(f"--noise {noise!r} is no fraction between 0 and 0.5; give one such as --noise 0.1.")
    from rich.console import Console

    from components.report.numbers import scientific
    from components.report.theory import HEADINGS, tables, title, told, work_out, write_page

    found = work_out(start, commitments, wrong, source)
    try:
        write_page(page, found)
    except OSError as error:
        raise UserError(f"--page {page} cannot be written ({error.strerror}); name a file in another place.") from None
    if as_json:
        print_json({"title": title(found), "page": page, "theory": found})
        return
    console = Console(highlight=False)
    console.print(f"[bold]{title(found)}[/]")
    console.print(f"P of the untrained model: {scientific(start)}, {source}", style="dim")
    sentences = told(found)
    for subject, table in tables(found).items():
        console.print(f"\n[bold]{HEADINGS[subject]}[/]\n{sentences[subject]}")
        console.print(table)
    console.print(f"\npage: {page}", soft_wrap=True, markup=False)


def _number(text: str) -> float:
    """NaN, which lies within no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _start(p0: str | None) -> tuple[float, str]:
    """P of the untrained model, and where it is from."""
    if p0 is not None:
        _check_start(start := _number(p0), f"--p0 {p0!r}")
        return start, "from --p0"
    try:
        median = float(json.loads(PROBE.read_text(encoding="utf-8"))["p0"]["median"])
    except FileNotFoundError:
        return DEFAULT_P0, f"by default: no {PROBE}"
    except (KeyError, TypeError, ValueError, OSError):
        raise UserError(f"{PROBE} is damaged or from another version; run `thaw probe`, or give --p0.") from None
    _check_start(median, f"the median P of {PROBE}, {median:g},")
    return median, f"the median of {PROBE}"


def _check_start(p0: float, name: str) -> None:
    if not LOWEST_P0 <= p0 < 0.5:
        raise UserError(f"{name} is no cold start; give a --p0 from {LOWEST_P0:g} to below 0.5, such as --p0 1e-6.")


def _commitments(text: str) -> list[float]:
    found = [_number(part) for part in text.split(",")]
    if not all(0 <= q <= 1 for q in found):
        raise UserError(f"--q {text!r} holds something else than numbers from 0 to 1; write such as --q 0,0.5,1.")
    if len(found) > MOST:
        raise UserError(f"--q names {len(found)} commitments and a chart has room for {MOST}; name fewer.")
    return found
