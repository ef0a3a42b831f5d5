"""What the demo reads from a report."""

import copy
import json
import math
from pathlib import Path

import pytest

from demo.reports import CLASSES, report
from drmm_hf.demo.measured import load_measured


def written(folder: Path, content: object) -> Path:
    path = folder / "analysis.json"
    path.write_text(json.dumps(content))
    return path


def test_precision_above_is_that_of_all_bins_above(tmp_path: Path) -> None:
    measured = load_measured(written(tmp_path, report()), "model", CLASSES)
    # Of 100 + 20 + 0 + 10 detections 10 + 10 + 0 + 9 are right.
    assert measured.precision_above(0.0) == pytest.approx(29 / 130)
    assert measured.precision_above(0.25) == pytest.approx(19 / 30)
    assert measured.precision_above(0.125) == pytest.approx((29 / 130 + 19 / 30) / 2)
    assert measured.precision_above(0.5) == measured.precision_above(0.9) == pytest.approx(0.9)
    assert math.isnan(measured.precision_above(1.0))


def test_precision_above_all_scores_is_unknown(tmp_path: Path) -> None:
    content = report()
    bins = content["checkpoints"][0]["calibration"]["reliability"]
    bins["bin_counts"][3], bins["bin_confidences"][3], bins["bin_accuracies"][3] = 0, None, None
    measured = load_measured(written(tmp_path, content), "model", CLASSES)
    assert measured.precision_above(0.4) == pytest.approx(0.5)
    assert math.isnan(measured.precision_above(0.5))
    bins["bin_counts"] = [0] * 4
    empty = load_measured(written(tmp_path, content), "model", CLASSES)
    assert math.isnan(empty.precision_above(0.0))
    assert math.isnan(empty.precision_at([0.5])[0])


def test_precision_at_a_score_lies_between_the_bins(tmp_path: Path) -> None:
    measured = load_measured(written(tmp_path, report()), "model", CLASSES)
    assert measured.precision_at([0.0, 0.1, 0.2, 0.3, 0.8, 1.0]) == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.9, 0.9])


def test_coverage_is_that_of_the_factor(tmp_path: Path) -> None:
    content = report()
    measured = load_measured(written(tmp_path, content), "model", CLASSES)
    assert (measured.factor, measured.coverage) == (0.5, {0.5: 0.4, 0.8: 0.8, 0.9: 0.95})
    content["checkpoints"][0]["uncertainty"] |= {"factor": None, "coverage_after": None}
    unfitted = load_measured(written(tmp_path, content), "model", CLASSES)
    assert (unfitted.factor, unfitted.coverage) == (1.0, {0.5: 0.6, 0.8: 0.9, 0.9: 0.99})


def test_the_checkpoint_is_found_among_several(tmp_path: Path) -> None:
    content = report()
    other = copy.deepcopy(content["checkpoints"][0]) | {"checkpoint": "runs/other/"}
    other["uncertainty"]["factor"] = 0.25
    content["checkpoints"].append(other)
    path = written(tmp_path, content)
    assert load_measured(path, "runs/other", CLASSES).factor == 0.25
    with pytest.raises(ValueError, match=r"is about runs/mine, runs/other/, not about model; name the checkpoint"):
        load_measured(path, "model", CLASSES)


def test_another_models_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"is about the classes disc, ring, star, the model knows cat; give the report"
    ):
        load_measured(written(tmp_path, report()), "model", ["cat"])


@pytest.mark.parametrize("content", [[], {}, {"checkpoints": []}, {"checkpoints": [{"checkpoint": "a"}], "data": {}}])
def test_another_json_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match=r"analysis.json: no report of scripts/analyze.py"):
        load_measured(written(tmp_path, content), "a", CLASSES)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.json: no such report; write it again with scripts/analyze.py"):
        load_measured(tmp_path / "none.json", "a", CLASSES)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json: cannot be read as JSON .*; write it again"):
        load_measured(tmp_path / "bad.json", "a", CLASSES)
