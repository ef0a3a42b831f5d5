"""ECE, LaECE, Brier score and OCE: by hand, by their properties, and by independent libraries; and the diagram."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation import (
    brier_report,
    calibration_report,
    localization_calibration_report,
    match_detections,
    object_calibration_report,
    part_calibration_report,
    save_reliability_diagram,
)
from evaluation_fixtures import ON_CROWD, found, make_truth, scene


def test_ece_by_hand() -> None:
    # bin [.9, 1]: 2 of 3 right at .95, gap .28333 · 3/6; bin [.2, .3): a duplicate and one of the wrong class at .25,
    # gap .25 · 2/6; bin [.7, .8): right at .75
    results = [
        found(0.95, 0),
        found(0.95, 20),
        found(0.95, 300),
        found(0.25, 0),
        found(0.25, 0, category_id=9),
        ON_CROWD,
    ]
    truth = make_truth((7, 0), (7, 20), (7, 40), crowd=True)
    report = calibration_report(truth, [*results, found(0.75, 40)])
    assert report.ece == pytest.approx((3 * (0.95 - 2 / 3) + 2 * 0.25 + 0.25) / 6)
    assert (report.num_detections, report.num_ignored) == (6, 1)
    assert report.bin_counts == (0, 0, 2, 0, 0, 0, 0, 1, 0, 3)
    assert report.bin_confidences[2] == pytest.approx(0.25)
    assert (report.bin_accuracies[2], report.bin_accuracies[7]) == (0.0, 1.0)
    assert math.isnan(report.bin_accuracies[0])
    assert report.settings == "IoU 0.5, 10 bins, score >= 0, maxDets 100"
    even = calibration_report(truth, [found(0.75, x) for x in (0, 20, 40, 300)])
    assert even.ece == pytest.approx(0.0), "precision equal to confidence"


def test_thresholds() -> None:
    truth, results = make_truth((7, 0)), [found(1.0, 0), *[found(0.1, 300)] * 9]
    assert calibration_report(truth, results).ece == pytest.approx(0.09)
    assert calibration_report(truth, results, score_threshold=0.3).ece == 0.0
    assert calibration_report(truth, results, max_detections=2).num_detections == 2
    assert calibration_report(truth, [found(1.0, 0, height=6)], iou_threshold=0.6).ece == 0.0
    assert calibration_report(truth, [found(1.0, 0, height=6)], iou_threshold=0.65).ece == 1.0


@pytest.mark.parametrize("num_bins", [1, 3, 10, 100])
def test_a_score_on_an_edge_belongs_to_the_bin_above(num_bins: int) -> None:
    report = calibration_report(
        make_truth(), [found(edge / num_bins, 300) for edge in range(num_bins)], num_bins=num_bins
    )
    assert report.bin_counts == (1,) * num_bins


@pytest.mark.parametrize(
    ("report", "value", "setting"),
    [
        (calibration_report, "ece", {"num_bins": 0}), (localization_calibration_report, "laece", {"num_bins": 0}),
        (brier_report, "brier", {"iou_threshold": 2}), (object_calibration_report, "oce", None),
    ],
)  # fmt: skip
def test_without_detections_or_objects_and_with_bad_input(
    report: Any, value: str, setting: dict | None, tmp_path: Path
) -> None:
    nothing = report(make_truth(), [])
    assert math.isnan(getattr(nothing, value))
    json.dumps(nothing.to_dict(), allow_nan=False)
    (tmp_path / "bad.json").write_text(json.dumps([found(3.5, 0)]))
    with pytest.raises(ValueError, match=r"bad\.json.*3\.5"):
        report(make_truth((7, 0)), tmp_path / "bad.json")
    for options in (setting, {"score_threshold": 1.5}, {"max_detections": 0}) if setting else ():
        with pytest.raises(ValueError, match=next(iter(options))):
            report(make_truth((7, 0)), [], **options)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 60), st.floats(1, 20)),
        min_size=1,
        max_size=12,
        unique_by=lambda row: row[0],
    ),
    st.integers(1, 30),
)
def test_bounds(rows: list[tuple[float, float, float]], num_bins: int) -> None:
    truth = make_truth((7, 0), (7, 20), (7, 40))
    results = [found(score, x, height=height) for score, x, height in rows]
    matches = match_detections(truth, results)
    report = calibration_report(matches, num_bins=num_bins)
    assert 0.0 <= report.ece <= 1.0
    assert sum(report.bin_counts) == len(rows)
    again = calibration_report(truth, results[::-1], num_bins=num_bins)
    assert again.ece == pytest.approx(report.ece, abs=1e-12), "whatever the order"
    # One bin is the coarsest view: |precision - mean score| never exceeds the error over finer bins.
    assert calibration_report(matches, num_bins=1).ece <= report.ece + 1e-12
    located = localization_calibration_report(truth, results, iou_threshold=0, num_bins=num_bins)
    assert 0.0 <= located.laece <= located.laace + 1e-12 <= 1.0 + 1e-12


# (p, o): two right, a duplicate with a high p and a low o, one on nothing, one on the crowd region that does not count.
PARTS = [
    {**where, "score": p * o, "objectness": o}
    for where, p, o in (
        (found(1, 0), 0.95, 0.85), (found(1, 20), 0.85, 0.75), (found(1, 0), 0.95, 0.15), (found(1, 300), 0.45, 0.25),
        (ON_CROWD, 0.99, 1.0),
    )
]  # fmt: skip
PARTS_TRUTH = make_truth((7, 0), (7, 20), crowd=True)


def test_parts_of_the_score_by_hand() -> None:
    parts = part_calibration_report(PARTS_TRUTH, PARTS)
    # p: bin .9 has a right and a wrong one at .95, gap .45 · 2/4; bin .8 gap .15/4; bin .4 gap .45/4
    assert parts["class_probability"].ece == pytest.approx(0.9 / 4 + 0.15 / 4 + 0.45 / 4)
    assert parts["objectness"].ece == pytest.approx((0.15 + 0.25 + 0.15 + 0.25) / 4)
    assert {(part.num_detections, part.num_ignored) for part in parts.values()} == {(4, 1)}
    assert parts["score"].to_dict() == calibration_report(PARTS_TRUTH, PARTS).to_dict()
    zero = part_calibration_report(PARTS_TRUTH, [{**PARTS[0], "score": 0.0, "objectness": 0.0}])
    assert [part.ece for part in zero.values()] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [None, 1.5, "1", 0.1])
def test_bad_objectness_is_named(value: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps([PARTS[0], {**PARTS[1], "objectness": value}]))
    with pytest.raises(ValueError, match=r"bad\.json.*\[1\]\.objectness"):
        part_calibration_report(PARTS_TRUTH, tmp_path / "bad.json")


def test_laece_of_two_classes_by_hand() -> None:
    # Cells, 10 bins: [.9, 1]: IoUs .8 and 0 (a duplicate), scores .95 and .91: gap |1.86 - .8| = 1.06;
    # [.3, .4): IoU .5, score .3: gap .2; over 3 detections. Discs: score .4 on nothing: .4.
    # Singly: |.95-.8| + |.91-0| + |.3-.5| = 1.26, over 3. Stars have no detection and do not count.
    truth = make_truth((7, 0), (7, 20), (8, 40))
    results = [found(0.95, 0, height=8), found(0.91, 0, height=7), found(0.3, 20, height=5)]
    results.append(found(0.4, 300, category_id=9))
    report = localization_calibration_report(truth, results, num_bins=10)
    assert report.per_class["cell"].laece == report.per_class["cell"].laace == pytest.approx(1.26 / 3)
    assert report.per_class["disc"].laece == pytest.approx(0.4)
    assert math.isnan(report.per_class["star"].laece)
    assert report.laece == pytest.approx((1.26 / 3 + 0.4) / 2)
    # In one bin the gaps of different sign cancel: |.95 + .91 + .3 - .8 - .5| / 3.
    coarse = localization_calibration_report(truth, results, num_bins=1)
    assert (coarse.per_class["cell"].laece, coarse.laace) == (pytest.approx(0.86 / 3), report.laace)


def test_score_equal_to_iou_has_no_localisation_error() -> None:
    truth = make_truth((7, 40), (7, 0), (7, 20), (8, 60), crowd=True)
    results = [found(0.7, 0, height=7), found(0.9, 20, height=9), found(0.8, 40, height=8), ON_CROWD]
    report = localization_calibration_report(truth, [*results, found(0.0, 300), found(1.0, 60, category_id=8)])
    assert (report.laece, report.laace) == (pytest.approx(0.0), pytest.approx(0.0))
    assert (report.num_detections, report.num_ignored) == (5, 1)
    # IoU .05: wrong for LaECE (|.5 - 0|), a true positive for LaECE_0 (|.5 - .05|).
    loose = make_truth((7, 0)), [found(0.5, 0, height=0.5)]
    assert localization_calibration_report(*loose).laece == pytest.approx(0.5)
    assert localization_calibration_report(*loose, iou_threshold=0).laace == pytest.approx(0.45)


def test_brier_by_hand() -> None:
    results = [found(0.8, 0), found(0.8, 300), found(0.2, 300), found(0.2, 300), ON_CROWD]
    report = brier_report(make_truth((7, 0), crowd=True), results)
    assert report.brier == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)
    assert (report.num_detections, report.num_ignored) == (4, 1)


def test_oce_by_hand() -> None:
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
    assert report.num_objects == 3
    assert object_calibration_report(truth, []).oce == 1.0


def test_oce_of_several_images_and_of_a_box_that_stands_twice() -> None:
    # Mean of (.9, .1, 0) and (.4, 0, 0): .35² + .05²
    results = [found(0.4, 0), found(0.9, 0), found(0.1, 0, category_id=9)]
    assert object_calibration_report(make_truth((7, 0)), results).oce == pytest.approx(0.35**2 + 0.05**2)
    truth = make_truth((7, 0), (7, 20))
    truth["images"] += [{"id": 2}, {"id": 3}]
    truth["annotations"].append({"image_id": 2, "category_id": 7, "bbox": [0, 0, 10, 10]})
    results = [found(1.0, 0), found(0.5, 20), found(0.9, 0) | {"image_id": 3}]
    assert object_calibration_report(truth, results).oce == pytest.approx((0 + 0.25 + 1) / 3)


def uq_detr_inputs(library: Any, truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[list, list]:
    """The detections and objects of each image as uq_detr takes them; class vectors are one-hot times the score."""
    detections, objects = [], []
    for image in truth["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        scores = np.array([[row["score"] * (row["category_id"] == c) for c in (7, 8)] for row in rows])
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        labels = np.array([row["category_id"] - 7 for row in rows])
        detections.append(library.Detections.from_xywh(boxes, scores.reshape(-1, 2), labels=labels))
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        labels = np.array([row["category_id"] - 7 for row in rows])
        objects.append(library.GroundTruth.from_xywh(np.array([row["bbox"] for row in rows]), labels))
    return detections, objects


@pytest.mark.parametrize("seed", [7, 11])
def test_uq_detr_gives_the_same(seed: int) -> None:
    library = pytest.importorskip("uq_detr")
    truth, results = scene(seed)
    # its bins run from the lowest to the highest score
    ends = [(score, category_id) for score in (0.0, 1.0) for category_id in (7, 8)]
    results += [found(score, 900 + 20 * i, category_id=c) for i, (score, c) in enumerate(ends)]
    detections, objects = uq_detr_inputs(library, truth, results)
    for iou_threshold, num_bins in ((0.5, 10), (0.3, 25)):
        options = {"iou_threshold": iou_threshold, "tp_criterion": "greedy", "n_bins": num_bins}
        ours = calibration_report(truth, results, iou_threshold=iou_threshold, num_bins=num_bins)
        assert ours.ece == pytest.approx(library.dece(detections, objects, **options).score, abs=1e-9)
        located = localization_calibration_report(truth, results, iou_threshold=iou_threshold, num_bins=num_bins)
        assert located.laece == pytest.approx(library.laece(detections, objects, **options).score, abs=1e-9)
    kept = [library.select(one, "threshold", 0.3) for one in detections]
    assert object_calibration_report(truth, results).oce == pytest.approx(library.oce(kept, objects).score, abs=1e-9)


def test_the_diagram_draws_what_the_report_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    # two of four right at .95, both of two right at .65, none of three right at .05
    rows = [(0.95, 0), (0.95, 20), (0.65, 40), (0.65, 60), *[(0.95, 300)] * 2, *[(0.05, 300)] * 3]
    report = calibration_report(make_truth((7, 0), (7, 20), (7, 40), (7, 60)), [found(*row) for row in rows])
    figure = save_reliability_diagram(tmp_path / "diagram.svg", {"model": report, "p·o": report})
    assert "<svg" in (tmp_path / "diagram.svg").read_text(encoding="utf-8")
    top, bottom = figure.axes[0], figure.axes[2]
    drawn = {
        bars.get_label(): {
            index: (bar.get_y(), bar.get_y() + bar.get_height())
            for index, bar in enumerate(bars)
            if not np.isnan(bar.get_height())
        }
        for bars in top.containers
    }
    assert drawn["precision"] == {0: (0, 0), 6: (0, 1), 9: (0, 0.5)}
    assert drawn["too confident"] == {0: (0, pytest.approx(0.05)), 9: (0.5, pytest.approx(0.95))}
    assert drawn["not confident enough"] == {6: (1, pytest.approx(0.65))}
    assert [bar.get_height() for bar in bottom.containers[0]] == [3, 0, 0, 0, 0, 0, 2, 0, 0, 4]
    assert top.get_title() == "model\nD-ECE 0.417 of 6, ECE 0.294"  # (4 * 0.45 + 2 * 0.35) / 6, + 3 * 0.05 / 9
    at_other = save_reliability_diagram(tmp_path / "other.svg", {"model": replace(report, iou_threshold=0.75)})
    assert "D-ECE" not in at_other.axes[0].get_title()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drmm-hf\[plots\]"):
        save_reliability_diagram(tmp_path / "figure.png", {"model": report})


@pytest.mark.parametrize("score_threshold", [0.0, 0.3])
def test_hotcoco_gives_the_same_ece(score_threshold: float, tmp_path: Path) -> None:
    library = pytest.importorskip("hotcoco")
    truth, results = scene()
    truth["images"] = [{**image, "width": 300, "height": 300, "file_name": "none"} for image in truth["images"]]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps([r for r in results if r["score"] >= score_threshold]))
    annotations = library.COCO(str(tmp_path / "truth.json"))
    evaluation = library.COCOeval(annotations, annotations.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    value = evaluation.calibration(n_bins=10, iou_threshold=0.5)["ece"]
    assert calibration_report(truth, results, score_threshold=score_threshold).ece == pytest.approx(value, abs=1e-9)
