"""Intervals of box edges: the quantiles by hand and against scipy, and their coverage on simulated errors."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.configuration_drmm import DrmmConfig
from drmm_hf.evaluation import box_intervals, detections_to_coco, evaluate_coco, fit_scale_factor, interval_report
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.modeling_drmm import DrmmForObjectDetection
from drmm_hf.postprocessing import half_width


def make_truth(*boxes: tuple, crowd: bool = False) -> dict:
    """Boxes [x, y, width, height] of one class, an image each, and perhaps a crowd region in the first."""
    annotations = [{"image_id": i, "category_id": 5, "bbox": list(box)} for i, box in enumerate(boxes, start=1)]
    if crowd:
        annotations.insert(0, {"image_id": 1, "category_id": 5, "bbox": [0, 5000, 400, 400], "iscrowd": 1})
    images = [{"id": i} for i in range(1, len(boxes) + 1)]
    return {"images": images, "categories": [{"id": 5, "name": "cell"}], "annotations": annotations}


def found(image_id: int, corners: tuple, scales: tuple = (1, 1, 1, 1), score: float = 0.9) -> dict:
    left, top, right, bottom = corners
    box = [left, top, right - left, bottom - top]
    return {"image_id": image_id, "category_id": 5, "bbox": box, "score": score, "scales": list(scales)}


def simulate(count: int, factor: float = 1.0, seed: int = 0) -> tuple[dict, list[dict]]:
    """Boxes of side 10⁵ whose edges have Cauchy errors of `factor` times the stated scale, of 1 to 3 px."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(1.0, 3.0, (count, 4))
    corners = np.array([0.0, 0.0, 1e5, 1e5]) + factor * scales * rng.standard_cauchy((count, 4))
    truth = make_truth(*[(0, 0, 1e5, 1e5)] * count)
    return truth, [found(i + 1, tuple(corners[i]), tuple(scales[i])) for i in range(count)]


def times(results: list[dict], factor: float) -> list[dict]:
    """The same detections with other scales."""
    return [{**one, "scales": [factor * scale for scale in one["scales"]]} for one in results]


def test_quantiles_by_hand() -> None:
    assert half_width(0.5) == pytest.approx(1.0)  # half of a Cauchy density lies within γ
    assert half_width(0.8) == pytest.approx(3.0776835)
    assert half_width(0.6826894921, "gaussian") == pytest.approx(1.0)
    boxes, scales = torch.tensor([[10.0, 20.0, 50.0, 80.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    low, high = box_intervals(boxes.expand(3, 2, 4), scales.expand(3, 2, 4), 0.5)
    assert low[2, 1].tolist() == pytest.approx([9, 18, 47, 76])
    assert high[2, 1].tolist() == pytest.approx([11, 22, 53, 84])
    assert box_intervals(boxes[:0], scales[:0], 0.5)[0].shape == (0, 4)
    assert half_width(0.7, "student_t", 1.0) == half_width(0.7)


@pytest.mark.parametrize("dof", [0.5, 2.0, 30.0])
def test_student_t_quantile_holds_its_level(dof: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert stats.t(dof).interval(0.8)[1] == pytest.approx(half_width(0.8, "student_t", dof))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 0.98), st.floats(0.001, 0.009), st.sampled_from(["cauchy", "gaussian"]), st.floats(0.1, 100))
def test_intervals_are_nested_central_and_follow_the_scale(level, more, density, scale) -> None:
    boxes, scales = torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 4), scale, dtype=torch.float64)
    low, high = box_intervals(boxes, scales, level, density)
    wider_low, wider_high = box_intervals(boxes, scales, level + more, density)
    assert (wider_low < low).all()
    assert (wider_high > high).all()
    torch.testing.assert_close(low, -high)
    torch.testing.assert_close(high, scale * box_intervals(boxes, torch.ones_like(scales), level, density)[1])


