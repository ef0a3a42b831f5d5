"""One timer for everything, what a call costs besides time, and the form of a suite's results.

A suite returns {"tables": [...], "figures": [...]} as its json holds them. A table has rows by name, each with a
`timing` (seconds of every round by clock) or None, and further columns in `extra` by their headings.
"""

import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to the terminal otherwise

Timing = dict[str, list[float]]
"""Seconds of one call in every round: `wall` by the clock, on a GPU from one synchronization to the next; `cpu` of the
process, all threads together; `device` between two events on a GPU's stream, else empty."""
Runs = Mapping[str, Callable[[], object]]

_ACTIVITY = torch.profiler.ProfilerActivity
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Settings:
    """What holds for all suites of a run.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        threads: of torch's operators on a CPU.
        rounds: numbers for each candidate.
        quick: small sizes, to see that everything runs; the numbers mean little.
        compile: also measure compiled forms, which takes minutes.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int = 7
    quick: bool = False
    compile: bool = False

    def milliseconds(self, timing: Timing) -> float:
        """Median by the clock that this run's curves go by."""
        return statistics.median(timing[steady_clock(self.device, self.threads)]) * 1e3


def steady_clock(device: str, threads: int) -> str:
    """The clock that ratios and curves go by: "cpu" for one thread of a CPU, else "wall".

    CPU time hardly depends on what else runs on the machine; but threads that wait for others use it too.
    """
    return "cpu" if device == "cpu" and threads == 1 else "wall"


def now(device: str) -> float:
    """Seconds of the steady clock, after what was started on a GPU has ended."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.process_time() if steady_clock(device, torch.get_num_threads()) == "cpu" else time.perf_counter()


def alternate(candidates: Runs, rounds: int, *, device: str = "cpu", min_seconds: float = 0.0) -> dict[str, Timing]:
    """Time all candidates in every round, each round beginning with another one, so that whatever slows the machine
    slows all of them.

    Args:
        candidates: name and what to call, without arguments; each is called once before, to warm up.
        rounds: how many numbers each gets.
        device: where they compute; "cuda" devices are synchronized around every measurement.
        min_seconds: a candidate faster than this is called several times for one number.
    """
    repeats = {
        name: max(1, math.ceil(min_seconds / max(_measure(run, 1, device)["wall"], 1e-7)))
        for name, run in candidates.items()
    }
    timings: dict[str, Timing] = {name: {"wall": [], "cpu": [], "device": []} for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for clock, seconds in _measure(candidates[name], repeats[name], device).items():
                timings[name][clock].append(seconds)
    return timings


def _measure(run: Callable[[], object], repeats: int, device: str) -> dict[str, float]:
    """Seconds of a call by clock, averaged over `repeats`."""
    events = []
    if device.startswith("cuda"):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize(device)
        events[0].record()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    if events:
        events[1].record()
        torch.cuda.synchronize(device)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if events:
        seconds["device"] = events[0].elapsed_time(events[1]) / 1e3
    return {clock: value / repeats for clock, value in seconds.items()}


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
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest / _MEGABYTE


def saved_memory(run: Callable[[], object], without: Sequence[Tensor] = ()) -> float:
    """What a call keeps for its backward pass, every storage once, MB; without the storages of some tensors."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # alive until the end, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    for tensor in without:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in kept.values()) / _MEGABYTE


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
    names = [event.name() for event in profiler.profiler.kineto_results.events()]
    return {"launches": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in names), "syncs": syncs}


def table(
    title: str,
    note: str,
    timings: Mapping[str, Timing | None],
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    base: str | None = None,
    comparisons: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """A table of a suite.

    Args:
        title, note: heading, and what was measured.
        timings: of each row; None where a row has further columns only.
        extra: further columns of the rows by heading.
        base: the row that the others are divided by.
        comparisons: (what, numerator, denominator) of further ratios.
    """
    rows = {name: {"timing": timing, "extra": dict((extra or {}).get(name, {}))} for name, timing in timings.items()}
    return {"title": title, "note": note, "rows": rows, "base": base, "comparisons": list(comparisons)}


def figure(title: str, x_label: str, y_label: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict:
    """A figure of a suite: points (x, y) of each curve, for logarithmic axes."""
    return {"title": title, "x_label": x_label, "y_label": y_label, "curves": dict(curves)}
