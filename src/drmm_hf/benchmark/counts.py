"""What a call costs besides time: memory, and on a GPU kernel launches and synchronizations."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to the terminal otherwise

_ACTIVITY = torch.profiler.ProfilerActivity
_MEGABYTE = 1e6


def peak_memory(run: Callable[[], object], device: str = "cpu") -> float:
    """Most memory that tensors held at once during a call, beyond what was held before it, MB.

    On a CPU it is what torch's allocator gave out; scratch space of the math libraries is not in it.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / _MEGABYTE
    with torch.profiler.profile(activities=[_ACTIVITY.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / _MEGABYTE


def saved_memory(run: Callable[[], object]) -> float:
    """What a call keeps for its backward pass, every storage once, MB; parameters and inputs that it reads included."""
    sizes: dict[int, int] = {}
    kept = []  # a storage that is freed could come back under the same address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(sizes.values()) / _MEGABYTE


def gpu_counts(run: Callable[[], object], device: str) -> dict[str, Any]:
    """Kernel launches and host synchronizations of a call; nothing on a CPU."""
    if not device.startswith("cuda"):
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    syncs = sum("synchronizing" in str(warning.message) for warning in caught)
    with torch.profiler.profile(activities=[_ACTIVITY.CPU, _ACTIVITY.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(device)
    names = [event.name() for event in profiler.profiler.kineto_results.events()]  # type: ignore[union-attr]
    return {"launches": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in names), "syncs": syncs}
