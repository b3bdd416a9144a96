"""Rollouts from vLLM, in this process and with token ids alone: no tokenizer, no text, no stop strings.

A rollout is a chain of requests: its rationale until an id that may end it, then the ids of a forced marker where the
budget asks for them, then its answer. vLLM is stepped here, so that a rollout's next request starts as soon as the last
one has ended, and a call that takes too long becomes an error between two steps.
"""

import itertools
import json
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from safetensors import safe_open

from components.errors import UserError
from components.randomness import derive_seed
from components.rollout.engine import Markers, Rollout, Sampling, check_request

if TYPE_CHECKING:
    from vllm import LLMEngine, SamplingParams

# What vLLM is told where the user's environment says nothing: run in this process, keep quiet, report to nobody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
# The share of a GPU's memory that vLLM takes for weights and key-value cache; the rest is for a trainer beside it.
GPU_MEMORY_UTILIZATION = 0.4
# The key-value cache on a CPU, which vLLM fills at the start; VLLM_CPU_KVCACHE_SPACE (GiB) overrides it.
CPU_KV_CACHE_BYTES = 1 << 30


class VllmEngine:
    """Samples with vLLM, from a copy of the weights that load_weights renews.

    Where torch.distributed is used as well (DeepSpeed), it must be initialised before this engine is made: in the other
    order vLLM founds a process group of its own, of one process, and every rank trains alone.

    The random states of torch, NumPy and Python, torch's thread count and torch.set_num_threads are kept, though vLLM
    changes them all. What is not undone: on a CPU, vLLM binds the memory of the process to its NUMA node and puts
    LD_PRELOAD and LOCAL_WORLD_SIZE into the environment of later child processes.
    """

    def __init__(
        self, folder: Path, markers: Markers, *, dtype: Literal["float32", "bfloat16"], timeout_seconds: float
    ) -> None:
        """folder: the Hugging Face folder of the policy. timeout_seconds: of one call; see `_Deadline`.

        Raises:
            UserError: vLLM is not installed, or the environment asks for its multi-process mode.
        """
        self.markers = markers
        self.timeout_seconds = timeout_seconds
        self._owns_process_group = not torch.distributed.is_initialized()
        with _random_states_kept(), _threads_kept():
            self._engine = _start(folder, dtype)
        config = self._engine.model_config
        # vLLM's own limit: less than the model's where the key-value cache holds less.
        self.context: int = config.max_model_len
        tied = getattr(config.hf_text_config, "tie_word_embeddings", False)
        self._weight_names = _weight_names(folder, tied=tied)
        self._request_numbers = itertools.count()

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts; each has a random stream of its own.

        Raises:
            UserError: a prompt or the budget is refused, or the time is up; then the engine can still be used.
        """
        check_request(prompts, sampling, self.markers, self.context)
        drafts = [
            _Draft(tuple(prompt), (sampling.seed, index, sample), self.markers, sampling)
            for index, prompt in enumerate(prompts)
            for sample in range(n)
        ]
        with _random_states_kept(), _without_compiling():
            self._run(drafts)
        rollouts = [draft.rollout() for draft in drafts]
        return [rollouts[first : first + n] for first in range(0, len(rollouts), n)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict.

        Raises:
            UserError: a weight is missing, or the time is up; until all are given, old and new weights are then mixed.
        """
        deadline = _Deadline(self.timeout_seconds)
        missing = set(self._weight_names)

        def watched() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                deadline.check("it took new weights")
                missing.discard(name)
                yield name, tensor

        with _random_states_kept():
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": watched()})
        # vLLM keeps the old tensor of a name it is not given, and says nothing; for a tied head as well.
        if missing:
            raise UserError(
                f"the vLLM engine needs all weights of the policy, but {', '.join(sorted(missing)[:3])}"
                f" ({len(missing)} in all) were not given; pass model.state_dict().items()."
            )
        # The cached prompts hold keys and values of the old weights.
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache; its next rollouts would mix old and new weights.")

    def close(self) -> None:
        """Give back vLLM's memory and process groups; another engine can then be made in this process."""
        if self._engine is not None:
            with nullcontext() if self._owns_process_group else _process_group_kept():
                self._engine.engine_core.shutdown()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, drafts: Sequence["_Draft"]) -> None:
        """Sample until every draft is finished: what vLLM returns is put on its draft, which may then ask for more."""
        deadline = _Deadline(self.timeout_seconds)
        waiting: dict[str, _Draft] = {}
        try:
            for draft in drafts:
                self._submit(draft, waiting)
            while waiting:
                deadline.check(f"{len(waiting)} of {len(drafts)} rollouts were unfinished")
                for output in self._engine.step():
                    draft = waiting.pop(output.request_id)
                    completion = output.outputs[0]
                    draft.extend(completion.token_ids, completion.logprobs.logprobs)
                    self._submit(draft, waiting)
        finally:
            self._engine.abort_request(list(waiting))

    def _submit(self, draft: "_Draft", waiting: dict[str, "_Draft"]) -> None:
        parameters = draft.next_request()
        if parameters is not None:
            number = str(next(self._request_numbers))
            self._engine.add_request(number, {"prompt_token_ids": [*draft.prompt, *draft.ids]}, parameters)
            waiting[number] = draft


