"""ECE of the class probability and of the objectness alone, by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from drmm_hf.evaluation import calibration_report, evaluate_detections, part_calibration_report

TRUTH: dict[str, Any] = {
    "images": [{"id": 1}],
    "categories": [{"id": 1, "name": "one"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]},
        {"image_id": 1, "category_id": 1, "bbox": [20, 0, 10, 10]},
        {"image_id": 1, "category_id": 1, "bbox": [0, 500, 400, 400], "iscrowd": 1},
    ],
}


def found(x: float, class_probability: float, objectness: float, y: float = 0) -> dict[str, Any]:
    score = class_probability * objectness
    return {"image_id": 1, "category_id": 1, "bbox": [x, y, 10, 10], "score": score, "objectness": objectness}


# Two right, a duplicate with a high p and a low o, one on nothing, one on the crowd region, which does not count.
RESULTS = [
    found(0, 0.95, 0.85), found(20, 0.85, 0.75), found(0, 0.95, 0.15), found(200, 0.45, 0.25), found(50, 0.9, 0.9, 600),
]  # fmt: skip


def test_by_hand() -> None:
    parts = part_calibration_report(TRUTH, RESULTS)
    assert list(parts) == ["score", "class_probability", "objectness"]
    # p: bin .9 has a right and a wrong one at .95, gap .45 · 2/4; bin .8 gap .15/4; bin .4 gap .45/4
    assert parts["class_probability"].ece == pytest.approx(0.9 / 4 + 0.15 / 4 + 0.45 / 4)
    assert parts["objectness"].ece == pytest.approx((0.15 + 0.25 + 0.15 + 0.25) / 4)
    assert parts["class_probability"].bin_counts[9] == 2
    assert parts["class_probability"].bin_accuracies[9] == 0.5
    for report in parts.values():
        assert (report.num_detections, report.num_ignored) == (4, 1)
        assert report.settings == parts["score"].settings
    assert parts["score"].to_dict() == calibration_report(TRUTH, RESULTS).to_dict()


def test_the_threshold_is_one_of_the_score() -> None:
    parts = part_calibration_report(TRUTH, RESULTS, score_threshold=0.3)
    assert [report.num_detections for report in parts.values()] == [2, 2, 2]
    assert {report.score_threshold for report in parts.values()} == {0.3}
    assert parts["objectness"].ece == pytest.approx((0.15 + 0.25) / 2)
    assert parts["score"].to_dict() == calibration_report(TRUTH, RESULTS, score_threshold=0.3).to_dict()


def test_they_come_with_the_other_numbers(tmp_path: Path) -> None:
    saved = tmp_path / "results.json"
    saved.write_text(json.dumps(RESULTS))
    report = evaluate_detections(TRUTH, saved, details=True)
    parts = part_calibration_report(TRUTH, saved)
    assert report.to_dict()["parts"] == {name: part.to_dict() for name, part in parts.items()}
    assert report.parts["objectness"].ece == pytest.approx(0.2)
    assert evaluate_detections(TRUTH, RESULTS).parts == {}
    plain = [{name: value for name, value in one.items() if name != "objectness"} for one in RESULTS]
    assert "parts" not in evaluate_detections(TRUTH, plain, details=True).to_dict()


def test_an_objectness_of_zero() -> None:
    (score, share, objectness) = part_calibration_report(TRUTH, [found(0, 1.0, 0.0)]).values()
    assert score.bin_counts[0] == share.bin_counts[0] == objectness.bin_counts[0] == 1
    assert score.ece == share.ece == objectness.ece == 1.0
    assert all(math.isnan(report.ece) for report in part_calibration_report(TRUTH, []).values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"results\[1\]\.objectness is missing; predict with .*with_parts=True"),
        (1.5, r"results\[1\]\.objectness: 1\.5 is not a number in \[0, 1\]"),
        ("1", r"results\[1\]\.objectness: '1' is not a number"),
        (0.1, r"results\[1\]\.objectness: 0\.1 is below the score 0\.6375"),
    ],
)
def test_bad_objectness_is_named(value: Any, message: str, tmp_path: Path) -> None:
    rows = [dict(one) for one in RESULTS]
    rows[1]["objectness"] = value
    with pytest.raises(ValueError, match=message):
        part_calibration_report(TRUTH, rows)
    saved = tmp_path / "bad.json"
    saved.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"bad\.json: " + message):
        part_calibration_report(TRUTH, saved)
    with pytest.raises(ValueError, match="iou_threshold must lie in"):
        part_calibration_report(TRUTH, RESULTS, iou_threshold=0.0)
