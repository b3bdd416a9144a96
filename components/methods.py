"""The methods by name, a row each: what a method learns from, and how people and charts tell it from the others.

What each computes is in components/objective; components/training/coefficients.py finds it by the name.
"""

from enum import StrEnum
from typing import Literal

Signal = Literal["likelihood", "reward"]
Pairs = Literal["never", "always", "baseline"]


class Method(StrEnum):
    """The estimators, by the names used in arm names, MLflow tags and reports.

    learns_from: the likelihood of the gold answer, or the rewards of sampled answers; these have no commitment.
    pairs: when it compares each rollout with the others of its group: always, for its baseline alone, or never.
    label: what people call it.
    hue, marker: its own in every chart. The hues of the continuum are told apart by colour-blind readers too (Paul
        Tol's vibrant scheme), those of the peers are muted.
    """

    learns_from: Signal
    pairs: Pairs
    label: str
    hue: str
    marker: str

    def __new__(cls, name: str, learns_from: Signal, pairs: Pairs, label: str, hue: str, marker: str) -> "Method":
        """One of the rows below."""
        method = str.__new__(cls, name)
        method._value_ = name
        method.learns_from, method.pairs = learns_from, pairs
        method.label, method.hue, method.marker = label, hue, marker
        return method

    GRPO = "grpo", "reward", "always", "GRPO", "#6f6f6f", "^"
    DR_GRPO = "dr-grpo", "reward", "always", "Dr. GRPO", "#8a7f6a", "<"
    RLOO = "rloo", "reward", "always", "RLOO", "#6a7f8a", ">"
    MAXRL = "maxrl", "reward", "always", "MaxRL", "#7a5c3e", "P"
    STAR = "star", "reward", "never", "STaR", "#5c6e3a", "*"
    GARL = "garl", "likelihood", "baseline", "GARL", "#0077bb", "o"
    GARL_PLUGIN = "garl-plugin", "likelihood", "never", "plug-in GARL", "#009988", "v"
    GARL_DEBIASED = "garl-debiased", "likelihood", "always", "debiased GARL", "#d0307f", "D"
    # without the gradient of the answer
    GARL_SCORE = "garl-score", "likelihood", "baseline", "score-only GARL", "#7d52c4", "d"
    PAFT = "paft", "likelihood", "never", "PAFT", "#e5701f", "s"
    # GARL, then PAFT from where training turns unstable
    GARL_PAFT = "garl-paft", "likelihood", "baseline", "GARL→PAFT", "#a8552a", "X"
