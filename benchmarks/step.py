"""Step time, tokens a second and peak memory of Thaw beside TRL's GRPOTrainer: `make bench-step`.

Every case runs in a process of its own, one after the other. Writes step.json, step.md and step.svg.
"""

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

warnings.filterwarnings("ignore")

Result = dict[str, Any]
ARMS = ("grpo", "garl-q0.75", "paft-q0.75")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short prompts and M = 32 alone, one step each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each system")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.systems"])
    results = []
    for case in cases(options.quick, options.threads):
        with context.Pool(1) as pool:
            results.append(pool.apply(measured, (case,)))
        print(_line(results[-1]), file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "step.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = table(results)
    (options.out / "step.md").write_text(text, encoding="utf-8")
    plot(results, options.out / "step.svg")
    print(text)


def cases(quick: bool, threads: int) -> Iterator[Any]:
    """What is compared at B = 16, M = 32; then how Thaw grows with M and with new tokens.

    Both have the micro-batch that was quickest of those tried: TRL 128 rows for short prompts, 8 for long ones, 32 for
    the long tail; Thaw 2048 tokens for short prompts, else the default, 4096.
    A step of TRL with long prompts takes a minute, so that one is measured, without a warm-up.
    """
    from benchmarks.systems import Case

    steps = 1 if quick else 3
    short = Case("thaw", "grpo", prompt_tokens=8, micro_batch_tokens=2048, steps=steps, threads=threads)
    yield replace(short, system="trl", micro_batch=128)
    yield from (replace(short, method=arm) for arm in ARMS)
    tail = replace(short, lengths="long-tail", new_tokens=512, micro_batch_tokens=None, steps=1)
    yield replace(tail, system="trl", micro_batch=32, warm_up=0)
    yield tail
    if quick:
        return
    long = replace(short, prompt_tokens=400, micro_batch_tokens=None)
    yield replace(long, system="trl", micro_batch=8, steps=1, warm_up=0)
    yield from (replace(long, method=arm) for arm in ARMS)
    for group_size in (8, 64, 128):
        yield replace(short, group_size=group_size)
        yield replace(long, group_size=group_size, steps=2)
    for new_tokens in (48, 96, 192):
        yield replace(short, method="garl-q0.75", new_tokens=new_tokens, steps=1)


def measured(case: Any) -> Result:
    """Measure one case in a process that ends with it."""
    warnings.filterwarnings("ignore")
    os.environ["OMP_NUM_THREADS"] = str(case.threads)
    from benchmarks.systems import measure

    found = measure(case)
    return {
        "system": case.system,
        "method": case.method,
        "prompt_tokens": case.prompt_tokens,
        "group_size": case.group_size,
        "new_tokens": case.new_tokens,
        "part": "gradient pass" if case.lengths else "step",
        "step_seconds": found.step_seconds,
        "cpu_seconds": found.cpu_seconds,
        "peak_bytes": found.peak_bytes,
        "tokens_per_second": found.tokens / found.step_seconds,
        "case": asdict(case),
    }


def _line(row: Result) -> str:
    name = f"{row['system']} {row['method']}, {row['part']}, prompt {row['prompt_tokens']}, M {row['group_size']}"
    return f"{name}, {row['new_tokens']} new tokens: {row['step_seconds']:.2f} s, {row['cpu_seconds']:.2f} s CPU"


def table(results: list[Result]) -> str:
    """The comparison in Markdown; times faster than TRL in the same run."""
    lines = [
        "| part | prompt | M | new tokens | system | seconds | CPU seconds | tokens/s | peak MiB | TRL's time / this |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        peer = [other for other in results if other["system"] == "trl" and _shape(other) == _shape(row)]
        faster = f"{peer[0]['step_seconds'] / row['step_seconds']:.2f}" if peer else ""
        new = f"mean {row['new_tokens'] // 8}, most {row['new_tokens']}" if _tailed(row) else row["new_tokens"]
        name = "TRL GRPO" if row["system"] == "trl" else f"Thaw {row['method']}"
        figures = (
            f"{row['step_seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['peak_bytes'] / 2**20:.0f}",
            faster,
        )
        cells = (row["part"], row["prompt_tokens"], row["group_size"], new, name, *figures)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _tailed(row: Result) -> bool:
    return row["case"]["lengths"] == "long-tail"


def _shape(row: Result) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("part", "prompt_tokens", "group_size", "new_tokens"))


def plot(results: list[Result], path: Path) -> None:
    """Time and memory of Thaw's step over M and over new tokens; straight lines through zero would be linear growth."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    steps = [row for row in results if row["system"] == "thaw" and row["part"] == "step"]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True)
    columns = (
        ("group_size", {"method": "grpo", "new_tokens": 24}, "M, rollouts of a group"),
        ("new_tokens", {"method": "garl-q0.75", "group_size": 32}, "new tokens of a rollout"),
    )
    for column, (across, fixed, label) in enumerate(columns):
        for prompt in sorted({row["prompt_tokens"] for row in steps}):
            same = fixed | {"prompt_tokens": prompt}
            rows = [row for row in steps if all(row[name] == value for name, value in same.items())]
            rows.sort(key=lambda row: row[across])
            x, name = [row[across] for row in rows], f"{prompt}-token prompts"
            axes[0][column].plot(x, [row["step_seconds"] for row in rows], "o-", label=name)
            axes[1][column].plot(x, [row["peak_bytes"] / 2**20 for row in rows], "o-", label=name)
        axes[0][column].set(title=fixed["method"], ylabel="seconds a step", xlim=(0, None), ylim=(0, None))
        axes[1][column].set(xlabel=label, ylabel="peak MiB", xlim=(0, None), ylim=(0, None))
        axes[0][column].legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
