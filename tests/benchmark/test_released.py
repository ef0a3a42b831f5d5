"""What we are measured against computes the same thing."""

import pytest
import torch

from drmm_hf.benchmark.linear_mixture import linear_mixture_loss
from drmm_hf.benchmark.loss import LINEAR, LOOKUP, OURS, losses, make_case, object_counts
from drmm_hf.benchmark.models import build_preset, stages_of
from drmm_hf.benchmark.released_forward import ReleasedPyramid, ReleasedStages, released_regions
from drmm_hf.roi_align_drmm import multilevel_roi_align

STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize("name", [LINEAR, LOOKUP])
def test_linear_space_loss_equals_ours(name: str) -> None:
    case = make_case(batch=8, proposals=30, stages=2)
    assert 0 in [len(label["class_labels"]) for label in case.labels]
    found = losses(case)
    torch.testing.assert_close(found[name](), found[OURS](), rtol=1e-5, atol=0)
    for leaf in (case.stages[0].scales, case.stages[1].class_logits):
        gradients = [torch.autograd.grad(found[loss](), leaf)[0] for loss in (name, OURS)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_linear_space_loss_of_a_batch_without_objects_is_almost_nothing() -> None:
    case = make_case(batch=2, proposals=10, stages=2)
    loss = linear_mixture_loss(case.stages, [torch.empty(0, 4)] * 2, [torch.empty(0, dtype=torch.long)] * 2)
    assert 0 < abs(loss.item()) < 1e-9


def test_object_counts_are_long_tailed_around_cocos_mean() -> None:
    counts = object_counts(1000)
    assert sum(counts) / 1000 == pytest.approx(7.3, rel=0.02)
    assert min(counts) == 0
    assert max(counts) > 50
    assert counts == object_counts(1000)


def test_released_regions_equal_ours() -> None:
    features = [torch.randn(2, 8, 128 // s, 160 // s) for s in STRIDES]
    corner = torch.rand(2, 40, 2) * 100
    boxes = torch.cat((corner, corner + torch.exp(torch.rand(2, 40, 2) * 6)), dim=-1)
    boxes[0, 0, 2] = boxes[0, 0, 0] - 5  # a box that no level takes
    theirs = released_regions(features, boxes, STRIDES).flatten(2).transpose(1, 2).view(2, 40, 49, 8)
    torch.testing.assert_close(theirs, multilevel_roi_align(features, boxes, STRIDES), rtol=1e-4, atol=1e-5)


def test_released_forward_equals_ours() -> None:
    model = build_preset("drmm-sparse-rcnn-tiny", pyramid_levels=[0, 1, 2, 3])
    pixels = torch.randn(1, 3, 128, 160)
    with torch.inference_mode():
        features = ReleasedPyramid(model).eval()(pixels)
        expected = model(pixels)
        found = ReleasedStages(model).eval()(features, STRIDES, torch.tensor([[160.0, 128.0]]))[-1]
    torch.testing.assert_close(found["locations"], expected.locations, rtol=0, atol=2e-3)
    torch.testing.assert_close(found["scales"], expected.scales, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["objectness"].logit(), expected.objectness_logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(found["probability"].log(), expected.class_log_probs, rtol=0, atol=1e-3)
    assert all(feature.is_contiguous() for feature in features)


def test_stages_alone_equal_the_whole_model() -> None:
    model = build_preset("drmm-adamixer-tiny")
    pixels = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        features = model.model.pyramid(model.model.backbone(pixels))
        found = stages_of(model, features)(pixels)
        torch.testing.assert_close(found.locations, model(pixels).locations)
    assert model.model.backbone.model is not None  # the model itself is as it was
