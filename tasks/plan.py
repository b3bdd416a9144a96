"""What a run will take, computed for the device it would run on."""

import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from components.capacity import Capacity, capacity
from components.config import ComputeSettings, Settings
from components.errors import UserError
from components.policy.lora import add_adapters
from components.policy.model import load_shapes


@dataclass(frozen=True)
class Plan:
    """device: its name. memory: of it, in bytes, for each process."""

    found: Capacity
    device: str
    memory: int


def make_plan(settings: Settings, memory_gb: float | None) -> Plan:
    """Compute what training takes; reads the model's config and nothing else.

    memory_gb: of a GPU, in 10^9 bytes; None takes what this machine has.

    Raises:
        UserError: the config cannot be read, or settings and model do not go together.
    """
    processes = _processes(settings.compute)
    policy = load_shapes(settings.model)
    if settings.train.lora_rank:
        add_adapters(policy, settings.train.lora_rank, 0)
    if settings.train.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    gpu = memory_gb is not None or torch.cuda.is_available()
    if memory_gb is not None:
        device, memory = "a GPU", int(memory_gb * 1e9)
    elif gpu:
        found = torch.cuda.get_device_properties(0)
        device, memory = found.name, found.total_memory
    else:
        device, memory = "this machine's memory", psutil.virtual_memory().total // processes
    return Plan(capacity(policy, settings, processes=processes, device_bytes=memory, gpu=gpu), device, memory)


def _processes(compute: ComputeSettings) -> int:
    """How many train together: of every slot of the hosts, where hosts are listed."""
    if compute.hostfile is None:
        return compute.processes
    try:
        slots = re.findall(r"^\s*[^#\s]\S*\s+slots=(\d+)", Path(compute.hostfile).read_text(encoding="utf-8"), re.M)
    except OSError as error:
        raise UserError(f"compute.hostfile = {compute.hostfile} cannot be read ({error.strerror}).") from None
    if not slots:
        raise UserError(f'compute.hostfile = {compute.hostfile} lists no hosts; write lines of "HOST slots=8".')
    return sum(map(int, slots))
