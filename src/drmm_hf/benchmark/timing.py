"""One timer for everything: the candidates take turns, so that whatever slows the machine slows all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch


@dataclass
class Timing:
    """Seconds of one call in every round.

    Attributes:
        wall: by the clock; on a GPU from one synchronization to the next.
        cpu: of the process, all threads together. Other work on the machine changes it little.
        device: on a GPU, between two events on its stream; else empty.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)


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


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: str = "cpu",
    warm_up: int = 1,
    min_seconds: float = 0.0,
) -> dict[str, Timing]:
    """Time all candidates in every round, each round beginning with another one.

    Args:
        candidates: name and what to call, without arguments.
        rounds: how many numbers each gets.
        device: where they compute; "cuda" devices are synchronized around every measurement.
        warm_up: calls of each that are not timed; at least one, and the last says how fast it is.
        min_seconds: a candidate faster than this is called several times for one number.

    Raises:
        ValueError: no candidates, or less than one round or call to warm up.
    """
    if not candidates or rounds < 1 or warm_up < 1:
        raise ValueError(f"alternate needs candidates, rounds and warm_up; got {len(candidates)}, {rounds}, {warm_up}.")
    repeats = {}
    for name, run in candidates.items():
        for _ in range(warm_up):
            seconds = _measure(run, 1, device)[0]
        repeats[name] = max(1, math.ceil(min_seconds / max(seconds, 1e-7)))
    timings = {name: Timing() for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu, on_device = _measure(candidates[name], repeats[name], device)
            timings[name].wall.append(wall)
            timings[name].cpu.append(cpu)
            if on_device is not None:
                timings[name].device.append(on_device)
    return timings


def _measure(run: Callable[[], object], repeats: int, device: str) -> tuple[float, float, float | None]:
    """Wall, CPU and device seconds of a call, averaged over `repeats`."""
    events = None
    if device.startswith("cuda"):
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        events[0].record()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    if events is not None:
        events[1].record()
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    on_device = None if events is None else events[0].elapsed_time(events[1]) / 1e3 / repeats
    return wall / repeats, cpu / repeats, on_device


def ratios(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios of the rounds."""
    values = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(values), min(values), max(values)


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of the straight line through (log size, log value): 1 is proportional, 2 is quadratic."""
    slope = statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope
    return slope