def test_report_by_hand():
    # Errors over γ: 0, .4, .9, 2 in image 1 (γ 2), 1.5, 4, 0, 10 in image 2 (γ 1); half widths 1, 3.08 and 6.31.
    truth = make_truth((100, 100, 100, 100), (100, 100, 100, 100), crowd=True)
    results = [
        found(1, (100, 100.8, 198.2, 196), (2, 2, 2, 2)),
        found(2, (98.5, 104, 200, 190)),
        found(1, (100, 100, 200, 200), score=0.8),  # a duplicate is no true positive
        found(2, (400, 400, 500, 500), score=0.7),
        found(1, (10, 5010, 100, 5100), score=0.99),  # on the crowd region
    ]
    report = interval_report(truth, results)
    assert report.num_detections == 2
    assert report.coverage == pytest.approx((4 / 8, 6 / 8, 7 / 8))
    assert report.median_width[1] == pytest.approx(2 * 1.5 * math.tan(0.4 * math.pi))
    half = interval_report(truth, times(results, 0.5), levels=[0.5])
    assert half.coverage == pytest.approx((3 / 8,))
    assert half.median_width == pytest.approx((1.5,))
    assert half.rank_correlation == pytest.approx(report.rank_correlation)
    empty = interval_report(truth, []).to_dict()
    assert (empty["num_detections"], empty["coverage"], empty["median_width"]) == (0, [None] * 3, [None] * 3)
    assert empty["quintile_errors"] == [None] * 5


def test_width_against_error():
    # γ 1 to 4 in four images; the errors of an image are all as large as its γ.
    truth = make_truth(*[(100, 100, 100, 100)] * 4)
    results = [found(i, (100 + i, 100 + i, 200 - i, 200 - i), (i,) * 4) for i in range(1, 5)]
    report = interval_report(truth, results)
    assert report.rank_correlation == pytest.approx(1.0)
    assert report.quintile_scales == pytest.approx((1.0, 2.0, 8 / 3, 10 / 3, 4.0))  # 1111 222 233 334 444
    assert report.quintile_errors == pytest.approx(report.quintile_scales)
    backwards = [{**one, "scales": [5 - i] * 4} for i, one in enumerate(results, start=1)]
    assert interval_report(truth, backwards).rank_correlation == pytest.approx(-1.0)
    constant = [{**one, "scales": [1] * 4} for one in results]
    assert math.isnan(interval_report(truth, constant).rank_correlation)


def test_large_boxes_with_large_errors_say_nothing_relatively():
    rng = np.random.default_rng(0)
    sides = np.repeat([50.0, 500.0], 60)
    errors = sides[:, None] * rng.uniform(0.0, 0.05, (120, 4))
    truth = make_truth(*[(0, 0, side, side) for side in sides])
    corners = errors + np.array([0, 0, 1, 1]) * sides[:, None]
    results = [found(i + 1, tuple(corners[i]), (0.04 * sides[i],) * 4) for i in range(120)]
    report = interval_report(truth, results)
    assert report.rank_correlation > 0.6
    assert abs(report.relative_rank_correlation) < 0.15
    assert report.floor_share > 0.3  # where the predicted box is not smaller than the true one
    assert interval_report(truth, results, min_scale_ratio=0.0).floor_share == 0.0


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    truth, results = simulate(15)
    for one in results:
        one["scales"] = np.round(one["scales"]).tolist()  # ties
        one["bbox"] = np.round(one["bbox"]).tolist()
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in results)])
    errors = np.abs(corners - [0, 0, 1e5, 1e5])
    expected = stats.spearmanr(np.ravel([one["scales"] for one in results]), errors.ravel()).statistic
    assert interval_report(truth, results).rank_correlation == pytest.approx(expected)


def test_cauchy_errors_have_the_stated_coverage_and_a_factor_restores_it() -> None:
    truth, results = simulate(1500)
    # 6000 edges: a standard deviation is at most .0065
    report = interval_report(truth, results)
    assert report.coverage == pytest.approx((0.5, 0.8, 0.9), abs=0.02)
    assert report.rank_correlation > 0.05
    truth, results = simulate(1000, factor=2.0)
    fit = fit_scale_factor(truth, results)
    assert fit.factor == pytest.approx(2.0, rel=0.1)
    assert fit.levels == (0.5, 0.8, 0.9)
    assert fit.coverage_before[1] < 0.7
    assert fit.coverage_after == pytest.approx((0.5, 0.8, 0.9), abs=0.03)
    assert fit.num_images == (500, 500)
    corrected = interval_report(truth, times(results, fit.factor))
    assert corrected.coverage[1] == pytest.approx(0.8, abs=1e-3)


