"""`thaw train` with a model of the size people train, on a CPU: does it run, in what memory, how long is a step?

    python -m benchmarks.full_size --raw FOLDER --tokenizer FOLDER   # FinQA's files; a folder with Qwen3's tokenizer

A Qwen3-0.6B with random weights in bfloat16 trains two steps on real prompts with the settings of
infra/profiles/paper/finqa-cold.yaml, but for what SETTINGS says: few and short rollouts, and ZeRO 3 with checkpointing,
which step the optimizer some weights at a time. glibc is told to give back what is freed. Rollouts come from vLLM in
the trainer's process. Memory is the most that this process, which is one of its own, had resident. Writes
build/bench/full-size.json.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.shapes import QWEN3_06B
from components.progress import say
from components.tracking.runs import connect

OUT = Path("build/bench/full-size.json")
PROFILE = Path(__file__).parent.parent / "infra/profiles/paper/finqa-cold.yaml"
SETTINGS = [
    "train.zero_stage=3", "train.gradient_checkpointing=true", "train.steps=2", "train.validate_every=2",
    "train.groups_per_step=2", "rollout.group_size=4", "rollout.max_new_tokens=96", "rollout.answer_reserve=32",
    "task.max_prompt_tokens=1024", "task.train=8", "task.validation=2", "task.test=2", "evaluation.samples=2",
    "model.revision=null", "compute.threads=2",
]  # fmt: skip

# glibc would keep what is freed in blocks of up to 32 MB; so it goes back.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def main() -> None:
    parser = argparse.ArgumentParser(description="A full-size model on a CPU.")
    parser.add_argument("--raw", type=Path, required=True, help="with FinQA's train.json and dev.json")
    parser.add_argument("--tokenizer", type=Path, required=True, help="with Qwen3's tokenizer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _write_model(options.tokenizer, root / "model")
        settings = ["--params", PROFILE]
        for setting in [*SETTINGS, "model.name=model", f"task.path={options.raw.resolve()}"]:
            settings += ["--set", setting]
        _thaw(root, "prepare", "--out", "data", *settings)
        _thaw(root, "base", "--out", "base", *settings)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.perf_counter()
        _thaw(root, "train", "--arm", "garl-q1", "--data", "data", "--base", "base", "--out", "run", *settings)
        seconds = time.perf_counter() - started
        most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        assert most > before, "another process than the training one was the largest"
        found = _measured(root) | {"seconds": seconds, "peak_bytes": most * 1024}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say("\n".join(f"{name}: {value:,.3f}" for name, value in found.items()))
    say(f"written {OUT}")


def _write_model(tokenizer: Path, folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(**QWEN3_06B, tie_word_embeddings=True, max_position_embeddings=40_960)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)


def _thaw(folder: Path, *arguments: object) -> None:
    """A command of Thaw in a folder that is no project: there its store is a file beside the run."""
    command = [str(Path(sys.executable).with_name("thaw")), *map(str, arguments)]
    subprocess.run(command, check=True, cwd=folder, env=os.environ | RETURNING)


def _measured(root: Path) -> dict[str, float]:
    record = json.loads((root / "run" / "train.json").read_text(encoding="utf-8"))
    client = connect(root).store.client
    history = {
        name: [item.value for item in client.get_metric_history(record["mlflow_run_id"], name)]
        for name in ("speed/step_seconds", "speed/rollout_seconds", "mismatch/mean_abs", "mismatch/max_abs")
    }
    means = {name: statistics.mean(values) for name, values in history.items()}
    return means | {"checkpoint_bytes": float((root / "run/final/model.safetensors").stat().st_size)}


if __name__ == "__main__":
    main()
