"""Precision that scores promise and precision there is."""

import math
from typing import Any

import pytest

from drmm_hf.evaluation import lrp_report, operating_points

TRUTH: dict[str, Any] = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 1, "category_id": 2, "bbox": [20, 0, 10, 10]},
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 2, "category_id": 1, "bbox": [50, 0, 99, 99], "iscrowd": 1},
    ],
}


def found(image_id: int, category_id: int, x: float, score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": [x, 0, 10, 10], "score": score}


RESULTS = [
    found(1, 1, 0, 0.9), found(1, 1, 0, 0.5), found(1, 2, 20, 0.7), found(2, 1, 200, 0.3), found(2, 1, 70, 0.95),
]  # fmt: skip


def test_by_hand() -> None:
    """The duplicate is wrong; the detection in the crowd region does not count."""
    points = operating_points(TRUTH, RESULTS, (0.0, 0.5, 0.7, 0.91))
    assert [point.num_detections for point in points] == [4, 3, 2, 0]
    assert [point.expected_precision for point in points[:3]] == pytest.approx([0.6, 0.7, 0.8])
    assert [point.precision for point in points[:3]] == pytest.approx([0.5, 2 / 3, 1.0])
    assert [point.recall for point in points] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0.0])
    assert math.isnan(points[3].precision)
    assert math.isnan(points[3].expected_precision)
    assert points[3].to_dict()["precision"] is None
    assert points[0].settings == "IoU 0.5, maxDets 100, classes together"
    assert math.isnan(operating_points({**TRUTH, "annotations": []}, RESULTS, (0.5,))[0].recall)


def test_they_agree_with_the_threshold_of_a_class() -> None:
    only = [row for row in RESULTS if row["category_id"] == 1]
    truth = {**TRUTH, "annotations": [one for one in TRUTH["annotations"] if one["category_id"] == 1]}
    best = lrp_report(truth, only).per_class["one"]
    (point,) = operating_points(truth, only, (best.score_threshold,))
    assert point.precision == pytest.approx(1.0 - best.false_positive)
    assert point.recall == pytest.approx(1.0 - best.false_negative)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\], not 2"):
        operating_points(TRUTH, RESULTS, (0.5, 2))
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \(0, 1\], not 0"):
        operating_points(TRUTH, RESULTS, iou_threshold=0)
    with pytest.raises(ValueError, match=r"score 1\.5 is outside"):
        operating_points(TRUTH, [found(1, 1, 0, 1.5)])
