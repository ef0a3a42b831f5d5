"""Optimizer, learning rate, weights of the batches of a step, skipped steps, and the average of the weights."""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from transformers import get_scheduler

from ..configuration_drmm import DrmmConfig
from .config import TrainConfig

_Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train.

    Weight decay is on all of them, as in the released code, unless `config.decay_norms` is off: then biases and the
    parameters of normalization layers go without.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = config.learning_rate * (config.backbone_lr_factor if ".backbone." in f".{name}" else 1.0)
        decay = config.weight_decay if config.decay_norms or parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        fused=True,  # one pass over the parameters; the plain one is a tenth of a small model's step on a CPU
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int, steps_per_epoch: float
) -> LambdaLR:
    """The learning rate of every step, linear warm-up first."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * num_steps)
    if config.schedule != "multi_step":
        return cast(LambdaLR, get_scheduler(config.schedule, optimizer, warmup, num_steps))
    drops = [round(epoch * steps_per_epoch) for epoch in config.milestones or ()]

    def factor(step: int) -> float:
        return min(1.0, step / max(warmup, 1) if warmup else 1.0) * 0.1 ** sum(step >= drop for drop in drops)

    return LambdaLR(optimizer, factor)


def set_rates(optimizer: torch.optim.Optimizer, schedule: LambdaLR, given: Sequence[Mapping[str, Any]]) -> None:
    """Go on with these learning rates, decays and betas where a loaded checkpoint has brought its own.

    Args:
        optimizer, schedule: after loading; the schedule, which may be another, goes on at the step where it is.
        given: the groups of the optimizer before loading.
    """
    for group, own, factor in zip(optimizer.param_groups, given, schedule.lr_lambdas, strict=True):
        group.update({name: own[name] for name in ("initial_lr", "weight_decay", "betas")})
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


@contextlib.contextmanager
def scale_floor(config: DrmmConfig, start: float | None, done: float) -> Iterator[None]:
    """The `min_scale_ratio` of a step on a geometric path from `start`, if any; `done` is a share of the training."""
    end = config.min_scale_ratio
    if start is not None:
        share = min(1.0, done / 0.9)
        config.min_scale_ratio = start ** (1 - share) * end**share
    try:
        yield
    finally:
        config.min_scale_ratio = end


def batch_weights(
    accelerator: Accelerator, batches: Sequence[Mapping[str, Any]], config: DrmmConfig
) -> list[Tensor | float]:
    """Factor of the loss of each of this process's batches, so that a step is that of one process with all its images.

    Distributed training takes the mean of the processes' gradients. A sum over the ground truths must stay a sum; a
    mean must be that over the ground truths of the whole step, not a mean of means. The set prediction loss and those
    of transformers' detectors are divided by the number of objects, or of matches, already.

    Args:
        accelerator: knows the processes.
        batches: of one step, as `TrainingData.batches` gives them.
        config: of the model.
    """
    processes = accelerator.num_processes
    if config.objective in ("set_prediction", "native"):
        return [1.0 / len(batches)] * len(batches)
    if config.loss_reduction == "sum":
        return [float(processes)] * len(batches)
    if processes == len(batches) == 1:
        return [1.0]
    local = torch.tensor([float(batch["objects"]) for batch in batches], device=accelerator.device)
    total = accelerator.reduce(local.sum(), "sum").clamp(min=1)
    # the model divides by at least one ground truth
    return list(local.clamp(min=1) * processes / total)


class StepGuard:
    """Skips steps whose gradient is not finite, without waiting for the device.

    The optimizer's fused kernel takes a flag on the device that makes it leave parameters and moments alone: what
    GradScaler uses for the same purpose. The running statistics of normalization layers, which the forward pass has
    already moved and which NaN never leaves again, go back to those before the step.

    Args:
        optimizer: a fused one.
        model: with the statistics.
        armed: False where something else skips the steps, such as a GradScaler.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, armed: bool = True):
        self.optimizer, self.armed = optimizer, armed
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.kept = [buffer.clone() for buffer in self.buffers]

    def check(self, gradient_norm: Tensor) -> Tensor:
        """Arm the optimizer for a step with this gradient norm; 1 on the device if the step is bad, else 0."""
        bad = (~torch.isfinite(gradient_norm)).float()
        if self.armed:
            self.optimizer.found_inf, self.optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            kept.copy_(torch.where(bad > 0, kept, buffer))
            buffer.copy_(kept)
        return bad


class UselessSteps:
    """Steps from which nothing can be learned: no finite gradient, hardly any, or no object."""

    # A gradient of less than this share of the first step's moves nothing. That of a trained model is a tenth of it.
    flat = 1e-3
    # Batches without any box follow each other where few images have one: so many times the limit of the others.
    patience = 10

    def __init__(self, config: TrainConfig):
        most = config.max_bad_steps
        lower = f"lower --learning-rate (now {config.learning_rate:g})"
        exact = "" if config.mixed_precision == "no" else ", or train with --mixed-precision no"
        # how many of the last how many steps are too many, and why
        self.limits = {
            "bad": (most, most, f"had no finite gradient; the weights are those before; {lower}{exact}"),
            "flat": (
                *(most, 2 * most),
                f"had objects but hardly a gradient: the weights have run away; begin again and {lower}",
            ),
            "dropped": (
                *(most, most),
                "had no object, since all their boxes were too small or outside after the augmentation; "
                "train at a larger --image-size, or cut large photos into tiles",
            ),
            "empty": (
                *(self.patience * most, self.patience * most),
                "had no box in any image; look at the annotations, leave such images out with --skip-empty-images, or "
                "raise --max-bad-steps if so few of them have objects",
            ),
        }
        self.last = {kind: deque([False], maxlen=length) for kind, (_, length, _) in self.limits.items()}
        self.first_norm: float | None = None

    def add(self, norm: float, bad: int, objects: int, dropped: int) -> str | None:
        """Take in a step.

        Args:
            norm: of the gradient.
            bad: 1 if the step was skipped for its gradient, else 0.
            objects, dropped: ground-truth boxes, and boxes that the augmentation has dropped, of all processes.

        Returns:
            Why the training should stop, if it should.
        """
        now = {"bad": bool(bad), "empty": not objects and not dropped}
        if not now["empty"]:  # an image without boxes says nothing about the others
            now["dropped"] = not objects
        if objects and not bad:
            self.first_norm = norm if self.first_norm is None else self.first_norm
            now["flat"] = norm <= self.flat * self.first_norm
        for kind, useless in now.items():
            self.last[kind].append(useless)
            most, length, what = self.limits[kind]
            if sum(self.last[kind]) >= most:
                return f"{most} steps {'in a row' if most == length else f'of {length}'} {what}."
        return None


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of all parameters and buffers of a model; `update_parameters` takes in a step.

    The decay grows to its value as (1 + t) / (10 + t), so that short trainings do not keep their random start.
    """

    def update(averages: _Tensors, values: _Tensors, _: Any) -> None:
        count = int(average.n_averaged)  # stays on the CPU; what is passed here is on the device
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + count) / (10 + count)))
        else:  # counters
            torch._foreach_copy_(averages, values)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False)
