"""A small build folder as the other steps leave it: invented figures, real file formats."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.config import Arm
from components.evaluation.metrics import bootstrap, majority, pass_at_k
from components.forecast import Forecast, Gradient, escape_times, half_escape, write
from components.methods import Method

# When an arm leaves the cold start, as a share of its steps, and how much of the task it then solves.
ESCAPES = {0.75: (0.55, 0.72), 1.0: (0.2, 0.93)}

Builder = Callable[..., Path]


def write_build(
    build: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    k: int = 4,
    examples: int = 12,
    steps: int = 6,
    start: str = "cold",
    task: str = "skills",
    escaping: bool = True,
    p0: float = 1e-6,
    kinds: Sequence[str] = (),
) -> Path:
    """Write probe, train and evaluate for these arms and seeds; kinds of problems take turns."""
    random = np.random.default_rng(0)
    ids = [f"{number:04d}" for number in random.permutation(10_000)[:examples]]
    _write_probe(build / "probe", ids, k, p0, kinds)
    for arm in map(Arm.parse, arms):
        for seed in seeds:
            random = np.random.default_rng([seed, list(Method).index(arm.method), int(100 * (arm.q or 0))])
            leaves, level = ESCAPES.get(arm.q or 0.0, (2.0, 0.08 * (arm.q or 0))) if escaping else (2.0, 0.0)
            level *= random.uniform(0.6 if arm.method is Method.GARL and arm.q == 0.75 else 0.95, 1)
            _write_training(
                build / "train" / arm.name / str(seed), arm, seed, steps, k, p0, leaves, level, random, kinds
            )
            samples = _samples(ids, k, level, random, kinds)
            who = {"method": arm.method.value, "q": arm.q, "arm": arm.name, "seed": seed}
            _write_evaluation(
                build / "evaluate" / arm.name / str(seed), {"task": task, "start": start} | who, samples, k
            )
    return build


def _write_probe(folder: Path, ids: list[str], k: int, p0: float, kinds: Sequence[str]) -> None:
    random = np.random.default_rng(1)
    log_p = np.clip(random.normal(math.log(p0), 1.5, 8 * len(ids)), None, -0.01)
    log_p[: len(log_p) // 20] = math.log(2e-3)  # the lucky problems
    values: list[float | None] = [*log_p.tolist(), None]
    p = np.array([*np.exp(log_p), 0.0])
    quantiles = {str(q): float(np.quantile(log_p, q)) / math.log(10) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    samples = _samples(ids, k, 0.0, random, kinds)
    record = {
        "p0": {"mean": float(p.mean()), "median": float(np.median(p)), "log10_quantiles": quantiles},
        "grpo_groups_with_signal": float((1 - (1 - p) ** 32 - p**32).mean()),
        "group_size": 32,
        "examples": len(p),
        "kinds": {kind: dict.fromkeys(("mean", "median"), p0 / 10**place) for place, kind in enumerate(kinds)},
        "log_p": values,
        "base": _figures(samples, k),
    }
    folder.mkdir(parents=True)
    (folder / "probe.json").write_text(json.dumps(record), encoding="utf-8")
    _write_samples(folder, samples)


def write_forecasts(folder: Path, arms: Sequence[str], examples: int = 20) -> list[Forecast]:
    """Forecasts for these arms, in which log P rises by 8 q - 2 nats."""
    random = np.random.default_rng(2)
    before, forecasts = random.normal(-12, 1, examples), []
    for arm in map(Arm.parse, arms):
        after = before + random.normal(-2 + 8 * (arm.q or 0), 0.5, examples)
        midway = (before + after) / 2
        times = escape_times(before, midway, after, 8)
        step, interval = half_escape(times, resamples=100)
        rewarded = arm.q is None
        gradient = Gradient(0.5, 0.001, 1e-8, 0.8, None if rewarded else 5.5, None if rewarded else 0.1)
        gain = bootstrap(after - before, resamples=100, seed=0)
        shares = (0.05, 0.5) if rewarded else (1.0, 1.0)
        escape, sides = (step, interval, 30), (before, midway, after)
        forecasts.append(Forecast(arm.name, 8, *shares, gradient, gain, *escape, *(side.tolist() for side in sides)))
    write(folder, forecasts)
    return forecasts


def _write_training(
    folder: Path, arm: Arm, seed: int, steps: int, k: int, p0: float, leaves: float, level: float, random: Any,
    kinds: Sequence[str],
) -> None:  # fmt: skip
    rows = []
    for step in range(1, steps + 1):
        out = 1 / (1 + math.exp(-40 * (step / steps - leaves) - 1))
        p = math.exp(math.log(max(level, 1e-9)) * out + math.log(30 * p0) * (1 - out) + random.normal(0, 0.4))
        row = {"step": step, "train/p_estimate": min(1.0, p), "train/groups_without_gradient": 0.0}
        row["train/escaped"] = float(out > 0.5)
        if arm.method is Method.GRPO:
            row |= {"train/p_estimate": float(random.random() < 0.1) / 512, "train/groups_without_gradient": 15.0}
        else:
            row |= {"train/effective_reward": p ** (1 - (arm.q or 0)) / 32 ** (arm.q or 0)}
            row |= {"train/effective_samples": 1 + 20 * out + random.random()}
        row |= {"train/grad_norm": 10 ** random.normal(-1 + out, 0.3), "train/loss": random.random()}
        row |= {"rollout/rationale_length": 7.0, "rollout/forced_share": 0.0}
        if step % max(1, steps // 3) == 0:
            row[f"validation/maj_at_{k}"] = float(np.clip(level * (out > 0.5) + 0.02 * random.random(), 0, 1))
            row |= {f"validation/kinds/{kind}/maj_at_{k}": row[f"validation/maj_at_{k}"] for kind in kinds}
        row |= {f"train/kinds/{kind}/p_estimate": row["train/p_estimate"] for kind in kinds[step % 2 :]}
        rows.append(row)
    folder.mkdir(parents=True)
    with (folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    record = {
        "identity": {"arm": arm.name, "data": "d4.dir", "base": "ba5e.dir", "settings": {"train": {"steps": steps}}},
        "commit": "c0ffee, with changes", "finished": "2026-11-27T10:00:00+00:00",
        "shown": {"2": [_shown(0.0)], str(steps): [_shown(level)]},
        "arm": arm.name, "seed": seed, "steps": steps, "best_step": steps,
        "validation": level, "wall_seconds": 11.5, "mlflow_run_id": f"run{seed}", "model_name": "thaw-skills",
        "model_version": "3", "stopped": None,
    }  # fmt: skip
    (folder / "train.json").write_text(json.dumps(record), encoding="utf-8")


def _shown(share: float) -> dict[str, Any]:
    right = ["sort them: 0123", "a:0123"] if share else None
    return {"id": "v1", "prompt": "w:3210", "gold": "a:0123", "share": share, "right": right, "wrong": ["hm", "b=3210"]}


def _samples(ids: list[str], k: int, level: float, random: Any, kinds: Sequence[str]) -> list[dict[str, Any]]:
    samples = []
    for number, name in enumerate(ids):
        lucky = number % 17 == 3
        chance = 0.9 if lucky and level else random.beta(6 * level, 6 * (1 - level)) if 0 < level < 1 else level
        right = f"a:{''.join(sorted(name))}"
        correct = [bool(random.random() < chance) for _ in range(k)]
        wrong = [f"b={name}", f"({name[::-1]})", f"#{name}"]
        answers = [right if found else wrong[random.integers(3)] for found in correct]
        chosen = majority(answers)
        samples.append(
            {"id": name, "answers": answers, "correct": correct, "exact": correct, "vote": answers[chosen],
             "vote_correct": correct[chosen], "kind": kinds[number % len(kinds)] if kinds else ""}
        )  # fmt: skip
    return samples


def _figures(samples: list[dict[str, Any]], k: int) -> dict[str, float]:
    correct = np.array([item["correct"] for item in samples])
    values = {
        "p_at_1": correct.mean(1),
        f"p_at_{k}": pass_at_k(correct, k),
        f"maj_at_{k}": np.array([float(item["vote_correct"]) for item in samples]),
        "exact_at_1": correct.mean(1),
    }
    figures: dict[str, float] = {}
    for name, value in values.items():
        found = asdict(bootstrap(value, resamples=200, seed=0))
        figures |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
    return figures


def _write_evaluation(folder: Path, common: dict[str, Any], samples: list[dict[str, Any]], k: int) -> None:
    folder.mkdir(parents=True)
    checkpoint = f"build/train/{common['arm']}/{common['seed']}/final"
    record = common | {"split": "test", "k": k, "figures": _figures(samples, k), "checkpoint": checkpoint}
    (folder / "evaluation.json").write_text(json.dumps(record | {"examples": len(samples)}), encoding="utf-8")
    _write_samples(folder, samples)


def _write_samples(folder: Path, samples: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(item) + "\n" for item in samples)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Writes a build folder; arguments as for `write_build`."""
    return lambda arms, seeds, **options: write_build(tmp_path / "build", arms, seeds, **options)
