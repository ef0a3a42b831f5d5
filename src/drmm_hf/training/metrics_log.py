"""Metrics of the steps: averaged on the device, logged as JSON lines."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


def keep_lines(path: Path, last_step: int) -> None:
    """Drop what a run wrote after the checkpoint from which this one goes on."""
    lines = path.read_text().splitlines() if last_step and path.is_file() else []
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError):  # cut off in the middle
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
    path.write_text("".join(kept))


class MetricsLog:
    """metrics.jsonl and the trackers; only the main process writes.

    Args:
        path: the file.
        first_step: lines after it are dropped.
        accelerator: knows the trackers.
        settings: of the training, for the trackers.
    """

    def __init__(self, path: Path, first_step: int, accelerator: Accelerator, settings: Mapping[str, Any]):
        self.accelerator, self.file = accelerator, None
        if accelerator.is_main_process:
            keep_lines(path, first_step)
            if accelerator.log_with:
                plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
                accelerator.init_trackers("drmm-hf", config=plain)
            self.file = open(path, "a")  # noqa: SIM115

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line; the numbers in it go to the trackers as well."""
        if self.file is not None:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            if self.accelerator.trackers:
                self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=step)

    def close(self) -> None:
        """Close the file; the trackers go on."""
        if self.file is not None:
            self.file.close()


class RunningMean:
    """Means of tensors over the steps with a finite gradient, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.good: Any = 0.0
        self.count = 0

    def add(self, values: dict[str, Any], bad: Tensor) -> None:
        self.count += 1
        self.good = self.good + (1 - bad)
        for name, value in values.items():
            value = value.detach()
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(bad > 0, torch.zeros_like(value), value)

    def take(self) -> tuple[list[str], Tensor]:
        """Names, and their means as one tensor; nan where no step was good."""
        return list(self.sums), torch.stack([value.float() for value in self.sums.values()]) / self.good
