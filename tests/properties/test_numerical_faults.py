"""Bad conditions of training: ten times the learning rate, half precision, extreme boxes, NaN; weights stay finite."""

import contextlib
from collections.abc import Callable

import pytest
import torch

from drmm_hf.training import TrainConfig
from drmm_hf.training.optimization import StepGuard, build_optimizer
from model_fixtures import inputs, small_model

CONFIG = TrainConfig(data="x", train_images=1, learning_rate=1e-2)  # ten times the default
HALVES = (torch.bfloat16, torch.float16)
SHAPES = (
    [0.5, 0.5, 1 / 96, 1 / 64],  # a pixel
    [0.5, 0.5, 1.0, 1.0],  # the whole image
    [0.5, 0.5, 1.0, 1 / 64],  # a line
    [1.0, 1.0, 1e-6, 1e-6],  # next to nothing, in the corner
    [0.0, 0.5, 0.0, 0.0],  # nothing
)


def train(
    steps: int,
    *,
    dtype: torch.dtype | None,
    spoil: Callable[[int, torch.nn.Module, dict], None] | None = None,
    **options,
) -> tuple[torch.nn.Module, int]:
    """A small model after this many steps as the training loop takes them, and how many of them were skipped.

    float16 goes with a GradScaler, as Accelerate makes one. `spoil` is called with the step, the model and the batch
    before the forward pass, and again (batch empty) after the backward pass.
    """
    model = small_model(**options).train()
    optimizer = build_optimizer(model, CONFIG)
    guard = StepGuard(optimizer, torch.device("cpu"), model)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = inputs(height=32, width=32) | {"pixel_mask": None}
        batch["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
        for label in batch["labels"]:
            chosen = torch.randint(len(SHAPES), (2,), generator=generator)
            label["boxes"] = torch.tensor(SHAPES)[chosen]
        if spoil:
            spoil(step, model, batch)
        with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        if spoil:
            spoil(step, model, {})
        scaler.unscale_(optimizer)
        guard.check(torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm))
        if scaler.is_enabled():
            guard.disarm()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, guard.take()[0]


def broken(model: torch.nn.Module) -> list[str]:
    return [name for name, value in model.state_dict().items() if not value.isfinite().all()]


def test_extreme_boxes_and_a_high_learning_rate() -> None:
    model, skipped = train(12, dtype=None)
    assert broken(model) == []
    assert skipped == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision(dtype: torch.dtype) -> None:
    """In float16 the scaler starts at 65536 and finds its scale by skipping steps."""
    model, skipped = train(30, dtype=dtype)
    assert broken(model) == []
    assert skipped <= (0 if dtype is torch.bfloat16 else 15)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [None, *HALVES])
@pytest.mark.parametrize("options", [{}, {"decoder": "adamixer"}], ids=["sparse-rcnn", "adamixer"])
def test_extreme_boxes_and_a_high_learning_rate_for_long(dtype: torch.dtype | None, options: dict) -> None:
    model, skipped = train(2000, dtype=dtype, **options)
    assert broken(model) == []
    assert skipped < 40


def nan_in_the_data(step: int, model: torch.nn.Module, batch: dict) -> None:
    if batch and step in (2, 5):
        batch["pixel_values"][0, 0, 3, 3] = float("nan")


def nan_in_the_gradient(step: int, model: torch.nn.Module, batch: dict) -> None:
    if not batch and step in (2, 5):
        next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")


@pytest.mark.parametrize("spoil", [nan_in_the_data, nan_in_the_gradient])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nan_does_not_reach_the_weights(spoil: Callable, dtype: torch.dtype | None) -> None:
    model, skipped = train(8, dtype=dtype, spoil=spoil)
    assert broken(model) == []
    assert skipped == 2


def test_nan_in_a_weight_does_not_spread() -> None:
    """Nothing can train such a model; every step is skipped, so that the loop stops and names the learning rate."""

    def poison(step: int, model: torch.nn.Module, batch: dict) -> None:
        if batch and step == 3:
            model.model.stages[0].fc1.weight.data[0, 0] = float("nan")

    model, skipped = train(8, dtype=None, spoil=poison)
    assert broken(model) == ["model.stages.0.fc1.weight"]
    assert skipped == 5
