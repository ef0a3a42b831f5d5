"""What ends a training from outside: no memory, a lost process, Ctrl-C."""

import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..cli import is_out_of_memory
from .config import TrainConfig

_LOST = ("connection", "gloo", "nccl", "timed out", "timeout")


class TrainingStopped(ValueError):
    """The training cannot go on; the message says why and what to change."""


@contextlib.contextmanager
def explained_faults(config: TrainConfig, num_processes: int, memory_use: Callable[[], str]) -> Iterator[None]:
    """Turn what comes from outside into a `TrainingStopped` that says what to do.

    Args:
        config: settings of the training.
        num_processes: processes of the training.
        memory_use: says what was being computed, and what would make it smaller.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        if is_out_of_memory(error):
            raise TrainingStopped(f"Out of memory {memory_use()}; then go on with --resume. ({reason})") from error
        if num_processes > 1 and any(word in reason.lower() for word in _LOST):
            raise TrainingStopped(
                f"Another process of this training was lost, or did not answer within --timeout {config.timeout:g} "
                f"seconds; its own log says why. Start all of them again with --resume. ({reason})"
            ) from error
        raise


def batch_advice(config: TrainConfig, batches: Sequence[Mapping[str, Any]], model: Any) -> str:
    """The sizes of a step, and which settings make them smaller.

    Args:
        config: settings of the training.
        batches: of the step, with `image` (B, 3, H, W) and `labels`.
        model: the model's configuration.
    """
    count, _, height, width = max((batch["image"].shape for batch in batches), key=math.prod)
    objects = max(len(label["class_labels"]) for batch in batches for label in batch["labels"])
    advice = ["lower --batch-size and raise --gradient-accumulation as much"] if config.batch_size > 1 else []
    if not config.gradient_checkpointing:
        advice.append("add --gradient-checkpointing")
    if config.mixed_precision == "no":
        advice.append("add --mixed-precision bf16")
    advice += ["lower --config num_proposals", "use smaller images"]
    return (
        f"on a batch of {count} images of {height}x{width} pixels with up to {objects} objects, with "
        f"{model.num_proposals} proposals in {model.num_stages} stages: {', or '.join(advice)}"
    )


class Interrupts:
    """Ctrl-C waits for the end of the step, so that a checkpoint can be written; the second one does not wait."""

    def __init__(self) -> None:
        self.pending = False

    @contextlib.contextmanager
    def held(self, hold: bool) -> Iterator["Interrupts"]:
        """Hold them inside, if `hold`; does nothing outside of the main thread."""
        if not hold or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, *_: Any) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
        print("\nstopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)


def ignore_interrupts(_: int) -> None:
    """What a DataLoader worker does with Ctrl-C, which the terminal sends to it as well: the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
