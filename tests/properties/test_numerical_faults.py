"""Bad conditions of training: ten times the learning rate, half precision, extreme boxes; weights stay finite."""

import contextlib

import pytest
import torch

from model_fixtures import inputs, small_model

SHAPES = (
    [0.5, 0.5, 1 / 96, 1 / 64],  # a pixel
    [0.5, 0.5, 1.0, 1.0],  # the whole image
    [0.5, 0.5, 1.0, 1 / 64],  # a line
    [1.0, 1.0, 1e-6, 1e-6],  # next to nothing, in the corner
    [0.0, 0.5, 0.0, 0.0],  # nothing
)


def train(steps: int, dtype: torch.dtype | None, **options) -> tuple[torch.nn.Module, int]:
    """A small model after this many steps of AdamW, and in how many of them a gradient was not finite.

    float16 goes with a GradScaler, which starts at 65536 and finds its scale by skipping steps.
    """
    model = small_model(**options).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)  # ten times the default of the recipes
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    generator = torch.Generator().manual_seed(0)
    not_finite = 0
    for _ in range(steps):
        batch = inputs(height=32, width=32) | {"pixel_mask": None}
        batch["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
        for label in batch["labels"]:
            label["boxes"] = torch.tensor(SHAPES)[torch.randint(len(SHAPES), (2,), generator=generator)]
        with torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext():
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        not_finite += not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return model, not_finite


def assert_finite(model: torch.nn.Module) -> None:
    assert [name for name, value in model.state_dict().items() if not value.isfinite().all()] == []


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_extreme_boxes_and_a_high_learning_rate(dtype: torch.dtype | None) -> None:
    model, not_finite = train(30, dtype)
    assert_finite(model)
    assert not_finite <= (15 if dtype is torch.float16 else 0)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoder", ["sparse_rcnn", "adamixer"])
def test_for_long(dtype: torch.dtype | None, decoder: str) -> None:
    model, not_finite = train(2000, dtype, decoder=decoder)
    assert_finite(model)
    assert not_finite < 40
