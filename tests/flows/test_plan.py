"""`thaw plan`: what it prints, that it fits a terminal, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.flows.conftest import Thaw
from tests.flows.test_cli import files, sentence

# The shapes of Qwen/Qwen3-32B; 32,762,123,264 parameters.
CONFIG = {
    "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 5120, "intermediate_size": 25_600,
    "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40_960, "tie_word_embeddings": False,
}  # fmt: skip
LARGE = ("model.name=large", "model.dtype=bfloat16", "rollout.engine=vllm", "train.zero_stage=3",
         "train.gradient_checkpointing=true", "compute.processes=8", "task.max_prompt_tokens=1024",
         "rollout.max_new_tokens=2048", "train.micro_batch_tokens=4096")  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def changed(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def test_the_embedded_model_fits_where_it_stands(folder: Path, thaw: Thaw) -> None:
    before = files(folder)
    said = thaw(folder, "plan")
    assert said.status == 0, said.err
    assert said.out.startswith("Computed, not measured")
    assert "99,008 parameters, float32; ZeRO 0; processes: 1" in said.out
    assert "Fits this machine's memory (" in said.out
    assert any(line.split() == ["sampled", "10,240"] for line in said.out.splitlines())  # 16 x 32 x 20
    assert max(map(len, said.out.splitlines())) <= 80
    assert files(folder) == before


@pytest.mark.slow
def test_thirty_two_billion_fit_eight_gpus_if_others_sample(folder: Path, thaw: Thaw) -> None:
    said = thaw(folder, "plan", "--memory", "80", *changed(*LARGE, "rollout.placement=http://a:8000"))
    assert said.status == 0, said.err
    assert "32,762,123,264 parameters, bfloat16; ZeRO 3; processes: 8" in said.out
    assert "Fits a GPU (80.0 GB a process)." in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    said = thaw(folder, "plan", "--memory", "80", *changed(*LARGE))
    assert "Does not fit a GPU (80.0 GB a process): vLLM gets 32.0 GB of it, less than" in said.out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (changed("model.name=nowhere"), "no model config can be read from 'nowhere' on this machine"),
        (changed("model.name=a/b/c"), "'a/b/c' on this machine (there is no such folder.); name a folder with its"),
        (["--memory", "0"], "--memory 0 is no memory of a GPU"),
        (["--memory", "nan"], "--memory nan is no memory of a GPU"),
        (changed("compute.hostfile=hosts"), "compute.hostfile = hosts cannot be read (No such file or directory)"),
        (changed("rollout.max_new_tokens=100000"), "leaves nothing of the model's context"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_told_in_one_sentence(
    folder: Path, thaw: Thaw, arguments: list[str], told: str
) -> None:
    before = files(folder)
    assert told in sentence(thaw(folder, "plan", *arguments))
    assert files(folder) == before


def test_every_slot_of_every_host_trains(folder: Path, thaw: Thaw) -> None:
    (folder / "hosts").write_text("# ours\na slots=2\nb.example slots=4\n")
    assert "processes: 6\n" in thaw(folder, "plan", *changed("compute.hostfile=hosts")).out
