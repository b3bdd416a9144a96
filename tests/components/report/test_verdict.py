"""The headline says what the figures say, and no more."""

from dataclasses import replace

import numpy as np
import pytest

from components.config import Arm
from components.evaluation.metrics import Estimate
from components.report.results import ArmResults, Figures, Probe, Results, Run, Samples
from components.report.verdict import Verdict, headline, named, outcome, rule, succeeded, verdict


def figures(maj: float, width: float = 0.05) -> Figures:
    estimate = Estimate(maj, max(0.0, maj - width), min(1.0, maj + width)) if maj else Estimate(0.0, 0.0, 0.0)
    return Figures(estimate, estimate, estimate, estimate)


def arm(name: str, *seeds: float) -> ArmResults:
    runs = [Run(seed, figures(maj), [], {}, 60, 60, 1.0, "", "", "", "") for seed, maj in enumerate(seeds)]
    return ArmResults(name, Arm.parse(name), runs)


def results(*arms: ArmResults, base: float = 0.0, start: str = "cold") -> Results:
    probe = Probe(1e-6, np.array([-14.0]), 32, 0.0)
    return Results("skills", start, "test", 16, 200, probe, figures(base), [], list(arms))


@pytest.mark.parametrize(
    ("maj", "base", "start", "expected"),
    [
        (0.9, 0.0, "cold", Verdict.ESCAPED),
        (0.2, 0.0, "cold", Verdict.ESCAPED),
        (0.19, 0.0, "cold", Verdict.MOVED),
        (0.04, 0.0, "cold", Verdict.FROZEN),  # its interval reaches 0
        (0.0, 0.0, "cold", Verdict.FROZEN),
        (0.3, 0.12, "cold", Verdict.MOVED),
        (0.3, 0.12, "warm", Verdict.IMPROVED),
        (0.2, 0.12, "warm", Verdict.FROZEN),
        (0.0, 0.12, "warm", Verdict.FELL),
    ],
)
def test_verdict(maj: float, base: float, start: str, expected: Verdict) -> None:
    assert verdict(figures(maj), figures(base), start) is expected


def test_some_arms_escaped() -> None:
    said = headline(results(arm("garl-q1", 0.9), arm("grpo", 0.0), arm("garl-q0.75", 0.7), arm("garl-q0.5", 0.1)))
    assert said.title == "2 of 4 arms escaped the cold start on skills"
    assert said.sentences == [
        "GARL at q = 0.75 and 1 escaped the cold start.",
        "The best arm, GARL q=1, scores maj@16 90.0% [85.0, 95.0] after 60 steps; the base model 0.0% [0.0, 0.0].",
        "GARL at q = 0.5 rose above the base model but did not escape.",
        "GRPO stayed frozen: its interval overlaps the base model's.",
    ]


def test_some_seeds_escaped() -> None:
    found = results(arm("garl-q1", 0.9, 0.8, 0.9), arm("garl-q0.75", 0.7, 0.0, 0.4))
    assert outcome(found.arms[1], found) == "escaped in 2 of 3"
    said = headline(found)
    assert said.title == "1 of 2 arms escaped the cold start on skills, 1 more in some seeds"
    assert said.sentences[0] == "GARL at q = 1 escaped the cold start in all 3 seeds."
    assert "GARL q=0.75 escaped in 2 of 3 seeds." in said.sentences


def test_only_some_seeds_of_some_arms_escaped() -> None:
    said = headline(results(arm("garl-q1", 0.9, 0.0), arm("garl-q0", 0.0, 0.0)))
    assert said.title == "1 of 2 arms escaped the cold start on skills, in some seeds only"


def test_nothing_escaped_and_nothing_is_claimed() -> None:
    said = headline(results(arm("garl-q1", 0.04), arm("grpo", 0.0)))
    text = " ".join([said.title, *said.sentences])
    assert said.title == "No arm escaped the cold start on skills"
    assert "stayed frozen: their intervals overlap the base model's" in text
    assert "a short run cannot tell a slow arm from a frozen one" in text


