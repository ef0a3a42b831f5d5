"""The timer, the counts, and that what we are measured against computes the same thing."""

import time

import pytest
import torch

from benchmarks.loss import LINEAR, LOOKUP, OURS, losses, make_case, object_counts
from benchmarks.measure import alternate, gpu_counts, peak_memory, saved_memory
from benchmarks.models import build_preset, stages_of
from benchmarks.page import exponent, ratios
from benchmarks.released import released_regions
from drmm_hf.stage_sparse_rcnn import multilevel_roi_align

MEGABYTE = 250_000  # float32 numbers
STRIDES = (4, 8, 16, 32)


def test_candidates_take_turns_and_each_round_begins_with_another() -> None:
    calls: list[str] = []
    timings = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert all(len(timing["wall"]) == len(timing["cpu"]) == 4 and timing["device"] == [] for timing in timings.values())


def test_waiting_is_no_cpu_time_and_a_fast_candidate_is_called_several_times() -> None:
    calls: list[None] = []
    timing = alternate({"sleep": lambda: time.sleep(0.01)}, rounds=1)["sleep"]
    assert timing["wall"][0] >= 0.01
    assert timing["cpu"][0] < 0.01
    alternate({"fast": lambda: calls.append(None)}, rounds=1, min_seconds=0.01)
    assert len(calls) > 3


def test_ratios_are_taken_round_by_round_and_an_exponent_is_a_slope() -> None:
    assert ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)
    assert exponent([1, 2, 5, 9], [3 * x**1.7 for x in (1, 2, 5, 9)]) == pytest.approx(1.7)


def test_peak_counts_what_is_held_at_once() -> None:
    def run() -> None:
        for _ in range(3):
            torch.ones(MEGABYTE) + torch.ones(2 * MEGABYTE)[:MEGABYTE]  # 1 + 2 + 1, then all are freed

    assert round(peak_memory(run), 2) == 4.0


def test_a_saved_storage_counts_once() -> None:
    x = torch.ones(MEGABYTE, requires_grad=True)
    y = torch.ones(2 * MEGABYTE)
    assert round(saved_memory(lambda: x.exp()), 2) == 1.0  # its result
    assert round(saved_memory(lambda: (x * y[:MEGABYTE], x * y[MEGABYTE:])), 2) == 2.0  # y, under two views
    assert saved_memory(lambda: x * y[:MEGABYTE], without=[y]) == 0
    assert gpu_counts(lambda: torch.ones(1), "cpu") == {}


@pytest.mark.parametrize("name", [LINEAR, LOOKUP])
def test_linear_space_loss_equals_ours(name: str) -> None:
    case = make_case(batch=8, proposals=30, stages=2)
    assert 0 in [len(label["class_labels"]) for label in case.labels]
    found = losses(case)
    torch.testing.assert_close(found[name](), found[OURS](), rtol=1e-5, atol=0)
    for leaf in (case.stages[0].scales, case.stages[1].class_logits):
        gradients = [torch.autograd.grad(found[loss](), leaf)[0] for loss in (name, OURS)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_object_counts_are_long_tailed_around_cocos_mean() -> None:
    counts = object_counts(1000)
    assert sum(counts) / 1000 == pytest.approx(7.3, rel=0.02)
    assert (min(counts), max(counts) > 50) == (0, True)


def test_every_criterion_reaches_all_stages() -> None:
    case = make_case(batch=3, proposals=20, stages=2)
    for name, loss in losses(case).items():
        if name in (OURS, LINEAR, LOOKUP):
            continue
        loss().backward()
        logits = case.detr_logits if name == "DETR" else case.logits
        for leaves in (logits, case.boxes):
            assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves), name
        for leaf in case.leaves():
            leaf.grad = None


def test_released_regions_equal_ours() -> None:
    features = [torch.randn(2, 8, 128 // s, 160 // s) for s in STRIDES]
    corner = torch.rand(2, 40, 2) * 100
    boxes = torch.cat((corner, corner + torch.exp(torch.rand(2, 40, 2) * 6)), dim=-1)
    boxes[0, 0, 2] = boxes[0, 0, 0] - 5  # a box that no level takes
    theirs = released_regions(features, boxes, STRIDES).flatten(2).transpose(1, 2).view(2, 40, 49, 8)
    torch.testing.assert_close(theirs, multilevel_roi_align(features, boxes, STRIDES), rtol=1e-4, atol=1e-5)


def test_stages_alone_equal_the_whole_model() -> None:
    model = build_preset("drmm-adamixer-tiny")
    pixels = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        features = model.model.pyramid(model.model.backbone(pixels))
        found = stages_of(model, features)(pixels)
        torch.testing.assert_close(found.locations, model(pixels).locations)
    assert model.model.backbone.model is not None  # the model itself is as it was
