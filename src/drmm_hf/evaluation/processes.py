"""The processes that `torchrun` or `accelerate launch` started; one alone without them."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

Value = TypeVar("Value")


class Processes:
    """Which process this is, and how it agrees with the others.

    Args:
        device: as the user named it; with several processes only its kind, since each has a device of its own.

    Attributes:
        index, count: this process, and how many there are.
        device: what to give to `load_detector`.
    """

    def __init__(self, device: str | None = None) -> None:
        self.index, self.count, self.device = 0, 1, device
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        if device not in (None, "cpu", "cuda"):
            raise ValueError(f"--device {device}: several processes need one each; give cpu, cuda or nothing")
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        self.index, self.count, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.index == 0

    def share(self, value: Value) -> Value:
        """The main process's value, on all."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def all_do(self, step: Callable[[], Value]) -> Value:
        """What `step` returns here, once it has succeeded everywhere.

        Raises:
            ValueError, OSError: on the main process: the first process's error about the input.
            SystemExit: on the others, so that the user reads one message.
        """
        if self.count == 1:
            return step()
        value, error = None, None
        try:
            value = step()
        except (ValueError, OSError) as problem:
            # Messages travel, exceptions of other libraries may not.
            error = str(problem)
        failed = next((message for message in gather_object([error]) if message is not None), None)
        if failed is None:
            return value  # type: ignore[return-value]
        if self.is_main:
            raise ValueError(failed)
        raise SystemExit(2)