def test_factor_by_hand():
    # Image 1 has |error|/γ = .9, 2, 3, 4, image 2 all 10. At 50% the second smallest counts: 2, 10; of all eight: 4.
    truth = make_truth((100, 100, 100, 100), (100, 100, 100, 100))
    results = [found(1, (100.9, 102, 203, 204)), found(2, (110, 110, 210, 210))]
    report = fit_scale_factor(truth, results, level=0.5)
    assert report.factor == pytest.approx(4.0)
    assert report.coverage_before[0] == pytest.approx(1 / 8)
    assert report.coverage_after[0] == pytest.approx(0.5)  # all of image 1 within 10, none of image 2 within 2
    json.dumps(report.to_dict(), allow_nan=False)
    exact = [found(image, (100, 100, 200, 200)) for image in (1, 2)]
    factor = fit_scale_factor(truth, exact).factor
    assert interval_report(truth, times(exact, factor)).coverage == (1.0, 1.0, 1.0), "no error, and still a width"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.95))
def test_fitted_factor_reaches_its_level_and_no_smaller_one_does(seed, level):
    truth, results = simulate(5, seed=seed)
    options = {"levels": [level], "iou_threshold": 0.01, "score_threshold": 0.0}
    factor = fit_scale_factor(truth, results, level, iou_threshold=0.01, score_threshold=0.0).factor
    assert interval_report(truth, times(results, factor * 1.000001), **options).coverage[0] >= level - 1e-9
    assert interval_report(truth, times(results, factor * 0.999999), **options).coverage[0] < level


def test_results_carry_scales(tmp_path: Path) -> None:
    detection = {
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]]),
        "scales": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
    }
    plain = detections_to_coco([detection], [1], [-1, 5])
    results = detections_to_coco([detection], [1], [-1, 5], with_scales=True)
    assert results == [{**one, "scales": [5.0, 6.0, 7.0, 8.0]} for one in plain]
    truth = make_truth((5, 5, 4, 4))
    assert evaluate_coco(truth, results) == evaluate_coco(truth, plain)
    (tmp_path / "results.json").write_text(json.dumps(results))
    # as dicts, where what does not exist is None: a NaN does not equal itself
    assert interval_report(truth, tmp_path / "results.json").to_dict() == interval_report(truth, results).to_dict()


@pytest.mark.parametrize("floor", [0.0, 0.04, 10.0])
def test_scales_of_post_processing_have_the_floor(floor):
    torch.manual_seed(0)
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_proposals=8, num_stages=1, min_scale_ratio=floor)
    processor = DrmmImageProcessor()
    outputs = DrmmForObjectDetection(config).eval()(torch.randn(1, 3, 64, 96))
    (one,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(128, 192)])
    sizes = (one["boxes"][:, 2:] - one["boxes"][:, :2]).repeat(1, 2)
    assert (one["scales"] >= floor * sizes * 0.999).all()
    if floor == 10.0:
        torch.testing.assert_close(one["scales"], floor * sizes)
    if floor == 0.0:
        torch.testing.assert_close(one["scales"].max(), 2 * outputs.scales.max())  # image twice the network input
    low, high = box_intervals(one["boxes"], one["scales"], 0.5)
    torch.testing.assert_close(high - low, 2 * one["scales"], rtol=1e-3, atol=1e-3)


TWO = make_truth((0, 0, 10, 10), (0, 0, 10, 10))
RIGHT = found(1, (0, 0, 10, 10))


@pytest.mark.parametrize(
    ("measure", "arguments", "named"),
    [
        *[(half_width, (level,), "level") for level in (0.0, 1.0, 80)],
        (half_width, (0.5, "unknown"), "density"),
        (half_width, (0.5, "student_t", -1.0), "student_t_dof"),
        (box_intervals, (torch.zeros(2, 4), torch.zeros(4), 0.5), "boxes"),
        *[
            (interval_report, (TWO, [{**RIGHT, "scales": scales}]), r"results\[0\]\.scales")
            for scales in ([1, 2, 3], [1, 2, 3, -1], [1, 2, 3, math.nan], None)
        ],
        (fit_scale_factor, (make_truth((0, 0, 10, 10)), [RIGHT]), "images"),
        (fit_scale_factor, (TWO, [RIGHT]), "score_threshold"),
    ],
)
def test_bad_settings_and_results_are_named(measure: Any, arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        measure(*arguments)


@pytest.mark.parametrize("options", [{"iou_threshold": -1.0}, {"score_threshold": 2.0}])
def test_bad_options_of_the_report(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        interval_report(TWO, [RIGHT], **options)
