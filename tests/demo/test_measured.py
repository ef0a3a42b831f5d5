"""What the demo reads from a report."""

import copy
import json
import math
from pathlib import Path

import pytest

from drmm_hf.demo import Measured, load_measured
from drmm_hf.evaluation.analysis import read_thresholds

CLASSES = ["disc", "ring", "star"]


def read(folder: Path, content: object, checkpoint: str = "model", classes: list[str] = CLASSES) -> Measured:
    path = folder / "analysis.json"
    path.write_text(json.dumps(content))
    return load_measured(path, checkpoint, classes)


def test_precision_above_is_that_of_all_bins_above(tmp_path: Path, report: dict) -> None:
    measured = read(tmp_path, report)
    # Of 100 + 20 + 0 + 10 detections 10 + 10 + 0 + 9 are right.
    assert measured.precision_above(0.0) == pytest.approx(29 / 130)
    assert measured.precision_above(0.25) == pytest.approx(19 / 30)
    assert measured.precision_above(0.125) == pytest.approx((29 / 130 + 19 / 30) / 2)
    assert measured.precision_above(0.5) == measured.precision_above(0.9) == pytest.approx(0.9)
    assert math.isnan(measured.precision_above(1.0))
    # At a score it lies between the means of the bins.
    found = [measured.precision_at(score) for score in (0.0, 0.1, 0.2, 0.3, 0.8, 1.0)]
    assert found == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.9, 0.9])


def test_precision_above_all_scores_is_unknown(tmp_path: Path, report: dict) -> None:
    bins = report["checkpoints"][0]["calibration"]["reliability"]
    bins["bin_counts"][3], bins["bin_confidences"][3], bins["bin_accuracies"][3] = 0, None, None
    measured = read(tmp_path, report)
    assert measured.precision_above(0.4) == pytest.approx(0.5)
    assert math.isnan(measured.precision_above(0.5))
    bins["bin_counts"] = [0] * 4
    empty = read(tmp_path, report)
    assert math.isnan(empty.precision_above(0.0))
    assert math.isnan(empty.precision_at(0.5))


def test_coverage_is_that_of_the_factor(tmp_path: Path, report: dict) -> None:
    measured = read(tmp_path, report)
    assert (measured.factor, measured.coverage) == (0.5, {0.5: 0.4, 0.8: 0.8, 0.9: 0.95})
    report["checkpoints"][0]["uncertainty"] |= {"factor": None, "coverage_after": None}
    unfitted = read(tmp_path, report)
    assert (unfitted.factor, unfitted.coverage) == (1.0, {0.5: 0.6, 0.8: 0.9, 0.9: 0.99})


def test_the_checkpoint_is_found_among_several(tmp_path: Path, report: dict) -> None:
    other = copy.deepcopy(report["checkpoints"][0]) | {"checkpoint": "runs/other/"}
    other["uncertainty"]["factor"] = 0.25
    report["checkpoints"].append(other)
    assert read(tmp_path, report, "runs/other").factor == 0.25
    with pytest.raises(ValueError, match=r"analysis\.json"):
        read(tmp_path, report, "model")


def test_the_report_of_another_model_is_refused(tmp_path: Path, report: dict) -> None:
    with pytest.raises(ValueError, match=r"analysis\.json"):
        read(tmp_path, report, classes=["cat"])


def test_a_class_that_the_data_did_not_have_is_told(
    tmp_path: Path, report: dict, caplog: pytest.LogCaptureFixture
) -> None:
    assert "cat" not in read(tmp_path, report, classes=["disc", "cat"]).thresholds
    assert "cat" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"checkpoints": []}',
        '{"checkpoints": [{"checkpoint": "model"}], "data": {}}',
        "{",
        '{"checkpoints": 3}',
        '{"checkpoints": ["model"]}',
        '{"checkpoints": [{"thresholds": []}]}',
        '{"checkpoints": [{"thresholds": {"per_class": {"disc": {"score_threshold": "0.4", "objects": 3}}}}]}',
        '{"data": {}, "calibration": {}, "thresholds": {"per_class": {}}, "uncertainty": {}}',
    ],
)
def test_another_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(ValueError, match=r"analysis\.json"):
        load_measured(tmp_path / "analysis.json", "model", CLASSES)
    with pytest.raises(ValueError, match=r"analysis\.json"):
        read_thresholds(tmp_path / "analysis.json", "model", CLASSES)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_measured(tmp_path / "none.json", "model", CLASSES)
