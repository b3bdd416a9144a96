"""The gradient pass of Qwen3-0.6B (random weights, bfloat16) on one GPU, Thaw beside TRL: `python -m benchmarks.gpu`.

Needs torch for CUDA, transformers, accelerate, datasets, deepspeed and trl; writes gpu.json and gpu.md. Model FLOPs
utilisation counts what the mathematics asks for, the same for both systems: every prompt once a group, no padding.
"""

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import Result, measured, table
from benchmarks.systems import Case, completion_lengths

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}  # bfloat16, dense, from data sheets
SHAPES = {"finqa": {"prompt_tokens": 1024, "new_tokens": 2048, "lengths": "long-tail"},
          "long": {"prompt_tokens": 1024, "new_tokens": 4096, "lengths": "full"}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--micro-batch-tokens", type=int, default=32768, help="of Thaw")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows of TRL")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16; known for " + ", ".join(PEAK_TFLOPS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU is visible to PyTorch; benchmarks.step measures on the CPU.")
    gpu, peak = torch.cuda.get_device_name(), options.peak_tflops or peak_tflops()
    context = multiprocessing.get_context("spawn")
    results: list[Result] = []
    for shape in SHAPES.values():
        for system, method in (("trl", "grpo"), ("thaw", "grpo"), ("thaw", "garl-q0.75"), ("thaw", "paft-q0.75")):
            case = Case(
                system, method, **shape, model="qwen3-0.6b", groups=options.groups, group_size=options.group_size,
                micro_batch=options.micro_batch, micro_batch_tokens=options.micro_batch_tokens,
            )  # fmt: skip
            with context.Pool(1) as pool:
                row = pool.apply(measured, (case,))
            row["mfu"] = model_flops(case) / row["step_seconds"] / (peak * 1e12) if peak else None
            results.append(row | {"gpu": gpu})
            print(json.dumps(results[-1]), file=sys.stderr)
            _write(results, options.out)  # each time: whoever rents a GPU may have to stop early
    print((options.out / "gpu.md").read_text(encoding="utf-8"))


def _write(results: list[Result], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = f"{results[0]['gpu']}\n\n{table(results)}\n" + "".join(f"- {_mfu(row)}\n" for row in results)
    (out / "gpu.md").write_text(text, encoding="utf-8")


def peak_tflops() -> float | None:
    """Of the visible GPU in bfloat16; None where it is not known, or there is none."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((value for name, value in PEAK_TFLOPS.items() if name in gpu), None)


def model_flops(case: Case) -> float:
    """Floating-point operations of one gradient pass: 6 a weight and id, and causal attention, forward and backward."""
    weights = 28 * (1024 * 128 * (16 + 8 + 8) + 16 * 128 * 1024 + 3 * 1024 * 3072)
    head = 1024 * 151_936  # of scored ids alone
    lengths, prompt = completion_lengths(case), case.prompt_tokens
    ids = case.groups * prompt + sum(lengths)
    pairs = case.groups * prompt**2 / 2 + sum(prompt * length + length**2 / 2 for length in lengths)
    return 6 * (weights * ids + head * sum(lengths)) + 12 * 28 * 16 * 128 * pairs


def _mfu(row: dict[str, Any]) -> str:
    share = "unknown, name the GPU's peak with --peak-tflops" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return f"{row['system']} {row['method']}, {row['new_tokens']} new tokens at most: MFU {share}"


if __name__ == "__main__":
    main()
