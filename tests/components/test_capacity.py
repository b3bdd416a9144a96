"""What a run is computed to take, beside what small runs were measured to take."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.peak import peak_of
from components.capacity import Capacity, capacity
from components.errors import UserError
from components.pass_memory import micro_batch_bytes
from components.policy.logprobs import Row, Scorer
from components.policy.lora import add_adapters
from components.policy.model import load_shapes
from tests.components.capacity_on_ranks import CASES, SHARED, build, measure, settings
from tests.components.processes import run
from tests.conftest import small_settings

pytestmark = pytest.mark.usefixtures("one_thread")
GB = 10**9


def computed(dtype: str, stage: int, lora_rank: int, processes: int = 1, *others: str) -> Capacity:
    with torch.device("meta"):
        policy = build(dtype)
    if lora_rank:
        add_adapters(policy, lora_rank, 0)
    chosen = settings(dtype, stage, lora_rank, *others)
    return capacity(policy, chosen, processes=processes, device_bytes=10 * GB, gpu=True)


def compare(found: dict[str, int], expected: Capacity, stage: int, over: float = 1.06) -> None:
    """over: the most that a step may take at its peak, as a share of what was computed."""
    state = expected.state
    assert (found["weights"], found["master"], found["moments"]) == (state.weights, state.master, state.moments)
    lasting = state.bytes if stage == 3 else state.bytes - state.gradients
    assert found["gradients"] == (state.gradients if stage == 3 else 0)
    assert lasting <= found["live"] <= lasting * 1.06  # with a bucket of ZeRO 3, and numbers by the way
    assert 0.7 * expected.peak <= found["peak"] <= over * expected.peak
    # Beside what it holds a file has names and shapes, some 100 kB in all.
    assert found["saved"] == pytest.approx(expected.disk["state to resume from"] / 2, rel=0.02, abs=100_000)


# One process, and two


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_process_holds_what_was_computed(case: tuple[str, int, int], tmp_path: Path) -> None:
    compare(measure(*case, tmp_path), computed(*case), case[1])


@pytest.mark.slow
def test_each_of_two_processes_holds_what_was_computed(tmp_path: Path) -> None:
    for rank, (status, words) in enumerate(run(2, "tests.components.capacity_on_ranks", tmp_path, timeout=500)):
        assert status == 0, words
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text(encoding="utf-8"))
        for measured, case in zip(found, SHARED, strict=True):
            # What is on its way to the other process is held until that one takes it, on a busy machine later.
            compare(measured, computed(*case, 2), case[1], over=1.12)


# A micro-batch


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_micro_batch_keeps_what_was_computed(
    dtype: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logits in several chunks; measured on the CPU, whose kernels keep little more than their results."""
    monkeypatch.setattr("components.policy.logprobs.LOGITS_AT_ONCE", 2**18)
    config = Qwen3Config(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    policy = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    for model in (shapes, policy) if checkpointing else ():
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in policy.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    scorer = Scorer(policy)
    batch = scorer.collate([range(128)], [[Row((number,) * 127, (1, 1), 0) for number in range(7)]])

    def run() -> None:
        scorer(batch).sum().backward()

    run()
    assert micro_batch_bytes(shapes, 1024, 128) == pytest.approx(peak_of(run), rel=0.05)


def test_checkpointing_and_adapters_make_a_micro_batch_smaller() -> None:
    sizes = []
    for checkpointing, lora_rank in ((False, 0), (True, 0), (False, 4)):
        with torch.device("meta"):
            policy = build("float32")
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        if lora_rank:
            add_adapters(policy, lora_rank, 0)
        sizes.append(micro_batch_bytes(policy, 256, 32))
    assert sizes[1] < 0.7 * sizes[0]
    assert sizes[2] < sizes[0]


# What settings do


def test_tied_weights_count_once() -> None:
    layer = (
        63 * (2 * 64 + 2 * 32 + 3 * 192 + 2) + 2 * 16
    )  # attention, MLP and two norms; norms of a head's queries, keys
    found = computed("float32", 0, 0)
    assert found.parameters == 63 * 151 + 2 * layer + 63
    assert found.whole == 4 * found.parameters


def test_zero_shares_what_it_says() -> None:
    none, one, three = (computed("bfloat16", stage, 0, 8) for stage in (0, 1, 3))
    assert one.state.moments == pytest.approx(none.state.moments / 8, rel=1e-3)
    assert one.state.weights == pytest.approx(none.state.weights, rel=1e-3)
    assert three.state.bytes == pytest.approx(none.state.bytes / 8, rel=1e-2)


def test_offloading_leaves_the_device_the_weights_at_most() -> None:
    for stage in (2, 3):
        kept, moved = (computed("bfloat16", stage, 0, 2, f"train.offload={offload}") for offload in ("false", "true"))
        assert moved.state.bytes == (kept.state.weights if stage == 2 else 0)
        assert moved.host > kept.state.master + kept.state.moments
        assert kept.host == 0


@pytest.mark.parametrize(
    ("others", "stage", "bytes_"),
    [
        ((), 2, 0),
        ((), 3, "whole"),
        (("rollout.engine=vllm",), 3, 4 * GB),
        (("rollout.engine=vllm", "rollout.placement=server"), 3, 4 * GB),
        (("rollout.engine=vllm", "rollout.placement=http://a:1"), 3, 0),
    ],
)
def test_the_sampler_has_its_share(others: tuple[str, ...], stage: int, bytes_: int | str) -> None:
    found = computed("bfloat16", stage, 0, 2, *others)
    assert found.sampler == (found.whole if bytes_ == "whole" else bytes_)


def test_a_sleeping_sampler_has_its_share_while_it_samples() -> None:
    asleep, awake = (computed("bfloat16", 2, 0, 2, "rollout.engine=vllm", f"rollout.placement={placement}")
                     for placement in ("sleeping", "colocated"))  # fmt: skip
    assert asleep.sampler == 0
    assert asleep.phases[0].bytes == awake.sampler == asleep.vllm == 4 * GB


def test_tokens_and_disk_follow_from_the_settings() -> None:
    found = computed(
        "float32", 0, 0, 2, "train.groups_per_step=6", "train.steps=10", "train.validate_every=4", "train.keep=1"
    )
    assert found.sampled == 6 * 4 * 48
    assert found.prompts == 6 * 16  # the model's context of 64 leaves them as much
    assert found.micro_batch == 64
    assert found.passes == 10  # of three groups of 16 + 4 * 48 tokens
    assert found.disk["checkpoints and final"] == 3 * found.whole  # the last one, the best one, and final
    assert found.disk["versions in MLflow"] == 3 * found.whole


def test_shapes_are_read_without_weights(tmp_path: Path) -> None:
    model = small_settings().model
    assert sum(weight.numel() for weight in load_shapes(model).parameters()) == 99_008
    build("float32").config.save_pretrained(tmp_path)
    shapes = load_shapes(model.model_copy(update={"name": str(tmp_path), "dtype": "bfloat16"}))
    assert {(str(weight.device), weight.dtype) for weight in shapes.parameters()} == {("meta", torch.bfloat16)}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no model config can be read from"):
        load_shapes(model.model_copy(update={"name": str(tmp_path)}))
