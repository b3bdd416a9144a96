"""How much memory a process uses: what is resident, or on the GPU, and what tensors take of it."""

import gc
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def reset_peak() -> int:
    """Forget the peak so far; the bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak() -> int:
    """Bytes since the last reset."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def live() -> int:
    """Bytes of all tensors of this process that Python knows, and of their gradients."""
    gc.collect()
    found = [item for item in gc.get_objects() if isinstance(item, Tensor) and item.device.type != "meta"]
    return size([*found, *(item.grad for item in found if item.is_leaf and item.grad is not None)])


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes that PyTorch gave out for tensors on the CPU while `run` ran, beyond those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
