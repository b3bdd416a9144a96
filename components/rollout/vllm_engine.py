"""Rollouts from vLLM, in this process and with token ids alone: no tokenizer, no text, no stop strings.

Most rollouts are one request. One whose rationale had to be closed, or whose answer outlived the rationale's budget,
goes on with a second one: the ids so far, a forced marker among them, are then its prompt. vLLM is stepped here, so
that the second request starts as soon as the first has ended, and a call that takes too long becomes an error between
two steps.
"""

import itertools
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch

from components.errors import UserError
from components.policy.markers import Markers
from components.randomness import derive_seed
from components.rollout.deadline import Deadline
from components.rollout.engine import Rollout, Sampling, check_request
from components.rollout.partial_completion import PartialCompletion
from components.rollout.weights import check_names, weight_names

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
# Rollouts of one request; vLLM refuses more than VLLM_MAX_N_SEQUENCES, which is 16,384 by default.
MOST_AT_ONCE = 1024


class VllmEngine:
    """Samples with vLLM, from a copy of the weights that load_weights renews.

    Where torch.distributed is used as well (DeepSpeed), it must be initialised before this engine is made: in the other
    order vLLM founds a process group of its own, of one process, and every rank trains alone.

    The random states of torch, NumPy and Python, torch's thread count and torch.set_num_threads are kept, though vLLM
    changes them all. What is not undone: on a CPU, vLLM binds the memory of the process to its NUMA node and puts
    LD_PRELOAD and LOCAL_WORLD_SIZE into the environment of later child processes.
    """

    def __init__(
        self,
        folder: Path,
        markers: Markers,
        *,
        dtype: Literal["float32", "bfloat16"],
        timeout_seconds: float,
        sleeps: bool = False,
    ) -> None:
        """folder: the Hugging Face folder of the policy. timeout_seconds: of one call; see `Deadline`.

        sleeps: whether `sleep` gives back the GPU memory of weights and key-value cache.

        Raises:
            UserError: vLLM is not installed, the environment asks for its multi-process mode, or the device has no
                sleep.
        """
        self.markers = markers
        self.timeout_seconds = timeout_seconds
        self._owns_process_group = not torch.distributed.is_initialized()
        with _random_states_kept(), _threads_kept():
            self._engine = _start(folder, dtype, sleeps=sleeps)
        self._sleeps = sleeps
        config = self._engine.model_config
        # vLLM's own limit: less than the model's where the key-value cache holds less.
        self.context: int = config.max_model_len
        self._weight_names = weight_names(folder)
        self._request_numbers = itertools.count()

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Rollout]]:
        """n rollouts for each prompt, in the order of the prompts.

        vLLM draws from the global generators, seeded here: a generator for each request would cost it a call a token.

        Raises:
            UserError: a prompt or the budget is refused, or the time is up; then the engine can still be used.
        """
        check_request(prompts, sampling, self.markers, self.context)
        partials = [PartialCompletion(tuple(prompt), self.markers, sampling) for prompt in prompts for _ in range(n)]
        # What is cached decides which prompts are run together, and that decides who draws which random number.
        self._drop_cached_prompts()
        with _random_states_kept(), _without_compiling(), Deadline("vLLM", self.timeout_seconds) as deadline:
            _seed_everything(derive_seed(sampling.seed, *(sampling.places or ())))
            self._run(partials, n, deadline)
        rollouts = [partial.rollout() for partial in partials]
        return [rollouts[first : first + n] for first in range(0, len(rollouts), n)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take new weights, by the names of the Hugging Face model's state_dict.

        Raises:
            UserError: a weight is missing, or the time is up; until all are given, old and new weights are then mixed.
        """
        given: set[str] = set()

        def watched() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                deadline.check("it took new weights")
                given.add(name)
                yield name, tensor

        with _random_states_kept(), Deadline("vLLM", self.timeout_seconds) as deadline:
            if self._sleeps and self._engine.is_sleeping():
                self._engine.wake_up(["weights"])
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": watched()})
            if self._sleeps:
                self._engine.wake_up(["kv_cache"])
        check_names(self._weight_names, given)
        self._drop_cached_prompts()

    def _drop_cached_prompts(self) -> None:
        """They hold keys and values of old weights."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache; its next rollouts would mix old and new weights.")

    def sleep(self) -> None:
        """Give the GPU memory of weights and key-value cache to the trainer until load_weights; nothing otherwise."""
        if self._sleeps:
            self._engine.sleep(level=2)  # the weights are dropped: the next ones come from the trainer anyway

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

    def _run(self, partials: Sequence[PartialCompletion], n: int, deadline: Deadline) -> None:
        """Sample until all are finished: what vLLM returns is put on its completion, which may then ask for more."""
        waiting: dict[str, Sequence[PartialCompletion]] = {}

        def submit(alike: Sequence[PartialCompletion]) -> None:
            first = alike[0]
            request = first.next_request()
            if request is not None:
                number = str(next(self._request_numbers))
                prompt = {"prompt_token_ids": [*first.prompt, *first.ids]}
                parameters = _parameters(len(alike), first.sampling.temperature, *request)
                self._engine.add_request(number, prompt, parameters)
                waiting[number] = alike

        # One request for all rollouts of a prompt is less work for vLLM, but it answers when the last one has ended:
        # too late where rollouts go on with another request.
        at_once = min(n, MOST_AT_ONCE) if partials and not partials[0].sampling.answers else 1
        try:
            for group in (partials[first : first + n] for first in range(0, len(partials), n)):
                for first in range(0, n, at_once):
                    submit(group[first : first + at_once])
            while waiting:
                deadline.check(f"{sum(map(len, waiting.values()))} of {len(partials)} rollouts were unfinished")
                for output in self._engine.step():
                    for partial, completion in zip(waiting.pop(output.request_id), output.outputs, strict=True):
                        partial.extend(completion.token_ids, completion.logprobs.logprobs)
                        submit([partial])
        finally:
            self._engine.abort_request(list(waiting))


@cache
def _parameters(n: int, temperature: float, max_tokens: int, stop: tuple[int, ...]) -> "SamplingParams":
    """Checking them is slow, so that equal requests share them."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=n,
        max_tokens=max_tokens,
        stop_token_ids=list(stop),
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        ignore_eos=True,  # the markers alone say what ends
        logprobs=0,  # of the sampled id alone
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _start(folder: Path, dtype: Literal["float32", "bfloat16"], *, sleeps: bool) -> "LLMEngine":
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise UserError(
            "rollout.placement = colocated runs vLLM in the trainer's process, which hands it new weights: unset"
            " VLLM_ENABLE_V1_MULTIPROCESSING or set it to 0; or set rollout.placement = server."
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
        if sleeps and _on_cpu():
            raise UserError("rollout.placement = sleeping is for GPUs; set rollout.placement = colocated on a CPU.")
        arguments = EngineArgs(
            model=str(folder),
            dtype=dtype,
            skip_tokenizer_init=True,
            generation_config="vllm",  # none of the folder's own sampling defaults
            logprobs_mode="raw_logprobs",  # the model's, before temperature and forced ids
            max_model_len=-1,  # as much of the model's context as the key-value cache holds
            gpu_memory_utilization=GPU_MEMORY_UTILIZATION,
            enforce_eager=_on_cpu(),
            enable_sleep_mode=sleeps,
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


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """On a CPU vLLM replaces torch.set_num_threads by a function that does nothing."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
