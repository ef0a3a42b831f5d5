"""Weights of the batches of a step, so that it is the step of one process that had all their images at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..configuration_drmm import DrmmConfig


def batch_weights(
    accelerator: Accelerator, batches: Sequence[Mapping[str, Any]], config: DrmmConfig
) -> list[torch.Tensor | float]:
    """Factor of the loss of each of this process's batches of one step.

    Distributed training takes the mean of the processes' gradients. A sum over the ground truths must stay a sum; a
    mean must be that over the ground truths of the whole step, not a mean of means. The set prediction loss divides by
    the mean number of matches over the processes already.
    """
    processes = accelerator.num_processes
    if config.objective == "set_prediction":
        return [1.0 / len(batches)] * len(batches)
    if config.loss_reduction == "sum":
        return [float(processes)] * len(batches)
    if processes == len(batches) == 1:
        return [1.0]
    counts = [float(sum(len(label["class_labels"]) for label in batch["labels"])) for batch in batches]
    local = torch.tensor(counts, device=accelerator.device)
    total = accelerator.reduce(local.sum(), "sum").clamp(min=1)
    # the model divides by at least one ground truth
    return list(local.clamp(min=1) * processes / total)
