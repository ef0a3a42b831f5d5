"""What the order of the detections costs, on a case small enough to check by hand."""

import copy
import json
from pathlib import Path

import pytest

from drmm_hf.evaluation import evaluate_coco, ranking_report

TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 7, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 100, 100], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [200, 0, 100, 100], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 400, 400], "iscrowd": 1},
    ],
}


def detection(score: float, bbox: list[float], image_id: int = 1) -> dict:
    return {"image_id": image_id, "category_id": 7, "bbox": bbox, "score": score}


EXACT = detection(0.5, [0, 0, 100, 100])
LOOSE = detection(0.7, [200, 0, 100, 52])  # IoU 0.52: right at the first of COCO's thresholds only
SECOND = detection(0.4, [0, 0, 100, 100])  # on the object of EXACT
NOTHING = detection(0.9, [400, 0, 50, 50])
CROWD = detection(0.95, [0, 0, 100, 100], image_id=2)


def ap(*results: dict) -> float:
    return evaluate_coco(TRUTH, list(results))["AP"]


def rescored(result: dict, score: float) -> dict:
    return {**result, "score": score}


def test_every_order_is_what_the_ground_truth_would_make_of_it() -> None:
    results = [NOTHING, LOOSE, EXACT, SECOND, CROWD]
    given = copy.deepcopy(results)
    report = ranking_report(TRUTH, results)
    assert results == given
    assert report.ap == ap(*results)
    assert report.without_duplicates == ap(NOTHING, LOOSE, EXACT, CROWD)
    assert report.true_first == ap(LOOSE, EXACT, rescored(NOTHING, 0.1), rescored(SECOND, 0.05))
    assert report.best_first == ap(rescored(EXACT, 0.8), LOOSE, rescored(NOTHING, 0.1), rescored(SECOND, 0.05))
    # by hand: at IoU 0.5 both are found, above it one of two; the first wrong one halves the precision in front of it
    half = 51 / 101
    assert report.best_first == pytest.approx((1 + 9 * half) / 10)
    assert report.true_first == pytest.approx((1 + 9 * half / 2) / 10)
    assert report.ap < report.true_first < report.best_first


def test_duplicates_in_front_of_an_object_cost() -> None:
    report = ranking_report(TRUTH, [EXACT, rescored(SECOND, 0.45), detection(0.3, [200, 0, 100, 100])])
    assert report.without_duplicates == report.true_first == pytest.approx(1)
    assert report.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_results_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([NOTHING, EXACT]))
    assert ranking_report(TRUTH, path) == ranking_report(TRUTH, [NOTHING, EXACT])
    path.write_text(json.dumps([{**EXACT, "image_id": 5}]))
    with pytest.raises(ValueError, match=r"results\.json.*image_id"):
        ranking_report(TRUTH, path)


def test_a_perfect_order_and_no_detections() -> None:
    report = ranking_report(TRUTH, [EXACT, rescored(NOTHING, 0.1)])
    assert report.ap == report.true_first == report.best_first == pytest.approx(51 / 101)
    assert ranking_report(TRUTH, []).best_first == 0


def test_a_stricter_overlap_makes_a_loose_box_wrong() -> None:
    report = ranking_report(TRUTH, [LOOSE, EXACT], iou_threshold=0.75)
    assert report.true_first == report.best_first == pytest.approx((1 + 9 * 51 / 101) / 10)
    assert report.without_duplicates == ap(LOOSE, EXACT), "not a duplicate either: it overlaps by less"
    assert report.to_dict()["iou_threshold"] == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iou_threshold": 0.0}, "iou_threshold must lie in"),
        ({"results": [rescored(EXACT, 3.0)]}, "score 3 is outside"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranking_report(**{"ground_truth": TRUTH, "results": [EXACT], **change})
