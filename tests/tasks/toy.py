"""A pipeline of the project's shape whose stages are shell commands that take no time: real DVC, real processes."""

import subprocess
from pathlib import Path

import yaml

from components.config import load_settings
from tests.conftest import PROJECT, SMALL

PIPELINE = """
stages:
  prepare:
    cmd: mkdir -p build && cp raw.txt build/data
    deps: [raw.txt]
    params: [task.train]
    outs: [build/data]
  base:
    cmd: mkdir -p build && echo taught > build/base
    params: [teaching]
    outs: [build/base]
  probe:
    cmd: cat build/data build/base > build/probe
    deps: [build/data, build/base]
    outs: [build/probe]
  train:
    matrix:
      arm: ${arms}
      seed: ${seeds}
    cmd: sh train.sh ${item.arm} build/train/${item.arm}/${item.seed}
    deps: [build/data, build/base, train.sh]
    params: [train.steps]
    outs:
      - build/train/${item.arm}/${item.seed}/final
  evaluate:
    matrix:
      arm: ${arms}
      seed: ${seeds}
    cmd: sh evaluate.sh ${item.arm}/${item.seed}
    deps:
      - build/train/${item.arm}/${item.seed}/final
    outs:
      - build/evaluate/${item.arm}/${item.seed}
  report:
    cmd: cat build/evaluate/*/* > build/report
    deps: [build/evaluate]
    outs: [build/report]
"""
TRAIN = """
mkdir -p $2
echo started >> $2/log
echo training $1
echo weights of $1 > $2/final
"""
EVALUATE = """
mkdir -p build/evaluate/$(dirname $1)
cp build/train/$1/final build/evaluate/$1
"""
ARMS = ["grpo", "paft-q0.75"]


def toy_project(folder: Path, *overrides: str, train: str = TRAIN) -> Path:
    """A DVC project in `folder`, which must not exist; `train` is the shell script of its train stages."""
    settings = load_settings(PROJECT / "params.yaml", [*SMALL, f"arms=[{', '.join(ARMS)}]", *overrides])
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_bytes((PROJECT / ".dvc" / "config").read_bytes())
    for name, text in {
        "params.yaml": yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False),
        "dvc.yaml": PIPELINE,
        "raw.txt": "raw\n",
        "train.sh": train,
        "evaluate.sh": EVALUATE,
    }.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder
