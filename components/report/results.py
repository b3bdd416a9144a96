"""What a finished build says: the probe, the runs and their evaluations, read back from disk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from components.config import Arm
from components.evaluation.metrics import Estimate, Values
from components.forecast import Forecast
from components.report.arms import label_of, place_of

SMOOTHED = 5  # steps over which the share of escaped examples is averaged, since a step has few of them
LEARNED = 0.5  # the maj@k from which on a kind of problem counts as learned
# What train.json tells of a run.
MADE = ("steps", "best_step", "wall_seconds", "mlflow_run_id", "model_name", "model_version", "stopped")


@dataclass(frozen=True)
class Figures:
    """What a model scores, as fractions of 1; k is the number of samples of each problem."""

    p_at_1: Estimate
    p_at_k: Estimate
    maj_at_k: Estimate
    exact_at_1: Estimate
    value_at_1: Estimate | None = None  # FinQA alone: p_at_1 with numbers compared by value

    @classmethod
    def read(cls, figures: Mapping[str, float], k: int) -> "Figures":
        """From metric names: `maj_at_16`, `maj_at_16_low`, `maj_at_16_high` and so on."""
        names = {"p_at_1": "p_at_1", "p_at_k": f"p_at_{k}", "maj_at_k": f"maj_at_{k}", "exact_at_1": "exact_at_1"}
        if "value_at_1" in figures:
            names["value_at_1"] = "value_at_1"
        return cls(
            **{
                field: Estimate(figures[name], figures[f"{name}_low"], figures[f"{name}_high"])
                for field, name in names.items()
            }
        )

    @classmethod
    def median(cls, seeds: "Sequence[Figures]") -> "Figures":
        """The median over seeds of each figure and, as the interval of a typical seed, of its two ends."""
        medians = {}
        for name in cls.__dataclass_fields__:
            estimates: list[Estimate] = [found for figures in seeds if (found := getattr(figures, name)) is not None]
            if not estimates:
                continue
            value, low, high = (median(ends) for ends in zip(*map(astuple, estimates), strict=True))
            medians[name] = Estimate(value, low, high)
        return cls(**medians)


@dataclass(frozen=True)
class Samples:
    """A line of samples.jsonl: one example's answers and which of them were right."""

    id: str
    answers: list[str]
    correct: list[bool]
    exact: list[bool]
    vote: str
    vote_correct: bool
    value: list[bool] | None = None
    kind: str = ""
    rationale: str = ""  # of the first answer

    @property
    def accuracy(self) -> float:
        """The share of the answers that are right."""
        return sum(self.correct) / len(self.correct)


@dataclass(frozen=True)
class Probe:
    """Where the base model starts from, over the probed training examples.

    mean: of P over the examples. log_p: the natural logarithm of each example's P; -inf is an answer that no rationale
    of its group made possible. grpo_groups_with_signal: the share of groups in which rewards would differ.
    kinds: the median P of each kind of example, the warmest first; empty where kinds are not told apart.
    """

    mean: float
    log_p: Values
    group_size: int
    grpo_groups_with_signal: float
    kinds: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of log P, by rank: interpolating next to -inf gives NaN."""
        return float(np.sort(self.log_p)[(len(self.log_p) - 1) // 2])


@dataclass(frozen=True)
class KindFigures:
    """What a model scores on one kind of problem, as fractions of 1."""

    p_at_1: float
    p_at_k: float
    maj_at_k: float

    @property
    def learned(self) -> bool:
        """Whether the majority is right on at least half of its problems."""
        return self.maj_at_k >= LEARNED


def by_kind(samples: Sequence[Samples], kinds: Iterable[str]) -> dict[str, KindFigures]:
    """The figures of each kind that has examples among the samples, in the order of `kinds`."""
    found = {}
    for kind in kinds:
        if members := [item for item in samples if item.kind == kind]:
            found[kind] = KindFigures(
                p_at_1=float(np.mean([item.accuracy for item in members])),
                p_at_k=float(np.mean([any(item.correct) for item in members])),
                maj_at_k=float(np.mean([item.vote_correct for item in members])),
            )
    return found


@dataclass(frozen=True)
class Origin:
    """What a run was made from, and when: md5s of data and base model as DVC has them, settings, the code's commit."""

    data: str = ""
    base: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    finished: str | None = None  # when, UTC


@dataclass(frozen=True)
class Shown:
    """Two rollouts of a validation problem, one right and one wrong, as far as there were such; share: how many were.

    Each is a rationale and the answer behind it.
    """

    id: str
    prompt: str
    gold: str
    share: float
    right: Sequence[str] | None
    wrong: Sequence[str] | None


