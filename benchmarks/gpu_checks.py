"""What a GPU has to show: each check compares with the CPU, Transformers or TRL, and demands what must hold."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

ROUNDING = 1e-3  # nats a float32 log-probability may be off; sums of another order alone make 1e-5
Figures = dict[str, float | str]


class CheckFailed(Exception):
    """What a check found was not what it should be."""


class NotHere(Exception):
    """A check that this device has nothing for."""


@dataclass(frozen=True)
class Check:
    """run: gets the device and a folder, and returns its figures. needs: packages. seconds: the least it may take."""

    name: str
    run: Callable[[str, Path], Figures]
    needs: tuple[str, ...] = ()
    seconds: float = 10


def exactness(device: str, _: Path) -> Figures:
    """Log-probabilities and gradients of groups with prompts and rows of all lengths, beside float64 on the CPU.

    bfloat16 is held against Transformers' own forward pass, row by row, in bfloat16 on the same device.
    """
    exact, exact_gradient = _scored(small_policy().double())
    figures: Figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        logprobs, gradient = _scored(small_policy().to(device, dtype))
        name = str(dtype).removeprefix("torch.")
        figures[f"{name} log p, largest error (nats)"] = (logprobs - exact).abs().max().item()
        figures[f"{name} gradient, relative error"] = (
            (gradient - exact_gradient).norm() / exact_gradient.norm()
        ).item()
    plain = _plain(small_policy().to(device, torch.bfloat16))
    figures["bfloat16 log p, Transformers' own largest error (nats)"] = (plain - exact).abs().max().item()
    _demand(figures, "float32 log p, largest error (nats)", most=ROUNDING)
    _demand(figures, "float32 gradient, relative error", most=ROUNDING)
    theirs = float(figures["bfloat16 log p, Transformers' own largest error (nats)"])
    _demand(figures, "bfloat16 log p, largest error (nats)", most=2 * theirs)
    return figures


def transformers_sampler(device: str, _: Path) -> Figures:
    from components.rollout.transformers_engine import TransformersEngine

    policy = small_policy().to(device)
    return _sampled(TransformersEngine(deepcopy(policy), _markers(), batch_rollouts=64), policy)


def vllm_colocated(_: str, folder: Path) -> Figures:
    return _vllm(folder, sleeps=False)


def vllm_sleeping(device: str, folder: Path) -> Figures:
    if device == "cpu":
        raise NotHere("sleep exists on GPUs alone")
    return _vllm(folder, sleeps=True)


def vllm_server(_: str, folder: Path) -> Figures:
    from components.rollout.server_process import ServerProcess
    from components.rollout.vllm_server import VllmServerEngine

    policy = _saved(folder)
    process = ServerProcess(folder / "policy", dtype="float32")
    with VllmServerEngine([process.url], folder / "policy", _markers(), timeout_seconds=300, process=process) as engine:
        return _sampled(engine, policy)


def training(_: str, folder: Path) -> Figures:
    """The embedded task, 60 steps of GARL at q = 1: mean log P of the validation split's answers has to rise."""
    from components.config import Arm, load_settings
    from components.policy.base import make_base
    from components.tracking.runs import connect
    from components.training.loop import train
    from tasks.inputs import make_data

    settings = load_settings(overrides=["train.steps=60", "train.validate_every=10", "teaching.steps=300"])
    if not Path(settings.task.path).is_dir():
        raise NotHere(f"there is no {settings.task.path}; `make data` brings it")
    make_data(settings, folder / "data")
    make_base(settings, folder / "base")
    inputs = {"data": folder / "data", "base": folder / "base", "out": folder / "run", "tracker": connect(folder)}
    record = train(settings, Arm.parse("garl-q1"), 0, **inputs)
    assert record is not None
    means = [_mean(record.validated[step]["log_p"]) for step in ("10", "60")]
    figures: Figures = {
        "mean log P after 10 steps (nats)": means[0],
        "after 60": means[1],
        "seconds": record.wall_seconds,
        "maj@16": 100 * record.validation,
    }
    if not means[1] > means[0] + 1:
        raise CheckFailed(f"training does not learn: {figures}")
    return figures


def gradient_pass(device: str, _: Path) -> Figures:
    """One update of Qwen3-0.6B, 1k prompts and 1k rationales, M = 32, beside TRL's; tiny and short on a CPU."""
    from benchmarks.gpu import model_flops, peak_tflops
    from benchmarks.systems import Case, measure

    if device == "cpu":
        shape = {"prompt_tokens": 64, "new_tokens": 64, "groups": 2, "micro_batch": 32}
    else:
        shape = {"prompt_tokens": 1024, "new_tokens": 1024, "groups": 2, "micro_batch": 4, "model": "qwen3-0.6b",
                 "micro_batch_tokens": 40_000}  # fmt: skip
    figures: Figures = {}
    seconds, peak = {}, peak_tflops()
    for system, method in (("trl", "grpo"), ("thaw", "grpo"), ("thaw", "garl-q0.75")):
        case = Case(system, method, lengths="full", steps=2, **shape)
        found, name = measure(case), f"{system} {method}"
        seconds[name] = found.step_seconds
        figures |= {f"{name}, seconds": found.step_seconds, f"{name}, peak GiB": found.peak_bytes / 2**30}
        if peak and device == "cuda":
            figures[f"{name}, MFU (%)"] = 100 * model_flops(case) / found.step_seconds / (peak * 1e12)
    for name in ("thaw grpo", "thaw garl-q0.75"):
        figures[f"TRL's time / {name}"] = seconds["trl grpo"] / seconds[name]
    return figures


