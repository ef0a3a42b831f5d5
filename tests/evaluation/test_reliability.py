"""Reliability diagrams: what is drawn is what the reports say."""

import sys

import numpy as np
import pytest
from PIL import Image

from drmm_hf.evaluation.calibration import CalibrationReport, calibration_report
from drmm_hf.evaluation.reliability import reliability_figure, save_reliability_diagram

pytest.importorskip("matplotlib")


def make_report(**options) -> CalibrationReport:
    """Ten bins: two of four right at .95, both of two right at .65, none of three right at .05."""
    boxes = [[20 * index, 0, 10, 10] for index in range(4)]
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
    }
    rows = [(boxes[0], 0.95), (boxes[1], 0.95), (boxes[2], 0.65), (boxes[3], 0.65)]
    rows += [([0, 200, 10, 10], 0.95)] * 2 + [([0, 200, 10, 10], 0.05)] * 3
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in rows]
    return calibration_report(truth, results, **options)


def bars(axes) -> dict[str, dict[int, tuple[float, float]]]:
    """Legend label -> index of the bin -> (bottom, top) of its bar."""
    return {
        container.get_label(): {
            index: (bar.get_y(), bar.get_y() + bar.get_height())
            for index, bar in enumerate(container)
            if not np.isnan(bar.get_height())
        }
        for container in axes.containers
    }


def test_bars_gaps_and_counts_are_those_of_the_report():
    figure = reliability_figure({"model": make_report()})
    top, bottom = figure.axes
    drawn = bars(top)
    assert drawn["precision"] == {0: (0, 0), 6: (0, 1), 9: (0, 0.5)}
    assert drawn["too confident"] == {0: (0, pytest.approx(0.05)), 9: (0.5, pytest.approx(0.95))}
    assert drawn["not confident enough"] == {6: (1, pytest.approx(0.65))}
    assert [bar.get_height() for bar in bottom.containers[0]] == [3, 0, 0, 0, 0, 0, 2, 0, 0, 4]
    np.testing.assert_allclose([bar.get_x() for bar in bottom.containers[0]], np.arange(10) / 10)


def test_title_settings_and_axes_are_named():
    report = make_report(score_threshold=0.3)
    top, bottom = reliability_figure({"model": report}).axes
    assert top.get_title() == f"model\nECE {report.ece:.3f}"
    assert top.texts[0].get_text() == "IoU 0.5, 10 bins,\nscore ≥ 0.3, maxDets 100"
    assert top.get_ylabel() == "precision (fraction right)"
    assert (bottom.get_xlabel(), bottom.get_ylabel()) == ("confidence (score)", "detections")


def test_reports_stand_side_by_side_on_one_scale(tmp_path):
    reports = {"p": make_report(), "o": make_report(num_bins=5), "p·o": make_report(score_threshold=0.99)}
    figure = reliability_figure(reports)
    assert len(figure.axes) == 6
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[:3]] == ["p", "o", "p·o"]
    assert {axes.get_ylim() for axes in figure.axes[:3]} == {(0.0, 1.0)}
    assert len({axes.get_ylim() for axes in figure.axes[3:]}) == 1
    save_reliability_diagram(tmp_path / "one.png", {"model": reports["p"]})
    save_reliability_diagram(tmp_path / "three.png", reports)
    one, three = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "three.png")
    assert three.width > 2 * one.width
    assert three.height == one.height
    assert np.asarray(one.convert("L")).mean() > 200, "light"


def test_the_ending_chooses_the_format(tmp_path):
    save_reliability_diagram(tmp_path / "figure.svg", {"model": make_report()})
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_no_reports():
    with pytest.raises(ValueError, match="reports is empty"):
        reliability_figure({})


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'drmm-hf\[plots\]'"):
        reliability_figure({"model": make_report()})
