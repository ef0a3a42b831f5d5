"""Learning rates, parameter groups, bad steps and the average of the weights."""

import math

import pytest
import torch
from torch import nn

from drmm_hf.training import TrainConfig
from drmm_hf.training.optim import StepGuard, UselessSteps, build_optimizer, build_schedule, weight_average
from model_fixtures import small_model


def config(**fields) -> TrainConfig:
    return TrainConfig(**{"data": "d", "epochs": 36, "learning_rate": 1.0, "warmup_steps": 4, **fields})


def rates(settings: TrainConfig, num_steps: int, steps_per_epoch: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = build_schedule(optimizer, settings, num_steps, steps_per_epoch)
    values = []
    for _ in range(num_steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_multi_step_drops_at_the_milestones_after_a_linear_warm_up() -> None:
    values = rates(config(schedule="multi_step", milestones=[27, 33]), 360, 10)
    assert values[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert (values[269], values[270], values[329], values[330]) == pytest.approx((1.0, 0.1, 0.1, 0.01))


def test_cosine_ends_near_zero_and_the_share_of_warm_up_counts() -> None:
    values = rates(config(warmup_steps=None, warmup_ratio=0.1), 100, 10)
    assert values[10] == pytest.approx(1.0)
    assert values[9] == pytest.approx(0.9)
    assert values[55] == pytest.approx(0.5, abs=0.01)
    assert values[99] < 1e-3


def test_groups_have_their_own_rate_and_decay() -> None:
    model = small_model()
    settings = config(learning_rate=1e-3, backbone_lr_factor=0.1, weight_decay=0.05, decay_norms=False)
    optimizer = build_optimizer(model, settings)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        rate = 1e-4 if "backbone" in name else 1e-3
        assert found[id(parameter)] == pytest.approx((rate, 0.05 if parameter.dim() > 1 else 0.0)), name
    assert len(build_optimizer(model, config()).param_groups) == 1


def test_frozen_parameters_are_not_optimized() -> None:
    model = small_model(frozen_stages=1)
    members = [p for group in build_optimizer(model, config()).param_groups for p in group["params"]]
    assert len(members) == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))


def step(weight: nn.Parameter, optimizer: torch.optim.AdamW, guard: StepGuard | None, gradient: float) -> bool:
    """One step with this gradient; whether the guard skipped it."""
    weight.grad = torch.full((3,), gradient)
    bad = guard is not None and bool(guard.check(weight.grad.norm()))
    optimizer.step()
    return bad


def test_a_bad_step_changes_nothing_and_the_good_ones_are_those_of_a_plain_optimizer() -> None:
    model, weights = nn.BatchNorm1d(1), [nn.Parameter(torch.ones(3)) for _ in range(2)]
    guarded, plain = (torch.optim.AdamW([weight], lr=0.1, fused=True) for weight in weights)
    guard = StepGuard(guarded, model)
    for gradient in (1.0, float("nan"), -2.0, float("inf"), 0.5):
        model.running_mean.fill_(gradient)
        finite = math.isfinite(gradient)
        assert step(weights[0], guarded, guard, gradient) != finite
        if finite:
            step(weights[1], plain, None, gradient)
            last = gradient
        assert torch.equal(*weights)
        assert model.running_mean.item() == last
        for name, value in plain.state[weights[1]].items():
            assert torch.equal(guarded.state[weights[0]][name], value), name


GOOD, BAD, FLAT, DROPPED, EMPTY = (9.0, 0, 3, 0), (9.0, 1, 3, 0), (0.0, 0, 3, 1), (0.0, 0, 0, 2), (0.0, 0, 0, 0)


@pytest.mark.parametrize(
    ("steps", "stop"),
    [
        ([GOOD, BAD, BAD, GOOD] * 9, None),
        ([GOOD, BAD, EMPTY, BAD, BAD], None),
        ([GOOD, BAD, BAD, BAD], "finite"),
        ([GOOD, FLAT, EMPTY, FLAT, BAD, GOOD, FLAT], "run away"),
        ([GOOD, FLAT, GOOD, GOOD, GOOD, FLAT, GOOD] * 9, None),
        ([(9.0, 0, 1, 0), *[(0.005, 0, 1, 0)] * 3], "run away"),
        ([DROPPED, EMPTY, DROPPED, EMPTY, DROPPED], "--image-size"),
        ([DROPPED, DROPPED, GOOD] * 9, None),
        ([EMPTY] * 29 + [GOOD] + [EMPTY] * 29, None),
        ([GOOD] + [EMPTY] * 30, "--skip-empty-images"),
    ],
)
def test_steps_that_teach_nothing_give_their_reason_when_they_are_too_many(steps: list, stop: str | None) -> None:
    useless = UselessSteps(config(max_bad_steps=3))
    reasons = [useless.add(*step) for step in steps]
    assert not any(reasons[:-1])
    assert reasons[-1] is None if stop is None else stop in reasons[-1]


def test_the_average_follows_its_definition_buffers_included() -> None:
    model = nn.BatchNorm1d(2)
    average = weight_average(model, decay=0.2)
    expected = None
    for count, value in enumerate((1.0, 3.0, -2.0, 5.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(10 * value)
            model.num_batches_tracked.fill_(int(abs(value)))
        # the decay grows as (1 + t) / (10 + t) until it is 0.2
        decay = min(0.2, (1 + count) / (10 + count))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        average.update_parameters(model)
    assert average.module.weight.tolist() == pytest.approx([expected] * 2)
    assert average.module.running_mean.tolist() == pytest.approx([10 * expected] * 2)
    assert average.module.num_batches_tracked.item() == 5
