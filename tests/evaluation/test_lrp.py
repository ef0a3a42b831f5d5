"""LRP error, its parts and its optimal thresholds: by hand, by their definition, and against an independent library."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation.lrp import keep_above, lrp_report


def make_truth(*boxes: tuple, crowd: bool = False) -> dict:
    """One image with 10x10 boxes, each given as (class, x), and perhaps a crowd region of class 7 far below."""
    annotations = [{"image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10]} for c, x in boxes]
    if crowd:
        annotations.append({"image_id": 1, "category_id": 7, "bbox": [0, 500, 400, 400], "iscrowd": 1})
    categories = [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def found(score: float, x: float, *, height: float = 10, category_id: int = 7) -> dict:
    """A detection that covers height/10 of a box at `x`, which is also its IoU with it."""
    return {"image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, height], "score": score}


TRUTH = make_truth((7, 0), (7, 20), (7, 40))
RESULTS = [found(0.9, 0, height=8), found(0.8, 300), found(0.6, 20, height=9), found(0.2, 300), found(0.1, 300)]


def test_parts_at_a_given_threshold():
    # score >= .5: TP with IoU .8 and .9, one FP, one FN: [(.2 + .1) / .5 + 1 + 1] / 4
    report = lrp_report(TRUTH, RESULTS, score_threshold=0.5)
    entry = report.per_class["cell"]
    assert (entry.num_objects, entry.num_true_positives, entry.num_false_positives) == (3, 2, 1)
    assert entry.lrp == pytest.approx(2.6 / 4)
    assert entry.localization == pytest.approx(0.15)
    assert entry.false_positive == pytest.approx(1 / 3)
    assert entry.false_negative == pytest.approx(1 / 3)
    assert report.lrp == entry.lrp  # the other class has no ground truth


def test_optimal_threshold():
    # The best 1: (.4 + 2)/3 = .8; 2: (.4 + 1 + 2)/4 = .85; 3: .65 (above); 4 and 5: 3.6/5 = .72 and 4.6/6
    entry = lrp_report(TRUTH, RESULTS).per_class["cell"]
    assert (entry.lrp, entry.score_threshold) == (pytest.approx(0.65), 0.6)
    # τ = .85 makes the first one wrong. 1: 4/4; 2: 5/5; 3: [.1/.15 + 2 + 2]/5 = .933; 4: [.667 + 3 + 2]/6 = .944
    entry = lrp_report(TRUTH, RESULTS, iou_threshold=0.85).per_class["cell"]
    assert (entry.lrp, entry.score_threshold) == (pytest.approx((0.1 / 0.15 + 4) / 5), 0.6)


def test_thresholds_keep_what_was_reported():
    optimal = lrp_report(TRUTH, RESULTS)
    kept = keep_above(RESULTS, optimal.thresholds)
    assert kept == RESULTS[:3]
    assert lrp_report(TRUTH, kept, score_threshold=0.0).lrp == optimal.lrp
    assert keep_above(RESULTS, {9: 0.95}) == RESULTS, "a class without threshold keeps everything"


def test_equal_scores_stay_together():
    # Between the two .5 there is no threshold: [0 + 1 + 1] / 3 with both, 1 with none.
    entry = lrp_report(make_truth((7, 0), (7, 20)), [found(0.5, 0), found(0.5, 300)]).per_class["cell"]
    assert (entry.lrp, entry.score_threshold, entry.num_false_positives) == (pytest.approx(2 / 3), 0.5, 1)


def test_a_class_that_is_never_right_keeps_nothing():
    truth = make_truth((7, 0), (9, 0))
    report = lrp_report(truth, [found(0.9, 300), found(0.4, 0, category_id=9)])
    assert report.per_class["cell"].lrp == 1.0
    assert report.thresholds == {7: math.inf, 9: 0.4}
    assert math.isnan(report.per_class["cell"].false_positive)
    assert report.lrp == pytest.approx(0.5)
    assert (report.localization, report.false_positive, report.false_negative) == (0.0, 0.0, 0.5)
    assert keep_above([found(0.99, 0)], report.thresholds) == []
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_class_without_ground_truth_does_not_count():
    report = lrp_report(make_truth((9, 0)), [found(0.9, 300), found(0.4, 0, category_id=9)])
    assert (report.lrp, report.thresholds) == (0.0, {9: 0.4})
    assert math.isnan(report.per_class["cell"].lrp)
    assert math.isnan(lrp_report(make_truth(), []).lrp)


def test_crowds_are_neither_missed_nor_wrong():
    on_crowd = {"image_id": 1, "category_id": 7, "bbox": [50, 550, 30, 30], "score": 0.99}
    report = lrp_report(make_truth((7, 0), crowd=True), [found(0.5, 0), on_crowd])
    assert (report.lrp, report.num_ignored, report.per_class["cell"].num_objects) == (0.0, 1, 1)


def test_report_carries_its_settings():
    assert lrp_report(TRUTH, []).settings == "IoU 0.5, LRP-optimal score thresholds, maxDets 100"
    report = lrp_report(TRUTH, [], iou_threshold=0, score_threshold=0.3, max_detections=10)
    assert report.settings == "IoU > 0, score >= 0.3, maxDets 10"
    assert report.to_dict()["score_threshold"] == 0.3


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 60), st.floats(1, 20)),
        max_size=12,
        unique_by=lambda row: row[0],  # equal scores are matched in the order of the list
    ),
    st.sampled_from([0.0, 0.3, 0.5, 0.8]),
    st.randoms(use_true_random=False),
)
def test_optimum_parts_bounds_and_order(rows, iou_threshold, random):
    results = [found(score, x, height=height) for score, x, height in rows]
    best = lrp_report(TRUTH, results, iou_threshold=iou_threshold).per_class["cell"]
    tried = [
        lrp_report(TRUTH, results, iou_threshold=iou_threshold, score_threshold=score).per_class["cell"]
        for score in [*(row[0] for row in rows), 2.0]
    ]
    assert best.lrp == pytest.approx(min(entry.lrp for entry in tried))
    for entry in [best, *tried]:
        assert 0.0 <= entry.lrp <= 1.0 + 1e-12
        found_true, found_false = entry.num_true_positives, entry.num_false_positives
        parts = [
            (found_true / (1 - iou_threshold), entry.localization),
            (found_true + found_false, entry.false_positive),
            (entry.num_objects, entry.false_negative),
        ]
        weighted = sum(weight * value for weight, value in parts if weight)
        assert entry.lrp == pytest.approx(weighted / (entry.num_objects + found_false))
    random.shuffle(results)
    shuffled = lrp_report(TRUTH, results, iou_threshold=iou_threshold).per_class["cell"]
    assert (shuffled.lrp, shuffled.score_threshold) == (pytest.approx(best.lrp), best.score_threshold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": -0.1}, r"iou_threshold must lie in \[0, 1\]"),
        ({"iou_threshold": 1.0}, "iou_threshold must be below 1"),
        ({"max_detections": 0}, "max_detections must be increasing positive"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        lrp_report(TRUTH, [], **options)


def scene() -> tuple[dict, list[dict]]:
    """20 images of one class, from a random stream that is frozen."""
    random = np.random.RandomState(3)
    annotations, results = [], []
    for image_id in range(20):
        for place in range(3):
            box = np.array([60.0 * place, 0, 20 + 20 * random.random_sample(), 30])
            annotations.append({"image_id": image_id, "category_id": 7, "bbox": box.tolist()})
            for _ in range(random.randint(3)):
                moved = np.maximum(box + random.normal(scale=(3, 3, 3, 3)), 0)
                row = {"image_id": image_id, "category_id": 7, "bbox": moved.tolist()}
                results.append(row | {"score": float(random.beta(3, 2))})
        row = {"image_id": image_id, "category_id": 7, "bbox": [0, 200, 30, 30], "score": float(random.beta(2, 3))}
        results.append(row)
    return make_truth() | {"images": [{"id": i} for i in range(20)], "annotations": annotations}, results


# (IoU threshold, score threshold; None: the lowest over every score) -> what uq_detr.lrp 0.1.1 gave for `scene()`
UQ_DETR = {
    (0.5, 0.0): 0.8232026404304011,
    (0.5, 0.4): 0.7893774918960373,
    (0.75, 0.4): 0.9186190608796977,
    (0.5, None): 0.7833265090735138,
}


@pytest.mark.parametrize(("iou_threshold", "score_threshold"), UQ_DETR)
def test_values_of_an_independent_library(iou_threshold, score_threshold):
    report = lrp_report(*scene(), iou_threshold=iou_threshold, score_threshold=score_threshold)
    assert report.lrp == pytest.approx(UQ_DETR[iou_threshold, score_threshold], abs=1e-9)


@pytest.mark.parametrize(("iou_threshold", "score_threshold"), UQ_DETR)
def test_the_independent_library_gives_these_values(iou_threshold, score_threshold):
    library = pytest.importorskip("uq_detr")
    truth, results = scene()

    def value(threshold: float) -> float:
        detections, objects = [], []
        for image in truth["images"]:
            rows = [r for r in results if r["image_id"] == image["id"] and r["score"] >= threshold]
            boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
            scores, labels = np.array([row["score"] for row in rows]), np.zeros(len(rows), dtype=int)
            detections.append(library.Detections.from_xywh(boxes, scores, labels=labels))
            boxes = np.array([row["bbox"] for row in truth["annotations"] if row["image_id"] == image["id"]])
            objects.append(library.GroundTruth.from_xywh(boxes, np.zeros(len(boxes), dtype=int), (1, 1), False))
        return library.lrp(detections, objects, iou_threshold=iou_threshold).score

    thresholds = [row["score"] for row in results] if score_threshold is None else [score_threshold]
    expected = min(value(threshold) for threshold in thresholds)
    assert expected == pytest.approx(UQ_DETR[iou_threshold, score_threshold], abs=1e-9)
