"""Calibration error on cases that can be worked out by hand."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation import calibration_report


def make_truth(count: int, *, crowd: bool = False) -> dict:
    """One image with `count` 10x10 boxes of class 1, 20 px apart, and perhaps a crowd region far below."""
    boxes = [[20 * index, 0, 10, 10] for index in range(count)]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    if crowd:
        annotations.append({"image_id": 1, "category_id": 1, "bbox": [0, 500, 400, 400], "iscrowd": 1})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def hit(index: int, score: float) -> dict:
    return {"image_id": 1, "category_id": 1, "bbox": [20 * index, 0, 10, 10], "score": score}


def miss(score: float) -> dict:
    return {"image_id": 1, "category_id": 1, "bbox": [0, 200, 10, 10], "score": score}


def test_sure_and_right_is_zero():
    report = calibration_report(make_truth(2), [hit(0, 1.0), hit(1, 1.0)])
    assert report.ece == 0.0
    assert report.bin_counts == (0,) * 9 + (2,)


def test_precision_equal_to_confidence_is_zero():
    report = calibration_report(make_truth(3), [hit(0, 0.75), hit(1, 0.75), hit(2, 0.75), miss(0.75)])
    assert report.ece == pytest.approx(0.0)
    assert report.bin_accuracies[7] == pytest.approx(0.75)


def test_known_value_in_two_bins():
    # bin [.9, 1]: 2 of 3 right at .95, gap .28333 · 3/5; bin [.2, .3): 0 of 2 right at .25, gap .25 · 2/5
    results = [hit(0, 0.95), hit(1, 0.95), miss(0.95), miss(0.25), miss(0.25)]
    report = calibration_report(make_truth(2), results)
    assert report.ece == pytest.approx(0.6 * (0.95 - 2 / 3) + 0.4 * 0.25)
    assert report.num_detections == 5
    assert report.bin_confidences[2] == pytest.approx(0.25)
    assert math.isnan(report.bin_accuracies[0])


def test_duplicate_is_wrong_and_the_surer_one_wins():
    report = calibration_report(make_truth(1), [hit(0, 0.15), hit(0, 0.85)])
    assert report.bin_accuracies[8] == 1.0
    assert report.bin_accuracies[1] == 0.0
    assert report.ece == pytest.approx(0.15)


def test_matching_is_per_class():
    report = calibration_report(make_truth(1), [hit(0, 0.5) | {"category_id": 2}])
    assert report.ece == pytest.approx(0.5)


def test_detections_on_a_crowd_are_left_out():
    on_crowd = {"image_id": 1, "category_id": 1, "bbox": [50, 550, 30, 30], "score": 0.99}
    report = calibration_report(make_truth(1, crowd=True), [hit(0, 1.0), on_crowd, on_crowd])
    assert (report.ece, report.num_detections, report.num_ignored) == (0.0, 1, 2)


def test_score_threshold_and_max_detections():
    results = [hit(0, 1.0), *[miss(0.1)] * 9]
    assert calibration_report(make_truth(1), results).ece == pytest.approx(0.09)
    assert calibration_report(make_truth(1), results, score_threshold=0.3).ece == 0.0
    assert calibration_report(make_truth(1), results, max_detections=2).num_detections == 2


def test_iou_threshold():
    half = hit(0, 1.0) | {"bbox": [0, 0, 10, 6]}
    assert calibration_report(make_truth(1), [half], iou_threshold=0.6).ece == 0.0
    assert calibration_report(make_truth(1), [half], iou_threshold=0.65).ece == 1.0


@pytest.mark.parametrize("num_bins", [1, 3, 10, 100])
def test_a_score_on_an_edge_belongs_to_the_bin_above(num_bins):
    for edge in range(num_bins):
        report = calibration_report(make_truth(0), [miss(edge / num_bins)], num_bins=num_bins)
        assert report.bin_counts[edge] == 1


def test_no_detections_have_no_calibration():
    report = calibration_report(make_truth(1), [])
    assert math.isnan(report.ece)
    assert report.num_detections == 0
    plain = report.to_dict()
    assert plain["ece"] is None
    assert plain["bin_accuracies"] == [None] * 10
    json.dumps(plain, allow_nan=False)


def test_report_carries_its_settings():
    report = calibration_report(
        make_truth(0), [], iou_threshold=0.75, num_bins=15, score_threshold=0.3, max_detections=50
    )
    assert report.settings == "IoU 0.75, 15 bins, score >= 0.3, maxDets 50"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 20))
def test_bounds(scores, num_bins):
    results = [hit(index, score) if index % 2 else miss(score) for index, score in enumerate(scores)]
    report = calibration_report(make_truth(20), results, num_bins=num_bins)
    assert 0.0 <= report.ece <= 1.0
    assert sum(report.bin_counts) == len(scores)
    # One bin is the coarsest view: |precision - mean score| never exceeds the error over finer bins.
    coarse = calibration_report(make_truth(20), results, num_bins=1)
    assert coarse.ece <= report.ece + 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": 0.0}, r"iou_threshold must lie in \(0, 1\]"),
        ({"num_bins": 0}, "num_bins must be at least 1"),
        ({"score_threshold": 1.5}, r"score_threshold must lie in \[0, 1\]"),
        ({"max_detections": 0}, "max_detections must be increasing positive"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        calibration_report(make_truth(1), [], **options)


def test_scores_that_are_no_probabilities():
    with pytest.raises(ValueError, match=r"score 3\.5 is outside \[0, 1\]"):
        calibration_report(make_truth(1), [hit(0, 3.5)])
