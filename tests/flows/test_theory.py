"""`thaw theory`: where its start is from, what it prints and writes, and what it refuses."""

import json
import math
from pathlib import Path

import pytest

from tests.flows.conftest import Thaw
from tests.flows.test_cli import files, sentence


def write_probe(folder: Path, median: object) -> None:
    path = folder / "build" / "probe" / "probe.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"p0": {"mean": 0.1, "median": median}}))


def test_a_start_can_be_given(tmp_path: Path, thaw: Thaw) -> None:
    write_probe(tmp_path, 1e-4)
    said = thaw(tmp_path, "theory", "--p0", "1e-9", "--q", "1, 0.5", "--noise", "0.2", "--page", "mine/page.html")
    assert said.status == 0, said.err
    assert "From P = 1.0 × 10⁻⁹, q = 1 escapes 2,911 times sooner than q = 0.5" in said.out
    assert "P of the untrained model: 1.0 × 10⁻⁹, from --p0" in said.out
    assert "20% of the examples have the wrong one of two labels." in said.out
    assert said.out.endswith("page: mine/page.html\n")
    assert "escapes 2,911 times sooner" in (tmp_path / "mine" / "page.html").read_text(encoding="utf-8")


def test_the_median_of_the_probe_is_where_it_starts(tmp_path: Path, thaw: Thaw) -> None:
    write_probe(tmp_path, 3e-5)
    said = thaw(tmp_path, "theory")
    assert said.status == 0, said.err
    assert "P of the untrained model: 3.0 × 10⁻⁵, the median of build/probe/probe.json" in said.out
    assert "the median of build/probe/probe.json" in (tmp_path / "build" / "theory.html").read_text(encoding="utf-8")


def test_without_a_probe_it_says_that_the_start_is_a_default(
    tmp_path: Path, thaw: Thaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = thaw(tmp_path, "theory")
    assert said.status == 0, said.err
    assert "P of the untrained model: 1.0 × 10⁻⁶, by default: no build/probe/probe.json" in said.out
    assert "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    for q in ("0", "0.25", "0.5", "0.75", "1"):
        assert sum(line.split()[:1] == [q] for line in said.out.splitlines()) == 4  # a row a table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--p0", "0"], "--p0 '0' is no cold start; give a --p0 from 1e-200 to below 0.5, such as --p0 1e-6"),
        (["--p0", "0.5"], "--p0 '0.5' is no cold start"),
        (["--p0", "-1e-3"], "--p0 '-1e-3' is no cold start"),
        (["--p0", "1e-201"], "--p0 '1e-201' is no cold start"),
        (["--p0", "nan"], "--p0 'nan' is no cold start"),
        (["--p0", "tiny"], "--p0 'tiny' is no cold start"),
        (["--q", "0,1.5"], "--q '0,1.5' holds something else than numbers from 0 to 1; write such as --q 0,0.5,1"),
        (["--q", "-0.1"], "--q '-0.1' holds"),
        (["--q", "nan"], "--q 'nan' holds"),
        (["--q", "adaptive"], "--q 'adaptive' holds"),
        (["--q", ""], "--q '' holds"),
        (["--q", "0,,1"], "--q '0,,1' holds"),
        (["--q", ",".join(["0.5"] * 21)], "--q names 21 commitments and a chart has room for 20; name fewer"),
        (["--noise", "0"], "--noise '0' is no fraction between 0 and 0.5; give one such as --noise 0.1"),
        (["--noise", "0.5"], "--noise '0.5' is no fraction"),
        (["--noise", "nan"], "--noise 'nan' is no fraction"),
        (["--noise", "10%"], "--noise '10%' is no fraction"),
        (["--page", "."], "--page . cannot be written (Is a directory); name a file in another place"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_option_is_told_in_one_sentence_and_nothing_is_made(
    tmp_path: Path, thaw: Thaw, arguments: list[str], told: str
) -> None:
    assert told in sentence(thaw(tmp_path, "theory", *arguments))
    assert files(tmp_path) == set()


@pytest.mark.parametrize("median", [0.0, 0.7, math.nan])
def test_a_probe_without_a_cold_start_asks_for_one(tmp_path: Path, thaw: Thaw, median: float) -> None:
    write_probe(tmp_path, median)
    told = sentence(thaw(tmp_path, "theory"))
    assert f"the median P of build/probe/probe.json, {median:g}, is no cold start; give a --p0" in told


@pytest.mark.parametrize("median", [None, "much", [1]])
def test_a_damaged_probe_is_named(tmp_path: Path, thaw: Thaw, median: object) -> None:
    write_probe(tmp_path, median)
    told = sentence(thaw(tmp_path, "theory"))
    assert "build/probe/probe.json is damaged or from another version; run `thaw probe`, or give --p0" in told
