"""What a run will take, computed before it starts: memory of each process, disk, tokens of a step. Nothing is loaded.

The model stands on PyTorch's meta device, where tensors have shapes and no numbers. What lasts (weights, optimizer
state, gradients) follows from the parameters' sizes and from what DeepSpeed 0.19 holds at each ZeRO stage
(https://arxiv.org/abs/1910.02054); what one micro-batch keeps is counted by pass_memory.py. Tests compare both with
measured memory. Not counted: what Python, CUDA and NCCL take for themselves, and what an allocator loses between
blocks.
"""

import math
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from components.config import Settings, TrainSettings
from components.data.lengths import longest_prompt
from components.pass_memory import micro_batch_bytes
from components.policy.model import head_width, weights_at_once
from components.rollout.vllm_engine import CPU_KV_CACHE_BYTES, GPU_MEMORY_UTILIZATION

FLOAT32 = 4  # bytes
ALL_REDUCE = 5 * 10**8  # gradients that DeepSpeed copies to reduce them together, without ZeRO


@dataclass(frozen=True)
class State:
    """Bytes that a process holds as long as it trains.

    master: the float32 copy of the weights that the optimizer changes; DeepSpeed has one in float32 training as well.
    gradients: the most of them that are held at once, before the optimizer steps.
    own: how many weights the optimizer changes in this process.
    """

    weights: int
    master: int
    moments: int
    gradients: int
    own: int

    @property
    def bytes(self) -> int:
        """All of it together, of the process on its device."""
        return self.weights + self.master + self.moments + self.gradients


@dataclass(frozen=True)
class Phase:
    """What a process holds for a while, beyond what lasts."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Capacity:
    """What a run takes, in bytes and tokens.

    state: of a process on its device. host: what offloading keeps in the machine's memory instead, a process.
    phases: one after the other, so that the largest counts. sampler: what it keeps on a process's device all the time;
    vllm: its share of the device, where it has one. whole: the weights of the model as it is saved.
    disk: by what it is for.
    sampled, prompts: the most tokens of a step; micro_batch: the most of one pass; passes: a process's gradient passes.
    """

    parameters: int
    trained: int
    processes: int
    whole: int
    state: State
    host: int
    phases: list[Phase]
    sampler: int
    vllm: int
    disk: dict[str, int]
    sampled: int
    prompts: int
    micro_batch: int
    passes: int

    @property
    def peak(self) -> int:
        """The most bytes of a process on its device at one time."""
        return self.state.bytes + self.sampler + max(phase.bytes for phase in self.phases)

    def lacking(self, device_bytes: int) -> str | None:
        """Why that does not fit a device of so many bytes, and what would help; None where it does."""
        if 0 < self.vllm < self.whole:
            return (
                f"vLLM gets {in_bytes(self.vllm)} of it, less than the model's {in_bytes(self.whole)}; sample from"
                " servers with GPUs of their own (rollout.placement=http://HOST:PORT)"
            )
        if self.peak <= device_bytes:
            return None
        return (
            "lower train.micro_batch_tokens, rollout.max_new_tokens or task.max_prompt_tokens, raise train.zero_stage"
            " or compute.processes, or set train.gradient_checkpointing or train.offload"
        )


def in_bytes(number: int) -> str:
    """As people read it: 1.2 GB, of 10^9 bytes, or 340.0 MB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def capacity(policy: PreTrainedModel, settings: Settings, *, processes: int, device_bytes: int, gpu: bool) -> Capacity:
    """What training takes with these settings, at most.

    policy: on the meta device, in its dtype, with the adapters and the checkpointing that it is trained with.
    processes: that train together. device_bytes: memory of the device that one of them computes on; gpu: what it is.

    Raises:
        UserError: the model's context has no room for the rollouts, or its forward pass depends on numbers.
    """
    train, rollout = settings.train, settings.rollout
    sizes = [parameter.numel() for parameter in policy.parameters()]
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    whole = sum(weight.nbytes for weight in _saved(policy))
    held = state(policy, train, processes)
    context = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    prompt = longest_prompt(settings.task, context, rollout.max_new_tokens) or 0
    groups = math.ceil(train.groups_per_step / processes)
    read = groups * (prompt + rollout.group_size * rollout.max_new_tokens)
    row = rollout.max_new_tokens
    micro_batch = min(read, max(train.micro_batch_tokens, prompt + row))
    vllm = _vllm(settings, whole, device_bytes, gpu=gpu)
    awake = vllm if rollout.placement == "sleeping" else 0
    copy = whole if rollout.engine != "vllm" and train.zero_stage == 3 else 0
    device, host = _offloaded(held, train, policy.dtype.itemsize) if train.offload else (held, 0)
    phases = [
        Phase("sampling", awake or _sampling(policy, settings, prompt, groups)),
        Phase("giving weights to the sampler", awake + _giving(policy, train)),
        Phase("gradient pass", _moving(policy, train) + micro_batch_bytes(policy, micro_batch, row, gpu=gpu)),
        Phase("reducing gradients", 0 if train.zero_stage else policy.dtype.itemsize * min(ALL_REDUCE, trained)),
        Phase("optimizer step", _stepping(policy, train, held, processes)),
    ]
    return Capacity(
        parameters=sum(sizes),
        trained=trained,
        processes=processes,
        whole=whole,
        state=device,
        host=host,
        phases=phases,
        sampler=vllm - awake + copy,
        vllm=vllm,
        disk=_disk(settings, whole, policy.dtype.itemsize * trained, held, processes),
        sampled=train.groups_per_step * rollout.group_size * rollout.max_new_tokens,
        prompts=train.groups_per_step * prompt,
        micro_batch=micro_batch,
        passes=math.ceil(read / micro_batch),
    )


