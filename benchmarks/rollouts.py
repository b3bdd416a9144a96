"""Tokens a second of each rollout engine beside the bare library: vLLM's and Transformers' own `generate`.

    python -m benchmarks.rollouts                       # a Qwen3 of 0.6M parameters, on the CPU
    python -m benchmarks.rollouts --model FOLDER --dtype bfloat16 --budget 1024

Both sides sample the same prompts with the same budget, at temperature 1, and both return the log-probability of every
sampled token, since a rollout is of no use without. Repetitions take turns, so that what else the machine does falls
on all alike; medians are shown, and written to build/bench/rollouts.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from components.config import ModelSettings
from components.policy.embedded import build_tokenizer
from components.policy.markers import Markers
from components.policy.model import Codec, load_model, load_tokenizer
from components.policy.saving import save_policy
from components.rollout.engine import RolloutEngine, Sampling
from components.rollout.transformers_engine import TransformersEngine
from components.rollout.vllm_engine import VllmEngine

RESULTS = Path("build/bench/rollouts.json")
ANSWER_RESERVE = 16
BARE = {
    "transformers": "model.generate(do_sample, num_return_sequences=M, output_logits), log-softmax of each token",
    "vllm": "LLM.generate(SamplingParams(n=M, logprobs=0, flat_logprobs, detokenize=False, stop_token_ids))",
}


@dataclass(frozen=True)
class Batch:
    prompts: list[tuple[int, ...]]
    group_size: int
    budget: int  # ids of a rationale
    markers: Markers

    @property
    def stop(self) -> list[int]:
        return [self.markers.end_of_thinking[-1], *self.markers.end_of_turn]


@dataclass(frozen=True)
class Result:
    """Medians over the repetitions; start_seconds is paid once a run."""

    engine: str
    tokens_per_second: float
    bare_tokens_per_second: float
    start_seconds: float


def measure(engine: str, folder: Path, batch: Batch, dtype: str, repeats: int) -> Result:
    """Sample by turns with Thaw's engine and with the bare library, after one unmeasured turn each."""
    started = time.perf_counter()
    model = load_model(folder, dtype=dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    with _opened(engine, model, folder, batch, dtype) as rollouts:
        start_seconds = time.perf_counter() - started
        bare = _bare_vllm(folder, batch, dtype) if engine == "vllm" else _bare_transformers(model, batch)
        sides: list[Callable[[int], int]] = [lambda seed: _thaw(rollouts, batch, seed), bare]
        for side in sides:
            side(0)
        speeds = [[_speed(side, seed) for side in sides] for seed in range(1, repeats + 1)]
    return Result(engine, *(statistics.median(side) for side in zip(*speeds, strict=True)), start_seconds)


@contextmanager
def _opened(engine: str, model, folder: Path, batch: Batch, dtype: str) -> Iterator[RolloutEngine]:
    if engine == "vllm":
        with VllmEngine(folder, batch.markers, dtype=dtype, timeout_seconds=3600) as rollouts:
            yield rollouts
    else:
        yield TransformersEngine(model, batch.markers, batch_rollouts=len(batch.prompts) * batch.group_size)


def _speed(side: Callable[[int], int], seed: int) -> float:
    started = time.perf_counter()
    return side(seed) / (time.perf_counter() - started)


def _thaw(engine: RolloutEngine, batch: Batch, seed: int) -> int:
    """Sampled ids, forced ones left out."""
    sampling = Sampling(batch.budget + ANSWER_RESERVE, ANSWER_RESERVE, seed, answers=False)
    groups = engine.generate(batch.prompts, batch.group_size, sampling)
    return sum(len(rollout.logprobs) - rollout.forced_end for group in groups for rollout in group)


def _bare_vllm(folder: Path, batch: Batch, dtype: str) -> Callable[[int], int]:
    from vllm import LLM, SamplingParams

    on_cpu = not torch.cuda.is_available()
    llm = LLM(
        str(folder),
        dtype=dtype,
        skip_tokenizer_init=True,
        enforce_eager=on_cpu,
        gpu_memory_utilization=0.4,
        kv_cache_memory_bytes=1 << 30 if on_cpu else None,
        max_model_len=-1,
    )
    parameters = SamplingParams(
        n=batch.group_size, max_tokens=batch.budget, temperature=1.0, stop_token_ids=batch.stop, ignore_eos=True,
        logprobs=0, flat_logprobs=True, detokenize=False,
    )  # fmt: skip

    def generate(seed: int) -> int:  # noqa: ARG001
        with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
            outputs = llm.generate([{"prompt_token_ids": list(p)} for p in batch.prompts], parameters, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    return generate


def _bare_transformers(model, batch: Batch) -> Callable[[int], int]:
    ids = torch.tensor(batch.prompts, device=model.device)

    @torch.no_grad()
    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=batch.group_size, max_new_tokens=batch.budget, eos_token_id=batch.stop,
            pad_token_id=batch.markers.pad, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        sampled = output.sequences[:, ids.shape[1] :]
        for position, logits in enumerate(output.logits):
            logits.float().log_softmax(-1).gather(1, sampled[:, position, None])
        ended = torch.isin(sampled, torch.tensor(batch.stop, device=ids.device)).cumsum(1)
        return int((ended - torch.isin(sampled, torch.tensor(batch.stop, device=ids.device)).long() == 0).sum())

    return generate


def _small_model(folder: Path) -> None:
    """A Qwen3 of 4 layers and 0.6M parameters over bytes, with random weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    save_policy(Qwen3ForCausalLM(config), tokenizer, folder)


def _batch(folder: Path, options: argparse.Namespace) -> Batch:
    settings = ModelSettings(
        name=str(folder), revision=None, dtype=options.dtype, end_of_thinking="</think>", answer_prefix=""
    )
    tokenizer = load_tokenizer(folder)
    markers = Codec(tokenizer, settings, chat=False).markers
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(256, (options.prompts, options.prompt_tokens), generator=generator).tolist()
    return Batch([tuple(prompt) for prompt in prompts], options.group_size, options.budget, markers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens a second of each rollout engine beside the bare library.")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; else a Qwen3 of 0.6M parameters")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--budget", type=int, default=64, help="sampled tokens of a rationale")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    torch.set_num_threads(options.threads)
    # vLLM would take every core and bind itself to them; both of its sides and Transformers get equally many.
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS=str(options.threads))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch)
        if options.model is None:
            _small_model(folder)
        batch = _batch(folder, options)
        results = [
            measure(engine, folder, batch, options.dtype, options.repeats) for engine in ("transformers", "vllm")
        ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    print(
        f"\n{options.prompts} prompts of {options.prompt_tokens} tokens, {options.group_size} rollouts each of at most"
        f"\n{options.budget} tokens, {options.dtype}, {options.threads} thread(s), medians of {options.repeats}\n"
    )
    print(f"{'engine':14}{'tokens/s':>10}{'bare':>10}{'ratio':>8}{'start':>9}")
    for result in results:
        speed, bare = result.tokens_per_second, result.bare_tokens_per_second
        print(f"{result.engine:14}{speed:10.0f}{bare:10.0f}{speed / bare:8.2f}{result.start_seconds:8.1f}s")
    for engine, call in BARE.items():
        print(f"\nbare {engine}: {call}", end="")
    print(f"\n\nstart is paid once a run. Written to {RESULTS}")


if __name__ == "__main__":
    main()
