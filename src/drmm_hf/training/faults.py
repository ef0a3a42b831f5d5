"""What ends a training early: signals, lost processes, and no memory."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from ..configuration_drmm import DrmmConfig
from .config import TrainConfig

_LOST = ("connection", "gloo", "nccl", "timed out", "timeout")


class TrainingStopped(ValueError):
    """The training cannot go on; the message says why and what to change."""


@contextlib.contextmanager
def signals_held(hold: bool) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM only set the event, so that the step can end and a checkpoint be written; the second one does
    not wait.

    Nothing is held outside of the main thread, where signals cannot be handled.
    """
    pressed = threading.Event()

    def note(*_: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    if not hold or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def explained_faults(num_processes: int, timeout: float, doing: Callable[[], str]) -> Iterator[None]:
    """Turn no memory and a lost process into a `TrainingStopped` that says what to do, and what `doing` tells."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
            raise TrainingStopped(f"Out of memory {doing()}; then go on with --resume. ({reason})") from error
        if num_processes > 1 and any(word in reason.lower() for word in _LOST):
            raise TrainingStopped(
                f"Another process of this training was lost, or did not answer within --timeout {timeout:g} seconds; "
                f"its own log says why. Start all of them again with --resume. ({reason})"
            ) from error
        raise


def sizes(batches: Sequence[Mapping[str, Any]], config: TrainConfig, model: DrmmConfig) -> str:
    """What a step of these batches computes, and what would make it smaller."""
    height, width = (max(image.shape[axis] for b in batches for image in b["images"]) for axis in (-2, -1))
    return (
        f"on a batch of {config.batch_size} images of up to {height}x{width} pixels, with {model.num_proposals} "
        f"proposals in {model.num_stages} stages: lower --batch-size and raise --gradient-accumulation as much, add "
        "--gradient-checkpointing or --mixed-precision bf16, or lower --config num_proposals or --image-size"
    )