# What they check with


def small_policy() -> PreTrainedModel:
    """A Qwen3 with grouped heads, float32 on the CPU, as large as GPU kernels ask for; always the same weights."""
    from components.policy.embedded import build_tokenizer

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(build_tokenizer()), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, initializer_range=0.1,
        max_position_embeddings=512,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def _saved(folder: Path) -> PreTrainedModel:
    from components.policy.embedded import build_tokenizer
    from components.policy.saving import save_policy

    policy = small_policy()
    if not (folder / "policy").exists():
        (folder / "policy").mkdir()
        save_policy(policy, build_tokenizer(), folder / "policy")
    return policy


def _markers() -> Any:
    from components.config import load_settings
    from components.policy.embedded import build_tokenizer
    from components.policy.model import Codec

    return Codec(build_tokenizer(), load_settings().model, chat=False).markers


def _groups() -> tuple[list[tuple[int, ...]], list[list[Any]]]:
    """Prompts and their rows: short and long, one without a rationale, two alike."""
    from components.policy.logprobs import Row

    random = torch.Generator().manual_seed(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 30, (length,), generator=random).tolist())

    prompts = [ids(length) for length in (1, 33, 130)]
    rows = [[Row(ids(length), ids(3), 0) for length in (0, 1, 7, 64, 90)] for _ in prompts]
    return prompts, [[*members, members[2]] for members in rows]


def _scored(policy: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of every scored id, and the gradient of a weighted sum of them, both in float64 on the CPU."""
    from components.policy.logprobs import Scorer

    scorer = Scorer(policy)
    logprobs = scorer(scorer.collate(*_groups()))
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logprobs * weights.to(logprobs)).sum().backward()
    gradient = [p.grad.double().cpu().flatten() for p in scorer.parameters() if p.grad is not None]
    return logprobs.detach().double().cpu(), torch.cat(gradient)


def _plain(policy: PreTrainedModel) -> torch.Tensor:
    """The same log-probabilities by Transformers' model as it is, a row at a time."""
    found = []
    for prompt, rows in zip(*_groups(), strict=True):
        for row in rows:
            found.append(_behind(policy, prompt, (*row.rationale, *row.answer)).double().cpu())
    return torch.cat(found)


@torch.no_grad()
def _behind(policy: PreTrainedModel, prompt: Sequence[int], continued: Sequence[int]) -> torch.Tensor:
    """log p of every id behind a prompt, [their number], by Transformers' model as it is."""
    ids = torch.tensor([[*prompt, *continued]], device=policy.device)
    logprobs = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]


def _vllm(folder: Path, *, sleeps: bool) -> Figures:
    from components.rollout.vllm_engine import VllmEngine

    policy = _saved(folder)
    with VllmEngine(folder / "policy", _markers(), dtype="float32", timeout_seconds=300, sleeps=sleeps) as engine:
        return _sampled(engine, policy)


def _sampled(engine: Any, policy: PreTrainedModel) -> Figures:
    """Log-probabilities of what an engine samples, before and after two changes of the weights, beside the model's."""
    from components.rollout.engine import Sampling

    prompts, errors = _groups()[0], []
    trained = deepcopy(policy).cpu()
    for change in range(3):
        engine.load_weights(trained.state_dict().items())
        rollouts = engine.generate(prompts, 8, Sampling(40, 8, seed=change))
        engine.sleep()
        errors += [_error(trained, rollout) for group in rollouts for rollout in group]
        with torch.no_grad():
            random = torch.Generator().manual_seed(change)
            for weight in trained.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=random)
    figures: Figures = {"rollouts": len(errors), "log p, largest error (nats)": max(errors)}
    _demand(figures, "log p, largest error (nats)", most=ROUNDING)
    return figures


def _error(policy: PreTrainedModel, rollout: Any) -> float:
    true = _behind(policy, rollout.prompt_ids, rollout.rationale_ids + rollout.answer_ids)
    end = len(rollout.rationale_ids)
    true[end - rollout.forced_end : end] = 0
    return (torch.tensor(rollout.logprobs) - true).abs().max().item()


def _demand(figures: Figures, name: str, *, most: float) -> None:
    if not float(figures[name]) <= most:
        raise CheckFailed(f"{name} is {float(figures[name]):.2g}, above {most:.2g}")


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


CHECKS = (
    Check("exactness", exactness),
    Check("transformers sampler", transformers_sampler),
    Check("vllm colocated", vllm_colocated, ("vllm",), seconds=60),
    Check("vllm sleeping", vllm_sleeping, ("vllm",), seconds=60),
    Check("vllm server", vllm_server, ("vllm",), seconds=60),
    Check("gradient pass", gradient_pass, ("deepspeed", "trl"), seconds=60),
    Check("training", training, ("deepspeed", "mlflow"), seconds=60),
)