@dataclass(frozen=True)
class Run:
    """One arm, one seed: how it was trained and what its best checkpoint scores. curves: NaN where a step has none.

    shown: by step of validation, rollouts of some problems, the same at every step; empty where none were kept.
    """

    seed: int
    figures: Figures
    samples: list[Samples]
    curves: Mapping[str, Values]
    steps: int
    best_step: int
    wall_seconds: float
    checkpoint: str
    mlflow_run_id: str
    model_name: str
    model_version: str
    stopped: str | None = None  # why a race ended it at its last step
    origin: Origin = field(default_factory=Origin)
    shown: Mapping[int, list[Shown]] = field(default_factory=dict)

    @property
    def escape_step(self) -> int | None:
        """The middle of the first SMOOTHED steps half of whose training examples had P of 0.1 or more; or never."""
        shares = np.nan_to_num(self.curves["train/escaped"])
        means = np.convolve(shares, np.ones(SMOOTHED) / SMOOTHED, "valid") if len(shares) >= SMOOTHED else np.empty(0)
        reached = np.flatnonzero(means >= 0.5 - 1e-9)
        return int(reached[0]) + (SMOOTHED + 1) // 2 if len(reached) else None


@dataclass(frozen=True)
class ArmResults:
    """An arm and its runs, one a seed."""

    name: str
    arm: Arm
    runs: list[Run]

    @property
    def label(self) -> str:
        """The arm as tables and charts call it."""
        return label_of(self.arm)

    @property
    def figures(self) -> Figures:
        """Medians over its seeds."""
        return Figures.median([run.figures for run in self.runs])


@dataclass(frozen=True)
class Results:
    """Everything the report shows. base_samples and forecasts are empty where the probe left none."""

    task: str
    start: str
    split: str
    k: int
    examples: int
    probe: Probe
    base: Figures
    base_samples: list[Samples]
    arms: list[ArmResults]
    forecasts: list[Forecast] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The kinds of problems that the arms were tested on, the warmest under the base model first."""
        tested = {sample.kind for sample in self.arms[0].runs[0].samples} - {""}
        return [kind for kind in self.probe.kinds if kind in tested] + sorted(tested - self.probe.kinds.keys())

    @property
    def base_kinds(self) -> dict[str, KindFigures]:
        """The base model's figures on each kind of problem."""
        return by_kind(self.base_samples, self.kinds)

    def kinds_of(self, item: ArmResults) -> dict[str, KindFigures]:
        """An arm's figures on each kind of problem: medians over its seeds."""
        seeds = [by_kind(run.samples, self.kinds) for run in item.runs]
        return {
            kind: KindFigures(
                *(median(getattr(seed[kind], name) for seed in seeds) for name in KindFigures.__dataclass_fields__)
            )
            for kind in self.kinds
        }

    @property
    def ordered(self) -> list[ArmResults]:
        """The arms by q: before all those without one, behind all those whose q moves."""
        return sorted(self.arms, key=lambda item: place_of(item.arm))

    def place(self, item: ArmResults) -> int:
        """An arm's place in the order by q, by which the page knows its colour."""
        return [arm.name for arm in self.ordered].index(item.name)

    def rows(self) -> list[dict[str, Any]]:
        """One flat object for the base model and for each run, as in results.json."""
        common = {"task": self.task, "start": self.start}
        nobody = dict.fromkeys((*MADE, "checkpoint"))
        base = {"arm": "base", "method": "base", "q": None, "seed": None, "split": self.split}
        rows = [common | base | self._flat(self.base) | self._flat_kinds(self.base_kinds) | nobody | {"finished": None}]
        for item in self.arms:
            for run in item.runs:
                who = {"arm": item.name, "method": item.arm.method.value, "q": item.arm.q_recorded, "seed": run.seed}
                made = {name: getattr(run, name) for name in nobody} | {"finished": run.origin.finished}
                figures = self._flat(run.figures) | self._flat_kinds(by_kind(run.samples, self.kinds))
                rows.append(common | who | {"split": self.split} | figures | made)
        return rows

    def _flat_kinds(self, figures: Mapping[str, KindFigures]) -> dict[str, Any]:
        """Nothing where kinds are not told apart."""
        names = {"p_at_1": "p_at_1", "p_at_k": f"p_at_{self.k}", "maj_at_k": f"maj_at_{self.k}"}
        kinds = {
            kind: {name: getattr(found, field) for field, name in names.items()} for kind, found in figures.items()
        }
        return {"kinds": kinds} if kinds else {}

    def _flat(self, figures: Figures) -> dict[str, Any]:
        named = {"p_at_1": figures.p_at_1, f"p_at_{self.k}": figures.p_at_k, f"maj_at_{self.k}": figures.maj_at_k}
        flat: dict[str, Any] = {}
        for name, estimate in named.items():
            flat |= {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}
        if figures.value_at_1 is not None:
            flat["value_at_1"] = figures.value_at_1.value
        return flat | {"exact_at_1": figures.exact_at_1.value}
