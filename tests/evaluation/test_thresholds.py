"""LRP error, operating points and the cost of the order: by hand, by definition, and by an independent library."""

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation import (
    evaluate_coco,
    keep_above,
    lrp_report,
    match_detections,
    operating_points,
    ranking_report,
)
from evaluation_fixtures import ON_CROWD, found, make_truth, scene

TRUTH = make_truth((7, 0), (7, 20), (7, 40))
RESULTS = [found(0.9, 0, height=8), found(0.8, 300), found(0.6, 20, height=9), found(0.2, 300), found(0.1, 300)]


def test_lrp_by_hand() -> None:
    # score >= .6: TP with IoU .8 and .9, one FP, one FN: [(.2 + .1) / .5 + 1 + 1] / 4
    report = lrp_report(TRUTH, RESULTS)
    entry = report.per_class["cell"]
    assert (entry.num_objects, entry.num_true_positives, entry.num_false_positives) == (3, 2, 1)
    assert entry.lrp == report.lrp == pytest.approx(2.6 / 4), "the other classes have no ground truth"
    assert entry.localization == pytest.approx(0.15)
    assert (entry.false_positive, entry.false_negative) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert report.settings == "IoU 0.5, LRP-optimal score thresholds, maxDets 100"


def test_optimal_threshold_keeps_what_was_reported() -> None:
    # The best 1: (.4 + 2)/3 = .8; 2: (.4 + 1 + 2)/4 = .85; 3: .65 (above); 4 and 5: 3.6/5 = .72 and 4.6/6
    report = lrp_report(TRUTH, RESULTS)
    assert (report.lrp, report.thresholds) == (pytest.approx(0.65), {7: 0.6})
    kept = keep_above(RESULTS, report.thresholds)
    assert kept == RESULTS[:3]
    assert lrp_report(TRUTH, kept).lrp == report.lrp
    assert keep_above(RESULTS, {9: 0.95}) == RESULTS, "a class without threshold keeps everything"
    # τ = .85 makes the first one wrong. 1: 4/4; 2: 5/5; 3: [.1/.15 + 2 + 2]/5 = .933; 4: [.667 + 3 + 2]/6 = .944
    entry = lrp_report(TRUTH, RESULTS, iou_threshold=0.85).per_class["cell"]
    assert (entry.lrp, entry.score_threshold) == (pytest.approx((0.1 / 0.15 + 4) / 5), 0.6)
    # Between two equal scores there is no threshold: [0 + 1 + 1] / 3 with both, 1 with none.
    entry = lrp_report(make_truth((7, 0), (7, 20)), [found(0.5, 0), found(0.5, 300)]).per_class["cell"]
    assert (entry.lrp, entry.score_threshold, entry.num_false_positives) == (pytest.approx(2 / 3), 0.5, 1)


def test_classes_that_are_never_right_or_have_no_objects() -> None:
    report = lrp_report(make_truth((7, 0), (9, 0)), [found(0.9, 300), found(0.4, 0, category_id=9)])
    assert report.thresholds == {7: math.inf, 9: 0.4}
    assert (report.per_class["cell"].lrp, report.lrp) == (1.0, pytest.approx(0.5))
    assert (report.localization, report.false_positive, report.false_negative) == (0.0, 0.0, 0.5)
    assert keep_above([found(0.99, 0)], report.thresholds) == []
    json.dumps(report.to_dict(), allow_nan=False)
    report = lrp_report(make_truth((9, 0), crowd=True), [found(0.9, 300), ON_CROWD, found(0.4, 0, category_id=9)])
    assert (report.lrp, report.thresholds, report.num_ignored) == (0.0, {9: 0.4}, 1)
    assert math.isnan(report.per_class["cell"].lrp)
    assert math.isnan(lrp_report(make_truth(), []).lrp)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 60), st.floats(1, 20)), max_size=12, unique_by=lambda row: row[0]),
    st.sampled_from([0.0, 0.3, 0.5, 0.8]),
)
def test_optimum_parts_and_bounds(rows: list[tuple[float, float, float]], iou_threshold: float) -> None:
    results = [found(score, x, height=height) for score, x, height in rows]
    entry = lrp_report(TRUTH, results, iou_threshold=iou_threshold).per_class["cell"]

    def lrp(score: float) -> float:
        kept = match_detections(TRUTH, results, iou_threshold=iou_threshold, score_threshold=score)
        misfit, right = (1 - kept.ious[kept.correct]).sum() / (1 - iou_threshold), kept.correct.sum()
        return (misfit + (len(kept) - right) + (3 - right)) / (len(kept) - right + 3)

    assert entry.lrp == pytest.approx(min([1.0, *(lrp(row[0]) for row in rows)]))
    assert 0.0 <= entry.lrp <= 1.0
    found_true, found_false = entry.num_true_positives, entry.num_false_positives
    parts = [
        (found_true / (1 - iou_threshold), entry.localization),
        (found_true + found_false, entry.false_positive),
        (entry.num_objects, entry.false_negative),
    ]
    weighted = sum(weight * value for weight, value in parts if weight)
    assert entry.lrp == pytest.approx(weighted / (entry.num_objects + found_false))