def test_nothing_was_solved_at_all() -> None:
    said = headline(results(arm("garl-q1", 0.0), arm("grpo", 0.0)))
    assert said.sentences[0] == "After 60 steps no problem is solved by majority: maj@16 is 0, like the base model's."
    assert "best" not in " ".join(said.sentences)


def test_one_seed_solved_something() -> None:
    said = headline(results(arm("garl-q1", 0.0, 0.0, 0.04)))
    assert "no problem is solved" not in " ".join(said.sentences)


def test_a_single_arm() -> None:
    assert headline(results(arm("grpo", 0.0))).title == "GRPO did not escape the cold start on skills"
    assert headline(results(arm("garl-q1", 0.9))).title == "GARL q=1 escaped the cold start on skills"
    assert headline(results(arm("garl-q1", 0.9, 0.0))).title == "GARL q=1 escaped in 1 of 2 seeds on skills"


def test_warm_start() -> None:
    said = headline(results(arm("garl-q0.25", 0.4), arm("garl-q0", 0.0), base=0.12, start="warm"))
    assert said.title == "1 of 2 arms improved on the base model on skills"
    assert "GARL at q = 0 fell below the base model." in said.sentences
    single = headline(results(arm("grpo", 0.12), base=0.12, start="warm"))
    assert single.title == "GRPO did not improve on the base model on skills"


def test_runs_of_different_lengths() -> None:
    short = arm("grpo", 0.5)
    short = replace(short, runs=[replace(short.runs[0], steps=8)])
    assert "after 8 to 60 steps" in headline(results(short, arm("garl-q1", 0.9))).sentences[1]


def test_arms_in_a_sentence() -> None:
    arms = [arm("paft-q1", 0.0), arm("grpo", 0.0), arm("garl-q0", 0.0), arm("garl-q0.25", 0.0), arm("garl-q0.5", 0.0)]
    assert named(arms) == "GRPO, GARL at q = 0, 0.25 and 0.5, and PAFT at q = 1"
    assert named(arms[:2]) == "GRPO and PAFT at q = 1"
    moving = [arm("garl-q1", 0.0), arm("maxrl", 0.0), arm("garl-q1to0", 0.0), arm("garl-qadaptive", 0.0)]
    assert named(moving) == "MaxRL and GARL at q = 1, 1to0 and adaptive"


# Kinds of problems


def of_kinds(name: str, *seeds: tuple[float, float]) -> ArmResults:
    """An arm whose seeds answer these shares of ten problems of each of two kinds."""
    runs = []
    for run, shares in zip(arm(name, *([0.5] * len(seeds))).runs, seeds, strict=True):
        samples = [
            Samples(f"{kind}{number}", ["x"], [right], [right], "x", right, kind=kind)
            for kind, share in zip(("warm", "cold"), shares, strict=True)
            for number in range(10)
            for right in [number < 10 * share]
        ]
        runs.append(replace(run, samples=samples))
    return ArmResults(name, Arm.parse(name), runs)


def test_a_kind_is_learned_from_half_of_its_problems_on() -> None:
    found = results(of_kinds("garl-q1", (1, 0.5)), of_kinds("grpo", (0.4, 0)), of_kinds("garl-q0.5", (0.9, 0.4)))
    assert [outcome(item, found) for item in found.arms] == ["2 of 2 kinds", "0 of 2 kinds", "1 of 2 kinds"]
    assert [succeeded(item, found) for item in found.arms] == [True, False, False]
    assert "at least 50%" in rule(found)
    said = headline(found)
    assert said.title == "1 of 3 arms learned all 2 kinds of problems on skills"
    assert said.sentences[1:] == [
        "GARL at q = 1 learned 2 of 2 kinds.",
        "GARL at q = 0.5 learned 1 of 2 kinds.",
        "GRPO learned 0 of 2 kinds.",
    ]


def test_seeds_that_learned_differently_are_a_range() -> None:
    found = results(of_kinds("garl-q1", (1, 0), (1, 1), (1, 0.9)))
    assert outcome(found.arms[0], found) == "1 to 2 of 2 kinds"
    assert not succeeded(found.arms[0], found)
    assert headline(found).title == "GARL q=1 learned 1 to 2 of 2 kinds of problems on skills"
