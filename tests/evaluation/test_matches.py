"""Matching: equal to COCOeval's at any threshold, and done once for all measures."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from drmm_hf.evaluation import brier_report, calibration_report, lrp_report, match_detections
from drmm_hf.evaluation.coco_input import prepare_ground_truth, prepare_results
from evaluation_fixtures import ON_CROWD, found, make_truth, scene


def cocoeval(truth: dict[str, Any], results: list[dict[str, Any]], iou_threshold: float, limit: int) -> dict[str, set]:
    """What COCOeval makes of the results over objects of every size."""
    prepared = prepare_ground_truth(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(prepared.coco, prepare_results(results, prepared).coco, "bbox")
        evaluation.params.iouThrs = np.array([iou_threshold])
        evaluation.params.maxDets = [limit]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    matched, ignored, wrong = set(), set(), set()
    for entry in evaluation.evalImgs:
        if entry is not None:
            columns = (entry["dtIds"], entry["dtMatches"][0].astype(int).tolist(), entry["dtIgnore"][0])
            for detection, given, left_out in zip(*columns, strict=True):
                if left_out:
                    ignored.add(detection - 1)
                elif given:
                    matched.add((detection - 1, given - 1))
                else:
                    wrong.add(detection - 1)
    return {"matched": matched, "ignored": ignored, "wrong": wrong}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-300, 0.1, 0.5, 0.75, 1.0]), st.sampled_from([1, 2, 100]))
def test_matches_are_those_of_cocoeval(seed: int, iou_threshold: float, limit: int) -> None:
    truth, results = scene(seed, num_images=4, crowd=True, digits=1)
    # an exact box, twice, and two equal objects: ties, and IoU 1
    truth["annotations"] += [{**truth["annotations"][0], "id": 1000 + copy} for copy in (0, 1)]
    results += [{**truth["annotations"][0], "score": 0.5}] * 2
    matches = match_detections(truth, results, iou_threshold=iou_threshold, max_detections=limit)
    expected = cocoeval(truth, results, iou_threshold, limit)
    rows, objects = matches.rows.tolist(), matches.objects.tolist()
    assert {pair for pair in zip(rows, objects, strict=True) if pair[1] >= 0} == expected["matched"]
    assert {row for row, right in zip(rows, matches.correct, strict=True) if not right} == expected["wrong"]
    assert len(matches.ignored_scores) == len(expected["ignored"])
    assert (matches.ious[matches.correct] >= min(iou_threshold, 1 - 1e-10)).all()


def test_classes_limits_crowds_and_any_overlap() -> None:
    truth = make_truth((7, 0), (9, 20), crowd=True)
    truth["images"].append({"id": 0})
    results = [found(0.5, 0, category_id=9), found(0.4, 0), found(0.9, 300), ON_CROWD, found(0.8, 0) | {"image_id": 0}]
    matches = match_detections(truth, results)
    assert matches.num_objects.tolist() == [1, 0, 1], "classes 7, 8 and 9, crowds left out"
    assert matches.rows[matches.correct].tolist() == [1]
    assert matches.ignored_scores.tolist() == [0.99]
    assert sorted(match_detections(truth, results, max_detections=1).rows) == [0, 4], "one a class, and that is ignored"
    matches = match_detections(make_truth((7, 0)), [found(0.9, 300), found(0.7, 0, height=1)], iou_threshold=0)
    assert (matches.correct.tolist(), matches.ious.tolist()) == ([False, True], [0.0, pytest.approx(0.1)])


def test_matches_stand_for_ground_truth_and_results() -> None:
    truth, results = scene()
    matches = match_detections(truth, results, iou_threshold=0.3, max_detections=5)
    above: dict[str, Any] = {"score_threshold": 0.4}
    for measure, options in ((calibration_report, above), (brier_report, above), (lrp_report, {})):
        expected = measure(truth, results, iou_threshold=0.3, max_detections=5, **options)
        assert measure(matches, **options).to_dict() == expected.to_dict()
    assert (
        calibration_report(matches.at(0.5)).to_dict() == calibration_report(truth, results, max_detections=5).to_dict()
    )


@pytest.mark.parametrize("options", [{"iou_threshold": -0.1}, {"iou_threshold": 1.1}, {"max_detections": 0}])
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        match_detections(make_truth((7, 0)), [], **options)