@pytest.mark.parametrize("iou_threshold", [0.5, 0.75])
def test_uq_detr_gives_the_same_lrp(iou_threshold: float) -> None:
    library = pytest.importorskip("uq_detr")
    truth, results = scene()
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == 7]
    results = [one for one in results if one["category_id"] == 7]

    def boxes(rows: list[dict[str, Any]], image: dict[str, Any]) -> np.ndarray:
        return np.array([row["bbox"] for row in rows if row["image_id"] == image["id"]]).reshape(-1, 4)

    def value(threshold: float) -> float:
        kept = [row for row in results if row["score"] >= threshold]
        detections, objects = [], []
        for image in truth["images"]:
            scores = np.array([row["score"] for row in kept if row["image_id"] == image["id"]])
            labels = np.zeros(len(scores), dtype=int)
            detections.append(library.Detections.from_xywh(boxes(kept, image), scores, labels=labels))
            present = boxes(truth["annotations"], image)
            objects.append(library.GroundTruth.from_xywh(present, np.zeros(len(present), dtype=int)))
        return library.lrp(detections, objects, iou_threshold=iou_threshold).score

    report = lrp_report(truth, results, iou_threshold=iou_threshold)
    assert report.lrp == pytest.approx(min(value(row["score"]) for row in results), abs=1e-9)


def test_operating_points_by_hand() -> None:
    """The duplicate is wrong; the detection in the crowd region does not count."""
    truth = make_truth((7, 0), (9, 20), (7, 40), crowd=True)
    results = [found(0.9, 0), found(0.5, 0), found(0.7, 20, category_id=9), found(0.3, 200), ON_CROWD]
    points = operating_points(truth, results, (0.0, 0.5, 0.7, 0.91))
    assert [point.num_detections for point in points] == [4, 3, 2, 0]
    assert [point.expected_precision for point in points[:3]] == pytest.approx([0.6, 0.7, 0.8])
    assert [point.precision for point in points[:3]] == pytest.approx([0.5, 2 / 3, 1.0])
    assert [point.recall for point in points] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0.0])
    assert points[3].to_dict()["precision"] is points[3].to_dict()["expected_precision"] is None
    assert math.isnan(operating_points(make_truth(), results[:1], (0.5,))[0].recall)


# Two objects; EXACT is right everywhere, LOOSE (IoU 0.52) at the first of COCO's thresholds only, SECOND is on the
# object of EXACT, NOTHING on none.
EXACT, LOOSE, SECOND = found(0.5, 0), found(0.7, 20, height=5.2), found(0.4, 0)
NOTHING = found(0.9, 300)
PAIR = make_truth((7, 0), (7, 20), crowd=True)


def ap(*results: dict[str, Any]) -> float:
    return evaluate_coco(PAIR, list(results))["AP"]


def rescored(result: dict[str, Any], score: float) -> dict[str, Any]:
    return {**result, "score": score}


def test_every_order_is_what_the_ground_truth_would_make_of_it() -> None:
    results = [NOTHING, LOOSE, EXACT, SECOND, ON_CROWD]
    given_results = copy.deepcopy(results)
    report = ranking_report(PAIR, results)
    assert results == given_results
    assert report.ap == ap(*results)
    assert report.without_duplicates == ap(NOTHING, LOOSE, EXACT, ON_CROWD)
    assert report.true_first == ap(LOOSE, EXACT, rescored(NOTHING, 0.1), rescored(SECOND, 0.05))
    assert report.best_first == ap(rescored(EXACT, 0.8), LOOSE, rescored(NOTHING, 0.1), rescored(SECOND, 0.05))
    # by hand: at IoU 0.5 both are found, above it one of two; the first wrong one halves the precision in front of it
    half = 51 / 101
    assert report.best_first == pytest.approx((1 + 9 * half) / 10)
    assert report.true_first == pytest.approx((1 + 9 * half / 2) / 10)
    assert report.ap < report.true_first < report.best_first


def test_duplicates_in_front_of_an_object_cost() -> None:
    report = ranking_report(PAIR, [EXACT, rescored(SECOND, 0.45), found(0.3, 20)])
    assert report.without_duplicates == report.true_first == pytest.approx(1)
    assert report.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    strict = ranking_report(PAIR, [LOOSE, EXACT], iou_threshold=0.75)
    assert strict.true_first == strict.best_first == pytest.approx((1 + 9 * 51 / 101) / 10)
    assert strict.without_duplicates == ap(LOOSE, EXACT), "not a duplicate either: it overlaps by less"
    assert ranking_report(PAIR, []).best_first == 0


@pytest.mark.parametrize(
    ("measure", "options", "named"),
    [
        (lrp_report, {"iou_threshold": 1.0}, "iou_threshold"),
        (operating_points, {"thresholds": (0.5, 2)}, "thresholds"),
        (operating_points, {"results": [found(1.5, 0)]}, "1.5"),
        (ranking_report, {"results": [found(3.0, 0)]}, "score 3"),
        (ranking_report, {"max_detections": 0}, "max_detections"),
    ],
)
def test_bad_input(measure: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        measure(**{"ground_truth": TRUTH, "results": RESULTS, **options})
