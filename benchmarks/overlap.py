"""Sampling and updating one after the other (rollout.staleness 0) and at the same time (1): time a step, and outcome.

    python -m benchmarks.overlap              # five seeds of each, some 200 steps a run; --quick for a look

vLLM's server has one core and the trainer another. Both sides train the embedded task with the same settings, truncated
importance weights included, which are 1 where nothing is stale; a seed's two runs follow each other. Where sampling
takes S seconds and an update U, no overlap can be better than (S + U) / max(S, U): the table has both.
Writes build/bench/overlap.json, an object for each run, and a line for each staleness.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from components.config import Arm, load_settings
from components.policy.base import make_base
from components.progress import say
from components.rollout.server_process import ServerProcess
from components.tracking.runs import Tracker, connect
from components.training.loop import train
from tasks.inputs import make_data

OUT = Path("build/bench/overlap.json")
ARM = Arm.parse("garl-q1")
SPEEDS = {"step_seconds": "step_seconds", "sampling_seconds": "rollout_seconds", "update_seconds": "update_seconds"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampling and updating in turns, and at the same time.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed of ten steps, hardly taught")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both sides")
    options = parser.parse_args()
    quick = ["teaching.steps=4", "train.steps=10", "train.validate_every=10"] if options.quick else []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("sampler and trainer need a core each, and this process has one.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, rows = Path(folder), []
        settings = load_settings(overrides=[*quick, *options.set])
        make_data(settings, root / "data")
        make_base(settings, root / "base")
        with _server(root / "base", core=cores[1]) as url:
            os.sched_setaffinity(0, {cores[0]})
            for seed in range(1 if options.quick else options.seeds):
                rows += [_run(root, staleness, seed, url, [*quick, *options.set]) for staleness in (0, 1)]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    say(f"\n{_table(rows)}\n\nwritten {OUT}")


@contextmanager
def _server(base: Path, *, core: int) -> Iterator[str]:
    """A server whose processes all run on one core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # children inherit it
    server = ServerProcess(base, dtype="float32")
    os.sched_setaffinity(0, everywhere)
    try:
        yield server.url
    finally:
        server.close()


def _run(root: Path, staleness: int, seed: int, url: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, and tell medians over the steps behind the second one: the first steps wait for all to get going."""
    settings = load_settings(
        overrides=[
            "rollout.engine=vllm", f"rollout.placement={url}", f"rollout.staleness={staleness}",
            "train.importance_weights=truncated", *overrides,
        ]
    )  # fmt: skip
    out, tracker = root / f"{staleness}-{seed}", connect(root)
    record = train(settings, ARM, seed, data=root / "data", base=root / "base", out=out, tracker=tracker)
    assert record is not None
    right = record.validated[str(record.steps)]["right"]
    return {
        "staleness": staleness,
        "seed": seed,
        **{name: _median(tracker, record.mlflow_run_id, f"speed/{metric}") for name, metric in SPEEDS.items()},
        f"maj_at_{settings.evaluation.samples}": 100 * statistics.mean(float(value or 0) for value in right),
        "steps": record.steps,
    }


def _median(tracker: Tracker, run_id: str, metric: str) -> float:
    history = tracker.store.client.get_metric_history(run_id, metric)
    return statistics.median(item.value for item in history if item.step > 2)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the seeds, and every seed's outcome."""
    outcome = next(name for name in rows[0] if name.startswith("maj_at_"))
    lines = [
        f"| staleness | step s | sampling s | update s | {outcome.replace('_at_', '@')} of each seed |",
        "|---" * 5 + "|",
    ]
    for staleness in (0, 1):
        own = [row for row in rows if row["staleness"] == staleness]
        seconds = " | ".join(f"{statistics.median(row[name] for row in own):.3f}" for name in SPEEDS)
        lines.append(f"| {staleness} | {seconds} | {', '.join(f'{row[outcome]:g}' for row in own)} |")
    ratios = [a["step_seconds"] / b["step_seconds"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    lines += ["", f"a step of staleness 0 / one of 1, of each seed: {', '.join(f'{ratio:.2f}' for ratio in ratios)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
