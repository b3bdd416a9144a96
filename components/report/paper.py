"""The paper's figures on the tasks that it trained, to stand beside ours: arXiv 2604.25907, version 1.

All are of Qwen3-0.6B with groups of 32 rollouts and 16 sampled answers, in percent. Of a cold start the paper has p@1,
p@16 and maj@16; of a warm start maj@16 alone.
"""

from dataclasses import dataclass

from components.config import Arm
from components.methods import Method
from components.report.results import ArmResults, Results

Place = tuple[str, float | None]  # a method of the paper, and its q

GRPO: Place = ("grpo", None)


def _garl(q: float) -> Place:
    return ("garl", q)


def _paft(q: float) -> Place:
    return ("paft", q)


@dataclass(frozen=True)
class Paper:
    """What the paper says of one arm, in percent; peak: validation fell to zero later in that training."""

    maj_at_16: float
    p_at_1: float | None = None
    p_at_16: float | None = None
    peak: bool = False


NONE = Paper(0.0, 0.0, 0.0)
COLD: dict[str, dict[Place, Paper]] = {
    "finqa": {
        GRPO: NONE,
        _garl(0): NONE,
        _garl(0.25): NONE,
        _garl(0.5): NONE,
        _garl(0.75): Paper(38.3, 30.5, 61.1),
        _garl(1): Paper(33.5, 21.9, 58.7),
    },
    "hotpotqa": {_garl(0.75): Paper(57.2, 53.5, 74.1), _garl(1): Paper(56.6, 48.7, 75.5)},
    "musique": {_garl(0.75): Paper(34.8, 26.8, 58.9), _garl(1): Paper(32.5, 21.6, 58.1)},
}
BASE = {"finqa": 12.6, "hotpotqa": 22.2, "musique": 8.9}  # maj@16 of the base model, warm
WARM: dict[str, dict[Place, Paper]] = {
    "finqa": {
        GRPO: Paper(26.9),
        _garl(0): Paper(38.3),
        _garl(0.25): Paper(38.7),
        _garl(0.75): Paper(37.6),
        _paft(0.25): Paper(26.6),
        _paft(0.75): Paper(28.6),
    },
    "hotpotqa": {
        GRPO: Paper(33.5),
        _garl(0): Paper(21.6, peak=True),
        _garl(0.25): Paper(22.9, peak=True),
        _garl(0.75): Paper(46.8, peak=True),
        _paft(0.25): Paper(47.0),
        _paft(0.75): Paper(47.9),
    },
    "musique": {
        GRPO: Paper(15.8),
        _garl(0): Paper(9.1, peak=True),
        _garl(0.25): Paper(24.3, peak=True),
        _garl(0.75): Paper(19.7, peak=True),
        _paft(0.25): Paper(9.0),
        _paft(0.75): Paper(22.4),
    },
}


def beside_ours(results: Results) -> list[tuple[int, ArmResults, Paper]]:
    """The arms that the paper has too, with their places in the order by q; none of a task that is not the paper's."""
    theirs = {"cold": COLD, "warm": WARM}.get(results.start, {}).get(results.task, {})
    found = ((number, item, theirs.get(_place(item.arm))) for number, item in enumerate(results.ordered))
    return [(number, item, paper) for number, item, paper in found if paper is not None]


def base_of(results: Results) -> float | None:
    """The paper's maj@16 of the base model, where it has one."""
    return BASE.get(results.task) if results.start == "warm" else None


def _place(arm: Arm) -> Place:
    return arm.method.value, None if arm.method is Method.GRPO else arm.q
