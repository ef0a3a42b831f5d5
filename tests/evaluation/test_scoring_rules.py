"""Brier score of detections and of objects (OCE), by hand and against independent libraries."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation.matches import match_detections
from drmm_hf.evaluation.scoring_rules import brier_report, object_calibration_report


def make_truth(*boxes: tuple, crowd: bool = False) -> dict:
    """One image with 10x10 boxes, each given as (class, x), and perhaps a crowd region of class 7 far below."""
    annotations = [{"image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10]} for c, x in boxes]
    if crowd:
        annotations.append({"image_id": 1, "category_id": 7, "bbox": [0, 500, 400, 400], "iscrowd": 1})
    categories = [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}, {"id": 8, "name": "star"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def found(score: float, x: float, *, height: float = 10, category_id: int = 7) -> dict:
    """A detection that covers height/10 of a box at `x`, which is also its IoU with it."""
    return {"image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, height], "score": score}


ON_CROWD = {"image_id": 1, "category_id": 7, "bbox": [50, 550, 30, 30], "score": 0.99}


def test_brier_by_hand():
    # Bin [.8, .9): right at .8 and wrong at .8; bin [.2, .3): wrong at .2 twice. Precision 1/4.
    # Brier (.04 + .64 + .04 + .04)/4 = .19; reliability (.3² + .2²)/2 = .065; resolution (.25² + .25²)/2 = .0625;
    # uncertainty 3/16 = .1875; .065 - .0625 + .1875 = .19
    results = [found(0.8, 0), found(0.8, 300), found(0.2, 300), found(0.2, 300), ON_CROWD]
    report = brier_report(make_truth((7, 0), crowd=True), results)
    assert report.brier == pytest.approx(0.19)
    assert report.reliability == pytest.approx(0.065)
    assert report.resolution == pytest.approx(0.0625)
    assert report.uncertainty == pytest.approx(0.1875)
    assert report.within_bin == pytest.approx(0.0)
    assert (report.num_detections, report.num_ignored) == (4, 1)
    assert report.settings == "IoU 0.5, 10 bins, score >= 0, maxDets 100"


def test_what_scores_say_within_a_bin():
    # One bin cannot see that .9 is right and .1 wrong: Brier .01 = 0 - 0 + .25 + (-.24)
    report = brier_report(make_truth((7, 0)), [found(0.9, 0), found(0.1, 300)], num_bins=1)
    assert report.brier == pytest.approx(0.01)
    assert report.within_bin == pytest.approx(-0.24)


def test_brier_needs_detections_and_carries_settings():
    report = brier_report(make_truth((7, 0)), [found(0.2, 0)], iou_threshold=0.75, num_bins=5, score_threshold=0.3)
    assert math.isnan(report.brier)
    assert math.isnan(report.within_bin)
    assert report.settings == "IoU 0.75, 5 bins, score >= 0.3, maxDets 100"
    json.dumps(report.to_dict(), allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12, unique_by=lambda row: row[0]),
    st.integers(1, 20),
    st.randoms(use_true_random=False),
)
def test_brier_bounds_and_order(rows, num_bins, random):
    truth = make_truth(*((7, 20 * index) for index in range(12)))
    results = [found(score, 20 * index if right else 300) for index, (score, right) in enumerate(rows)]
    report = brier_report(truth, results, num_bins=num_bins)
    assert report.brier == pytest.approx(np.mean([(score - right) ** 2 for score, right in rows]))
    assert report.resolution <= report.uncertainty + 1e-12 <= 0.25 + 2e-12
    assert 0.0 <= report.reliability <= 1.0
    random.shuffle(results)
    assert brier_report(truth, results, num_bins=num_bins).brier == pytest.approx(report.brier)


def test_oce_by_hand():
    truth = make_truth((7, 0), (9, 20), (7, 40), crowd=True)
    results = [
        found(0.9, 0),  # class vector (.9, .1, 0)
        found(0.1, 0, category_id=9),
        found(0.5, 0, height=6),  # (.5, 0, 0), IoU .6
        found(0.4, 20, category_id=8),  # (0, 0, .4): sure of the wrong class
        found(0.2, 40),  # below the score threshold: missed
        ON_CROWD,
    ]
    # IoU .5. First: mean (.7, .05, 0): .09 + .0025 = .0925; second: 1 + .16; third: 1
    # IoU .75. First: (.9, .1, 0): .01 + .01 = .02
    report = object_calibration_report(truth, results)
    assert report.per_threshold == pytest.approx(((0.0925 + 1.16 + 1) / 3, (0.02 + 1.16 + 1) / 3))
    assert report.oce == pytest.approx(np.mean(report.per_threshold))
    assert report.missed == pytest.approx((1 / 3, 1 / 3))
    assert report.num_objects == 3
    lower = object_calibration_report(truth, results, score_threshold=0.0, iou_thresholds=[0.5])
    assert lower.oce == pytest.approx((0.0925 + 1.16 + 0.64) / 3)
    assert lower.missed == (0.0,)


def test_sure_and_right_is_zero_and_nothing_found_is_one():
    truth = make_truth((7, 0), (9, 20))
    assert object_calibration_report(truth, [found(1.0, 0), found(1.0, 20, category_id=9)]).oce == 0.0
    report = object_calibration_report(truth, [])
    assert (report.oce, report.missed) == (1.0, (1.0, 1.0))


def test_a_box_that_stands_twice_with_one_class_is_two_detections():
    # Mean of (.9, .1, 0) and (.4, 0, 0): .35² + .05²
    results = [found(0.4, 0), found(0.9, 0), found(0.1, 0, category_id=9)]
    assert object_calibration_report(make_truth((7, 0)), results).oce == pytest.approx(0.35**2 + 0.05**2)
    assert object_calibration_report(make_truth((7, 0)), results, max_detections=1).oce == pytest.approx(0.02)


def test_oce_of_several_images_is_over_objects():
    truth = make_truth((7, 0), (7, 20))
    truth["images"] += [{"id": 2}, {"id": 3}]
    truth["annotations"].append({"image_id": 2, "category_id": 7, "bbox": [0, 0, 10, 10]})
    results = [found(1.0, 0), found(0.5, 20), found(0.9, 0) | {"image_id": 3}]
    assert object_calibration_report(truth, results).oce == pytest.approx((0 + 0.25 + 1) / 3)
    assert object_calibration_report(truth, results, image_ids=[2]).oce == 1.0
    empty = object_calibration_report(truth, results, image_ids=[3])
    assert math.isnan(empty.oce)
    json.dumps(empty.to_dict(), allow_nan=False)


def test_oce_carries_its_settings():
    report = object_calibration_report(make_truth(), [], iou_thresholds=(0.5,), score_threshold=0.1, max_detections=9)
    assert report.settings == "mean over IoU 0.5, score >= 0.1, maxDets 9"
    assert object_calibration_report(make_truth(), []).settings == "mean over IoU 0.5, 0.75, score >= 0.3, maxDets 100"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_thresholds": (0.5, 0.0)}, r"iou_thresholds must lie in \(0, 1\]"),
        ({"iou_thresholds": ()}, "iou_thresholds is empty"),
        ({"score_threshold": 1.5}, r"score_threshold must lie in \[0, 1\]"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"image_ids": [5]}, "image_ids: 5 is no image of ground truth"),
    ],
)
def test_bad_settings_of_oce(options, message):
    with pytest.raises(ValueError, match=message):
        object_calibration_report(make_truth((7, 0)), [], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": 0.0}, r"iou_threshold must lie in \(0, 1\]"),
        ({"num_bins": 0}, "num_bins must be at least 1"),
        ({"score_threshold": -1}, r"score_threshold must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_of_brier(options, message):
    with pytest.raises(ValueError, match=message):
        brier_report(make_truth((7, 0)), [], **options)


@pytest.mark.parametrize("report", [brier_report, object_calibration_report])
def test_scores_that_are_no_probabilities(report):
    with pytest.raises(ValueError, match=r"score 3\.5 is outside \[0, 1\]"):
        report(make_truth((7, 0)), [found(3.5, 0)])


def scene() -> tuple[dict, list[dict], list[tuple[np.ndarray, np.ndarray]]]:
    """15 images: ground truth, results, and each image's boxes with their class vectors, from a frozen stream."""
    random = np.random.RandomState(5)
    annotations, results, vectors = [], [], []
    for image_id in range(15):
        boxes, scores = [], []
        for place in range(3):
            box = np.array([60.0 * place, 0, 20 + 20 * random.random_sample(), 30])
            category = random.randint(3)
            annotations.append({"image_id": image_id, "category_id": (7, 8, 9)[category], "bbox": box.tolist()})
            for _ in range(random.randint(4)):
                boxes.append(np.maximum(box + random.normal(scale=(2, 2, 2, 2)), 0))
                scores.append(random.dirichlet(0.3 + 3.0 * np.eye(3)[category]) * random.beta(4, 2))
        for box, vector in zip(boxes, scores, strict=True):
            row = {"image_id": image_id, "bbox": box.tolist()}
            results += [row | {"category_id": 7 + c, "score": float(value)} for c, value in enumerate(vector)]
        vectors.append((np.array(boxes).reshape(-1, 4), np.array(scores).reshape(-1, 3)))
    return make_truth() | {"images": [{"id": i} for i in range(15)], "annotations": annotations}, results, vectors