@dataclass
class _Draft:
    """A rollout in the making: the ids so far, where a forced marker began, and where the rationale ended."""

    prompt: tuple[int, ...]
    seed: tuple[int, int, int]
    markers: Markers
    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    force_from: int | None = None
    rationale_length: int | None = None

    def next_request(self) -> "SamplingParams | None":
        """What vLLM is to sample behind prompt and ids; None when the rollout is finished."""
        marker, length = self.markers.end_of_thinking, len(self.ids)
        if self.rationale_length is None:
            if self.force_from is not None:
                return self._parameters(1, allowed_token_ids=[marker[length - self.force_from]])
            # A marker can only be complete behind its last id. That id alone is no marker if there are more; then the
            # rationale goes on with another request, and each id is still drawn from the model's own distribution.
            stop = [marker[-1], *self.markers.end_of_turn]
            return self._parameters(self.sampling.rationale_budget - length, stop_token_ids=stop)
        if self.sampling.answers and length == self.rationale_length:
            stop = list(self.markers.end_of_turn)
            return self._parameters(self.sampling.max_new_tokens - length, stop_token_ids=stop)
        return None

    def extend(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Put what was sampled on the rollout, and see whether the rationale is closed or must be."""
        self.ids += ids
        self.logprobs += logprobs
        if self.rationale_length is not None:
            return
        marker, length = self.markers.end_of_thinking, len(self.ids)
        if self.force_from is not None:
            if length == self.force_from + len(marker):
                self.rationale_length = length
        elif tuple(self.ids[-len(marker) :]) == marker:
            self.rationale_length = length
        elif self.ids[-1] in self.markers.end_of_turn or length >= self.sampling.rationale_budget:
            self.force_from = length

    def rollout(self) -> Rollout:
        length, forced = self.rationale_length, self.force_from is not None
        stopped = self.ids[-1] in self.markers.end_of_turn if self.sampling.answers else not forced
        return Rollout(
            prompt_ids=self.prompt,
            rationale_ids=tuple(self.ids[:length]),
            answer_ids=tuple(self.ids[length:]),
            logprobs=tuple(self.logprobs),
            finish_reason="stop" if stopped else "length",
            forced_end=len(self.markers.end_of_thinking) if forced else 0,
        )

    def _parameters(self, max_tokens: int, **extra: Any) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.sampling.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            # The number of ids tells a rollout's requests apart: no two begin at the same one.
            seed=derive_seed(*self.seed, len(self.ids)),
            ignore_eos=True,  # the markers alone say what ends
            logprobs=0,  # of the sampled id alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **extra,
        )


class _Deadline:
    """The end of one call's time.

    It is looked at between two steps of vLLM and between two weights, so it ends a call that is slow or makes no
    progress. It cannot end a single step that never returns (a hung kernel, a lost rank), nor vLLM's start: those need
    someone outside this process.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def check(self, state: str) -> None:
        if time.monotonic() > self.end:
            raise UserError(
                f"the vLLM engine ran out of time while {state}; raise rollout.timeout_seconds = {self.seconds:g}."
            )


def _start(folder: Path, dtype: Literal["float32", "bfloat16"]) -> "LLMEngine":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise UserError(
            "rollout.engine = vllm runs vLLM in the trainer's process, which hands it new weights;"
            " unset VLLM_ENABLE_V1_MULTIPROCESSING or set it to 0."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM about its own code
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.usage.usage_lib import UsageContext
        except ImportError as error:
            raise UserError(
                f"rollout.engine = vllm, but vLLM cannot be imported ({error});"
                " install it as the README says or set rollout.engine = transformers."
            ) from error
        arguments = EngineArgs(
            model=str(folder),
            dtype=dtype,
            skip_tokenizer_init=True,
            generation_config="vllm",  # none of the folder's own sampling defaults
            logprobs_mode="raw_logprobs",  # the model's, before temperature and forced ids
            max_model_len=-1,  # as much of the model's context as the key-value cache holds
            gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
            enforce_eager=_on_cpu(),
            # A request whose prompt is run in pieces must turn its generator back, which generators on a CPU cannot.
            enable_chunked_prefill=False if _on_cpu() else None,
            kv_cache_memory_bytes=CPU_KV_CACHE_BYTES if _on_cpu() else None,
            use_tqdm_on_load=False,
            disable_log_stats=True,
        )
        # The context chooses batch sizes that suit offline sampling.
        return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _without_compiling() -> AbstractContextManager[object]:
    """On a CPU vLLM would compile a helper of its log-probabilities in the first call, for half a minute."""
    return torch.compiler.set_stance("force_eager") if _on_cpu() else nullcontext()


@contextmanager
def _process_group_kept() -> Iterator[None]:
    """vLLM's shutdown destroys the default process group of torch.distributed, whoever founded it."""
    destroy = torch.distributed.destroy_process_group

    def destroy_all_but_the_default(group: torch.distributed.ProcessGroup | None = None) -> None:
        if group is not None:
            destroy(group)

    torch.distributed.destroy_process_group = destroy_all_but_the_default
    try:
        yield
    finally:
        torch.distributed.destroy_process_group = destroy


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """vLLM in this process seeds every global generator when it starts, and draws from torch's when it samples."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """On a CPU vLLM replaces torch.set_num_threads by a function that does nothing."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


def _weight_names(folder: Path, *, tied: bool) -> frozenset[str]:
    """What the policy's state_dict must hold: the names in its folder, and the head, which is not stored if tied."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    else:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = set(file.keys())
    return frozenset(names | {"lm_head.weight"} if tied else names)
