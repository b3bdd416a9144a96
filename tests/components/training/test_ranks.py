"""Two processes against one: the same weights, whatever is sharded between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

RUNS = ["garl-q0.75-stage0", "garl-q0.75-stage1", "garl-q0.75-stage2", "garl-q0.75-stage3", "paft-q0.75-stage2",
        "paft-q0.75-stage3", "grpo-stage2", "garl-q0.75-stage3-lora"]  # fmt: skip


@pytest.fixture(scope="module")
def weights(project: Path, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of weights by how many processes made them."""
    found = {}
    for processes in (1, 2):
        found[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run(
            [*launcher, "--module", "tests.components.training.on_ranks", policy_folder, found[processes]],
            cwd=project, env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}, check=True, timeout=300,
        )  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_give_the_weights_of_one(run: str, weights: dict[int, Path], policy_folder: Path) -> None:
    one, two = (load_file(folder / f"{run}.safetensors") for folder in weights.values())
    before = load_file(policy_folder / "model.safetensors")
    assert one.keys() == two.keys() == before.keys()
    for name, weight in one.items():
        assert (two[name] - weight).norm() <= 1e-5 * weight.norm(), name
    assert max((weight - before[name]).norm() / weight.norm() for name, weight in one.items()) > 3e-3