# Score threshold -> what uq_detr.oce 0.1.1 gave for `scene()`
UQ_DETR = {0.0: 0.401927649790875, 0.3: 0.39083025657460113, 0.6: 0.5041444995507329}


@pytest.mark.parametrize("score_threshold", UQ_DETR)
def test_oce_of_an_independent_library(score_threshold):
    truth, results, _ = scene()
    report = object_calibration_report(truth, results, score_threshold=score_threshold)
    assert report.oce == pytest.approx(UQ_DETR[score_threshold], abs=1e-9)


@pytest.mark.parametrize("score_threshold", UQ_DETR)
def test_the_independent_library_gives_this_oce(score_threshold):
    library = pytest.importorskip("uq_detr")
    truth, _, vectors = scene()
    detections, objects = [], []
    for image, (boxes, scores) in zip(truth["images"], vectors, strict=True):
        detections.append(library.select(library.Detections.from_xywh(boxes, scores), "threshold", score_threshold))
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        labels = np.array([row["category_id"] - 7 for row in rows])
        objects.append(library.GroundTruth.from_xywh(np.array([row["bbox"] for row in rows]), labels, (1, 1), False))
    assert library.oce(detections, objects).score == pytest.approx(UQ_DETR[score_threshold], abs=1e-9)


# What sklearn.metrics.brier_score_loss 1.9.1 gave for the matches of `scene()` at IoU .5
SKLEARN = 0.06944234702766178


def test_brier_score_of_an_independent_library():
    truth, results, _ = scene()
    assert brier_report(truth, results).brier == pytest.approx(SKLEARN, abs=1e-9)


def test_the_independent_library_gives_this_brier_score():
    library = pytest.importorskip("sklearn.metrics")
    truth, results, _ = scene()
    matches = match_detections(truth, results, iou_threshold=0.5, max_detections=100)
    assert library.brier_score_loss(matches.correct, matches.scores) == pytest.approx(SKLEARN, abs=1e-9)