# What lasts


def state(policy: PreTrainedModel, train: TrainSettings, processes: int) -> State:
    """What DeepSpeed holds of a model in each of so many processes, were nothing offloaded."""
    width, stage = policy.dtype.itemsize, train.zero_stage
    trained = [parameter.numel() for parameter in policy.parameters() if parameter.requires_grad]
    frozen = sum(parameter.numel() for parameter in policy.parameters() if not parameter.requires_grad)
    if stage == 3:  # every weight is cut by itself
        own = kept = sum(math.ceil(size / processes) for size in trained)
        frozen = math.ceil(frozen / processes)
    elif stage:  # they are cut in one row, of an even number for each process
        own = 2 * math.ceil(sum(trained) / (2 * processes))
        kept = processes * own
    else:
        own = kept = sum(trained)
    # ZeRO 1 adds all gradients up before it reduces them; ZeRO 2 adds its own of a micro-batch to those before.
    gradients = {0: own, 1: sum(trained), 2: 2 * own, 3: own}[stage]
    return State(
        weights=width * (frozen + kept),
        master=0 if stage == 0 and width == FLOAT32 else FLOAT32 * own,
        moments=2 * FLOAT32 * own if train.optimizer == "adamw" else 0,
        gradients=width * gradients,
        own=own,
    )


def _offloaded(held: State, train: TrainSettings, width: int) -> tuple[State, int]:
    """What stays on the device, and what is kept in the machine's memory: with the gradients in float32 as well."""
    stays = held.weights if train.zero_stage < 3 else 0
    gradients = held.gradients if train.zero_stage == 1 else 0
    host = held.bytes - stays - gradients + FLOAT32 * held.own
    host += width * held.own if train.zero_stage < 3 else 0  # new weights on their way to the device
    return State(weights=stays, master=0, moments=0, gradients=gradients, own=held.own), host


# What comes and goes


def _moving(policy: PreTrainedModel, train: TrainSettings) -> int:
    """Weights that are gathered for the gradient pass, and gradients on their way to where they are kept.

    How many, training tells DeepSpeed in components/training/zero.py.
    """
    width, at_once = policy.dtype.itemsize, weights_at_once(policy.config)
    largest = max(parameter.numel() for parameter in policy.parameters())
    if train.zero_stage == 0:
        return 0
    reduced = at_once + max(at_once, largest)  # a bucket, and the copy that is sent
    gathered = 8 * at_once + largest if train.zero_stage == 3 else 0
    return width * (reduced + gathered)


def _stepping(policy: PreTrainedModel, train: TrainSettings, held: State, processes: int) -> int:
    """Float32 gradients and the temporaries of AdamW, for as many weights as are stepped at once."""
    largest = max(parameter.numel() for parameter in policy.parameters())
    if train.offload:
        return policy.dtype.itemsize * largest
    if train.zero_stage == 0:
        return FLOAT32 * held.own * (1 if policy.dtype.itemsize == FLOAT32 else 2)
    at_once = held.own
    if train.zero_stage == 3:
        at_once = min(at_once, weights_at_once(policy.config) + math.ceil(largest / processes))
    return 3 * FLOAT32 * at_once


def _giving(policy: PreTrainedModel, train: TrainSettings) -> int:
    """A weight that is gathered, or to which its adapter is added, to be given away."""
    largest = max(parameter.nbytes for parameter in policy.parameters())
    return largest * ((train.zero_stage == 3) + 2 * (train.lora_rank > 0))


def _sampling(policy: PreTrainedModel, settings: Settings, prompt: int, groups: int) -> int:
    """What the Transformers engine takes for a while: keys and values, and logits in three forms."""
    rollout, config = settings.rollout, policy.config.get_text_config()
    if rollout.engine == "vllm":
        return 0
    together = min(groups, max(1, rollout.batch_rollouts // rollout.group_size))
    rows = together * rollout.group_size
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * head_width(config)
    ids = together * prompt + rows * rollout.max_new_tokens
    logits = 3 * FLOAT32 * rows * config.vocab_size
    return policy.dtype.itemsize * cached * ids + logits


def _vllm(settings: Settings, whole: int, device_bytes: int, *, gpu: bool) -> int:
    """What vLLM takes of a training process's device: a share of it, or on a CPU a model and its cache."""
    if settings.rollout.engine != "vllm" or settings.rollout.urls:
        return 0
    return int(GPU_MEMORY_UTILIZATION * device_bytes) if gpu else whole + CPU_KV_CACHE_BYTES


# What is written


def _saved(policy: PreTrainedModel) -> list[Tensor]:
    """The weights of a checkpoint: tied ones once, adapters merged."""
    return [parameter for name, parameter in policy.named_parameters() if ".lora_" not in name]


def _disk(settings: Settings, whole: int, trained: int, held: State, processes: int) -> dict[str, int]:
    """Bytes of one arm with one seed; what all arms share is the base model."""
    train = settings.train
    validations = math.ceil(train.steps / train.validate_every)
    kept = min(validations, train.keep + 1) if train.keep else validations  # the best one beside the last ones
    optimizer = (processes if train.zero_stage else 1) * (held.master + held.moments)
    # With ZeRO 3 the float32 copy is all there is of the weights.
    weights = 0 if train.zero_stage == 3 else whole + trained * (train.lora_rank > 0)
    return {
        "base model": whole,
        "checkpoints and final": whole * (kept + 1),
        "versions in MLflow": whole * validations,
        # A new one is complete before the old one goes.
        "state to resume from": 2 * (weights + optimizer),
    }
