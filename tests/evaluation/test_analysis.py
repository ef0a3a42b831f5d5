"""The numbers of the analysis report, on hand-made results."""

import json
from typing import Any

import pytest

from drmm_hf.evaluation import (
    calibration_report,
    count_duplicates,
    evaluate_coco,
    interval_report,
    lrp_report,
    nms_sweep,
    part_calibration_report,
    ranking_report,
    split_half_report,
)
from drmm_hf.evaluation.analysis import (
    analyze_intervals,
    analyze_results,
    describe_data,
    rank_images,
    result_names,
)
from drmm_hf.evaluation.coco_input import prepare_ground_truth
from evaluation_fixtures import MIXED_RESULTS as RESULTS
from evaluation_fixtures import MIXED_TRUTH as TRUTH
from evaluation_fixtures import detection


def analyzed(results: list[dict[str, Any]], truth: dict[str, Any] = TRUTH) -> dict[str, Any]:
    """What the report has of these results; standard JSON."""
    part, _ = analyze_results(prepare_ground_truth(truth), results)
    return json.loads(json.dumps(part, allow_nan=False))


def test_the_numbers_are_those_of_the_functions() -> None:
    part = analyzed(RESULTS)
    metrics = evaluate_coco(TRUTH, RESULTS, per_class=True)
    assert part["accuracy"]["metrics"]["AP"] == metrics["AP"]
    assert part["accuracy"]["metrics"]["APl"] is None, "no large objects"
    assert part["accuracy"]["per_class"]["cell"]["AP"] == metrics["AP/cell"]
    assert part["accuracy"]["per_class"]["disc"] == {"AP": None, "AP50": None, "AP75": None, "AR100": None}
    measures = part["calibration"]["measures"]
    assert list(measures) == ["ECE", "D-ECE", "LaECE", "LaECE0", "LaACE0", "Brier", "OCE"]
    assert measures["ECE"]["value"] == calibration_report(TRUTH, RESULTS).ece
    assert measures["D-ECE"]["value"] == calibration_report(TRUTH, RESULTS, score_threshold=0.3).ece
    assert part["calibration"]["reliability"] == calibration_report(TRUTH, RESULTS).to_dict()
    lrp = lrp_report(TRUTH, RESULTS)
    best = part["thresholds"]["per_class"]["cell"]
    assert (part["thresholds"]["moLRP"], best["score_threshold"]) == (lrp.lrp, lrp.thresholds[7])
    assert best["precision"] == best["true_positives"] / (best["true_positives"] + best["false_positives"])
    assert part["thresholds"]["per_class"]["disc"]["score_threshold"] is None
    at = {entry["score_threshold"]: entry["per_image"] for entry in part["duplicates"]["counts"]}
    assert at[0.1] == count_duplicates(TRUTH, RESULTS).duplicates_per_image == 1 / 3
    assert part["duplicates"]["nms"]["0.5"]["AP"] == nms_sweep(TRUTH, RESULTS)["0.5"]["AP"] > metrics["AP"]
    assert part["ranking"]["best_first"] == ranking_report(TRUTH, RESULTS).best_first > metrics["AP"]
    assert part["recalibration"]["values"] == split_half_report(TRUTH, RESULTS).to_dict()["values"]


def test_data_is_described_in_the_order_of_the_file() -> None:
    described = describe_data(prepare_ground_truth(TRUTH), "data", "val")
    assert described["objects_per_class"] == {"disc": 0, "cell": 3}
    assert list(described["objects_per_class"]) == ["disc", "cell"]
    assert (described["images"], described["objects"], described["crowd"]) == (3, 3, 1)


def test_parts_of_the_scores_where_they_are_known() -> None:
    with_parts = [{**one, "objectness": min(1.0, one["score"] + 0.05)} for one in RESULTS]
    parts = analyzed(with_parts)["calibration"]["parts"]
    expected = part_calibration_report(TRUTH, with_parts)
    assert parts == {name: part.to_dict() for name, part in expected.items()}
    assert analyzed(RESULTS)["calibration"]["parts"] == {}


def test_the_error_of_an_image_counts_what_is_missed_false_and_loose() -> None:
    part = analyzed(RESULTS)
    _, thresholds = analyze_results(prepare_ground_truth(TRUTH), RESULTS)
    assert thresholds == {7: 0.6, 9: 0.5}
    # Image 1: two right, one of them with an IoU of just 0.5 (error 1), and the duplicate.
    assert part["images"]["1"] == {"error": 2.0, "missed": 0, "false": 1, "right": 2}
    # Image 2: the class without objects is cut at 0.5, so that its detection counts as false.
    assert part["images"]["2"] == {"error": 1.0, "missed": 0, "false": 1, "right": 1}
    assert part["images"]["3"]["error"] == 0, "neither the crowd region nor what lies on it"
    other = {"2": {"error": 5.0}, "3": {"error": 0.0}}
    assert rank_images([part["images"]], 5) == ["1", "2"]
    assert rank_images([part["images"], other], 1) == ["2"]
    _, never = analyze_results(prepare_ground_truth(TRUTH), [detection(1, 0.9, [80, 80, 9, 9])])
    assert never[7] > 1, "keeps nothing"


def test_intervals_need_scales_and_a_density() -> None:
    truth = prepare_ground_truth(TRUTH)
    without = [{name: value for name, value in result.items() if name != "scales"} for result in RESULTS]
    part = analyze_intervals(truth, RESULTS, "cauchy")
    for other in (analyze_intervals(truth, without, "cauchy"), analyze_intervals(truth, RESULTS, None)):
        assert set(other) == set(part)
        assert other["note"]
        assert other["detections"] is None
    assert part["note"] is None
    assert part["coverage"] == list(interval_report(TRUTH, RESULTS).coverage)
    assert part["coverage"][0] == 11 / 12, "only the bottom edge of the loose box is off by more than 1"


@pytest.mark.parametrize(
    ("checkpoints", "names"),
    [
        (["runs/a/model"], ["a"]),
        (["model"], ["model"]),
        (["runs/a/best", "/old/a/", "runs/b"], ["a", "a-2", "b"]),
        (["x/A", "y/a"], ["A", "a-2"]),
        (["../we ird:<name>"], ["we-ird--name"]),
        (["/"], ["checkpoint"]),
    ],
)
def test_names_are_short_unique_and_fit_for_files(checkpoints: list[str], names: list[str]) -> None:
    assert result_names(checkpoints) == names
