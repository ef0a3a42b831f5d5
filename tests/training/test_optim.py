"""Learning rates, parameter groups, bad steps and the average of the weights."""

import pytest
import torch
from torch import nn

from drmm_hf.training import TrainConfig
from drmm_hf.training.optim import StepGuard, build_optimizer, build_schedule, weight_average
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


class TestStepGuard:
    @staticmethod
    def setup() -> tuple[nn.Parameter, torch.optim.AdamW, StepGuard]:
        weight = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        return weight, optimizer, StepGuard(optimizer, torch.device("cpu"))

    def step(self, weight, optimizer, guard, gradient: float) -> float:
        weight.grad = torch.full((3,), gradient)
        bad = guard.check(weight.grad.norm())
        optimizer.step()
        return bad.item()

    def test_a_bad_step_changes_neither_weights_nor_moments(self) -> None:
        weight, optimizer, guard = self.setup()
        assert self.step(weight, optimizer, guard, 1.0) == 0
        state = {name: value.clone() for name, value in optimizer.state[weight].items()}
        before = weight.detach().clone()
        for gradient in (float("nan"), float("inf")):
            assert self.step(weight, optimizer, guard, gradient) == 1
            assert torch.equal(weight, before)
            for name, value in optimizer.state[weight].items():
                assert torch.equal(value, state[name]), name
        assert self.step(weight, optimizer, guard, 1.0) == 0
        assert not torch.equal(weight, before)

    def test_bad_steps_and_the_longest_row_are_counted_across_reports(self) -> None:
        parts = self.setup()
        nan = float("nan")
        for gradient in (1.0, nan, 1.0, nan, nan):
            self.step(*parts, gradient)
        assert parts[2].take() == (3, 2)
        for gradient in (nan, nan, 1.0):
            self.step(*parts, gradient)
        assert parts[2].take() == (2, 4), "the row began before the last report"
        assert parts[2].take() == (0, 0)

    def test_a_good_run_is_that_of_a_plain_optimizer(self) -> None:
        weight, optimizer, guard = self.setup()
        plain = nn.Parameter(torch.ones(3))
        other = torch.optim.AdamW([plain], lr=0.1, fused=True)
        for gradient in (1.0, -2.0, 0.5):
            self.step(weight, optimizer, guard, gradient)
            plain.grad = torch.full((3,), gradient)
            other.step()
        assert torch.equal(weight, plain)


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
