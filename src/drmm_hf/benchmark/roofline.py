"""Where the time goes against what the machine could do: work of every operator, and peaks measured here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .timing import now

_TRIES = 5


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches: FLOP/s in float32, bytes/s of a large copy (read and write)."""

    flops: float
    bytes: float


@dataclass
class Work:
    """Of all calls of one operator: seconds, floating-point operations, bytes of inputs and outputs, and the seconds
    that these need at the peaks."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    bound: float = 0.0


def measure_peaks(device: str = "cpu", size: int = 2048, megabytes: int = 256) -> Peaks:
    """The best of a few tries with the threads that torch has now.

    FLOPs of a matrix product or of a 3x3 convolution, whichever is faster: on some processors the libraries that torch
    has for the two differ by a factor of two.
    """
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    channels, side = min(size, 256), max(size // 16, 1)
    image = torch.randn(1, channels, side, side, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(memory_format=torch.channels_last)
    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    product = min(_seconds(lambda: a @ b, device) for _ in range(_TRIES))
    convolution = min(_seconds(lambda: F.conv2d(image, weight, padding=1), device) for _ in range(_TRIES))
    copy = min(_seconds(lambda: target.copy_(source), device) for _ in range(_TRIES))
    flops = max(2 * size**3 / product, 2 * 9 * channels**2 * side**2 / convolution)
    return Peaks(flops, 2 * 4 * source.numel() / copy)


class OperatorWork(TorchDispatchMode):
    """Counts the work of every operator below it, and times it.

    FLOPs are those that torch can count (convolutions, matrix products, attention); views move no bytes.

    Attributes:
        work: operator name to its `Work`.
    """

    def __init__(self, peaks: Peaks, device: str = "cpu"):
        super().__init__()
        self.peaks, self.device = peaks, device
        self.work: dict[str, Work] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result: Any = None

        def call() -> None:
            nonlocal result
            result = func(*args, **kwargs)

        seconds = _seconds(call, self.device)
        count = flop_registry.get(func._overloadpacket)
        flops = float(count(*args, **kwargs, out_val=result)) if count else 0.0
        moved = 0.0 if func.is_view else float(sum(map(_bytes, tree_leaves((args, kwargs, result)))))
        work = self.work.setdefault(str(func._overloadpacket), Work())
        work.seconds += seconds
        work.flops += flops
        work.bytes += moved
        work.bound += max(flops / self.peaks.flops, moved / self.peaks.bytes)
        return result


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) else 0


def _seconds(run: Callable[[], Any], device: str) -> float:
    start = now(device)
    run()
    return now(device) - start
