"""Detections from outputs, against a small case that is computed by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.postprocessing import select_detections
from model_fixtures import inputs, small_model

SCORES = torch.tensor([[[0.9, 0.8], [0.1, 0.6], [0.2, 0.05]], [[0.3, 0.4], [0.7, 0.02], [0.01, 0.5]]])
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.2, 0.2], [0.1, 0.1, 0.4, 0.2]]).repeat(2, 1, 1)
SCALES = torch.tensor([[0.01, 0.02, 0.03, 0.04], [0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.1, 0.5]]).repeat(2, 1, 1)
SIZES = torch.tensor([[100, 200], [50, 40]])  # height, width


def outputs_of(dtype: torch.dtype = torch.float32, **changes: Any) -> SimpleNamespace:
    fields = {"logits": SCORES.logit(), "pred_boxes": BOXES, "pred_scales": SCALES} | changes
    return SimpleNamespace(**{name: None if value is None else value.to(dtype) for name, value in fields.items()})


def test_by_hand_through_the_processor() -> None:
    first, second = DrmmImageProcessor().post_process_object_detection(outputs_of(), 0.45, SIZES)
    # Component 0 of the first image stands for both classes.
    torch.testing.assert_close(first["scores"], torch.tensor([0.9, 0.8, 0.6]))
    assert first["labels"].tolist() == [0, 1, 1]
    same = [80.0, 30.0, 120.0, 70.0]
    torch.testing.assert_close(first["boxes"], torch.tensor([same, same, [40.0, 50.0, 80.0, 70.0]]))
    edges = [2.0, 2.0, 6.0, 4.0]
    torch.testing.assert_close(first["scales"], torch.tensor([edges, edges, [20.0, 10.0, 40.0, 20.0]]))

    torch.testing.assert_close(second["scores"], torch.tensor([0.7, 0.5]))
    assert second["labels"].tolist() == [0, 1]
    # The last box sticks out of the image: nothing is clipped.
    torch.testing.assert_close(second["boxes"], torch.tensor([[8.0, 25.0, 16.0, 35.0], [-4.0, 0.0, 12.0, 10.0]]))
    torch.testing.assert_close(second["scales"], torch.tensor([[4.0, 5.0, 8.0, 10.0], [0.0, 0.0, 4.0, 25.0]]))


def test_without_target_sizes_boxes_stay_normalized() -> None:
    result = select_detections(outputs_of(), 0.85)[0]
    torch.testing.assert_close(result["boxes"], torch.tensor([[0.4, 0.3, 0.6, 0.7]]))
    torch.testing.assert_close(result["scales"], SCALES[0, :1])


@pytest.mark.parametrize("threshold", [[0.7, 0.1], torch.tensor([0.7, 0.1])])
def test_threshold_per_image(threshold: Any) -> None:
    results = select_detections(outputs_of(), threshold)
    assert [len(result["scores"]) for result in results] == [2, 4]


def test_threshold_is_exclusive() -> None:
    outputs = outputs_of(logits=torch.tensor([[[0.0, 0.1]]]), pred_boxes=BOXES[:1, :1], pred_scales=None)
    assert select_detections(outputs, 0.5)[0]["labels"].tolist() == [1]


@pytest.mark.parametrize(("top_k", "lengths"), [(2, [2, 2]), (100, [6, 6]), ([1, 3], [1, 3]), ([9, 2], [6, 2])])
def test_top_k(top_k: Any, lengths: list[int]) -> None:
    results = select_detections(outputs_of(), 0.0, top_k=top_k)
    assert [len(result["scores"]) for result in results] == lengths
    for result, scores, length in zip(results, SCORES, lengths, strict=True):
        torch.testing.assert_close(result["scores"], scores.flatten().sort(descending=True).values[:length])


def test_default_is_100_detections() -> None:
    outputs = outputs_of(logits=torch.full((1, 60, 3), 3.0), pred_boxes=torch.rand(1, 60, 4), pred_scales=None)
    assert len(select_detections(outputs)[0]["scores"]) == 100


def test_without_scales() -> None:
    for outputs in (outputs_of(pred_scales=None), {"logits": SCORES.logit(), "pred_boxes": BOXES}):
        assert select_detections(outputs, 0.5, SIZES)[0].keys() == {"scores", "labels", "boxes"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    outputs = outputs_of(dtype)
    result = select_detections(outputs, 0.45, SIZES)[0]
    expected = select_detections(SimpleNamespace(**{k: v.float() for k, v in vars(outputs).items()}), 0.45, SIZES)[0]
    for name, value in result.items():
        assert torch.equal(value, expected[name])
        assert value.dtype == (torch.int64 if name == "labels" else torch.float32)


@pytest.mark.parametrize("sizes", [[(100, 200), (50, 40)], list(SIZES), SIZES.int()])
def test_kinds_of_target_sizes(sizes: Any) -> None:
    expected = select_detections(outputs_of(), 0.5, SIZES)[1]["boxes"]
    assert torch.equal(select_detections(outputs_of(), 0.5, sizes)[1]["boxes"], expected)


def test_nan_is_no_detection() -> None:
    logits = SCORES.logit()
    logits[0, 1, 1] = torch.nan
    result = select_detections(outputs_of(logits=logits), 0.0)[0]
    torch.testing.assert_close(result["scores"], torch.tensor([0.9, 0.8, 0.2, 0.1, 0.05]))


def test_nothing_found() -> None:
    result = select_detections(outputs_of(), 0.99, SIZES)[0]
    assert result["boxes"].shape == result["scales"].shape == (0, 4)
    assert result["scores"].shape == result["labels"].shape == (0,)


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": [0.5, 0.5, 0.5]},
        {"top_k": [5]},
        {"top_k": 0},
        {"top_k": 1.5},
        {"target_sizes": [(100, 200)]},
        {"target_sizes": torch.ones(3, 2)},
        {"target_sizes": torch.ones(2, 3)},
        {"scale_factor": 0.0, "interval_level": 0.5},
        {"density": "unknown", "interval_level": 0.5},
        {"interval_level": 1.0},
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments)).removeprefix("interval_")):
        select_detections(outputs_of(), **arguments)


def test_missing_outputs_are_named() -> None:
    with pytest.raises(ValueError, match="pred_boxes"):
        select_detections({"logits": SCORES})
    with pytest.raises(ValueError, match="pred_scales"):
        select_detections(outputs_of(pred_scales=None), interval_level=0.5)


def test_intervals_by_hand() -> None:
    # Half of a Cauchy density lies within γ; the box of the first component is 80, 30, 120, 70 with γ 2, 2, 6, 4.
    first, second = DrmmImageProcessor().post_process_object_detection(outputs_of(), 0.45, SIZES, interval_level=0.5)
    expected = torch.tensor([[78.0, 28.0, 114.0, 66.0], [82.0, 32.0, 126.0, 74.0]])
    torch.testing.assert_close(first["box_intervals"][0], expected)
    assert first["box_intervals"].shape == (3, 2, 4)
    assert second["box_intervals"].shape == (2, 2, 4)
    torch.testing.assert_close(second["box_intervals"].mean(dim=1), second["boxes"])
    corrected = select_detections(outputs_of(), 0.45, SIZES, interval_level=0.5, scale_factor=0.5)[0]
    torch.testing.assert_close(corrected["box_intervals"][0], (expected + expected.mean(0)) / 2)
    gaussian = select_detections(outputs_of(), 0.45, SIZES, interval_level=0.6826894921, density="gaussian")[0]
    torch.testing.assert_close(gaussian["box_intervals"][0], expected)
    assert "box_intervals" not in select_detections(outputs_of(), 0.45, SIZES)[0]
    assert select_detections(outputs_of(), 0.99, interval_level=0.5)[0]["box_intervals"].shape == (0, 2, 4)


def test_objectness_is_that_of_the_component() -> None:
    objectness = torch.tensor([[0.95, 0.7, 0.4], [0.5, 0.8, 0.6]])
    first, second = select_detections(outputs_of(objectness_logits=objectness.logit()), 0.45, SIZES)
    torch.testing.assert_close(first["objectness"], torch.tensor([0.95, 0.95, 0.7]))
    torch.testing.assert_close(second["objectness"], torch.tensor([0.8, 0.6]))


@torch.no_grad()
def test_score_is_objectness_times_class_probability() -> None:
    outputs = small_model().eval()(**{name: value for name, value in inputs().items() if name != "labels"})
    for one, objectness in zip(select_detections(outputs, 0.0), outputs.objectness_logits.sigmoid(), strict=True):
        # All pairs of 12 components and 3 classes are there, and the class probabilities of a component sum to 1.
        share = one["scores"] / one["objectness"]
        sums = torch.stack([share[one["objectness"] == o].sum() for o in objectness])
        torch.testing.assert_close(sums, torch.ones(12))
