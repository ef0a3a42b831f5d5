"""Isotonic and temperature calibration: curves by hand and by an independent library, and the split-half report."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation import (
    ScoreCalibration,
    brier_report,
    calibration_report,
    localization_calibration_report,
    match_detections,
    split_half_report,
)
from drmm_hf.evaluation.recalibration import fit_isotonic, fit_temperature


def scene(num_images: int = 8, *, sharpen: float = 1.0) -> tuple[dict, list[dict]]:
    """Images of two classes where 2, 5 and 8 of ten detections are right at .2, .5 and .8.

    The log-odds of these scores are then multiplied by `sharpen`, which makes them too sure.
    """
    annotations, results = [], []
    for image_id in range(num_images):
        for category_id in (7, 9):
            for level, score in enumerate((0.2, 0.5, 0.8)):
                shown = 1 / (1 + ((1 - score) / score) ** sharpen)
                for index in range(10):
                    box = [20 * index, 100 * level, 10, 10]
                    if index < round(10 * score):
                        annotations.append({"image_id": image_id, "category_id": category_id, "bbox": box})
                    results.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": shown})
    categories = [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}]
    images = [{"id": image_id} for image_id in range(num_images)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def test_isotonic_by_hand():
    # .3 and .4 violate the order (1, 0) and are pooled to 1/2; .1 twice (0, 0); .9: 1
    curve = fit_isotonic(np.array([0.4, 0.1, 0.9, 0.3, 0.1]), np.array([0.0, 0.0, 1.0, 1.0, 0.0]))
    assert (curve.scores, curve.values) == ((0.1, 0.3, 0.4, 0.9), (0.0, 0.5, 0.5, 1.0))
    # constant outside of the fitted scores, linear between them
    np.testing.assert_allclose(curve(np.array([0.0, 0.2, 0.35, 0.65, 1.0])), [0.0, 0.25, 0.5, 0.75, 1.0])
    # equal scores weigh together: .2 has mean 1/2 of four, .6 has 0 of one; pooled 2/5, not 1/4
    curve = fit_isotonic(np.array([0.2, 0.2, 0.2, 0.2, 0.6]), np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert curve.values == pytest.approx((0.4, 0.4))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    calibrated = np.array([0.1, 0.3, 0.5, 0.7, 0.95])
    logits = np.log(calibrated / (1 - calibrated)) * temperature
    curve = fit_temperature(1 / (1 + np.exp(-logits)), calibrated)
    assert curve.temperature == pytest.approx(temperature, rel=1e-6)
    np.testing.assert_allclose(curve(1 / (1 + np.exp(-logits))), calibrated, rtol=1e-6)


def test_temperature_at_its_ends():
    # Any T that is small enough makes these sure; its likelihood is 1 to the last digit.
    np.testing.assert_allclose(
        fit_temperature(np.array([0.9, 0.1]), np.array([1.0, 0.0]))(np.array([0.9, 0.1])), [1, 0]
    )
    assert fit_temperature(np.array([0.9, 0.1]), np.array([0.0, 1.0])).temperature == pytest.approx(100)
    assert fit_temperature(np.array([0.5, 0.5]), np.array([0.0, 1.0])).temperature == 1.0
    extreme = fit_temperature(np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0]))
    assert np.isfinite(extreme(np.array([0.0, 0.5, 1.0]))).all()


@pytest.mark.parametrize("method", ["isotonic", "temperature"])
def test_a_sharpened_scene_is_cured(method):
    truth, results = scene(4, sharpen=2.0)
    given = copy.deepcopy(results)
    fit = ScoreCalibration.fit(*scene(2, sharpen=2.0), method=method)
    calibrated = fit.apply(results)
    assert results == given, "the caller's results are unchanged"
    assert calibration_report(truth, results).ece > 0.05
    assert calibration_report(truth, calibrated).ece == pytest.approx(0.0, abs=1e-6)
    json.dumps(fit.to_dict(), allow_nan=False)


def test_ties_made_by_calibration_keep_the_matching():
    # On one object a sure and an unsure detection, listed in the wrong order, which one constant makes equal.
    truth = scene(1)[0]
    truth["annotations"] = [{"image_id": 0, "category_id": 7, "bbox": [0, 0, 10, 10]}]
    results = [
        {"image_id": 0, "category_id": 7, "bbox": [0, 0, 10, 6], "score": 0.2},
        {"image_id": 0, "category_id": 7, "bbox": [0, 0, 10, 10], "score": 0.9},
    ]
    fit = ScoreCalibration.fit(truth, [results[0] | {"bbox": [50, 50, 9, 9]}])
    matches = match_detections(truth, fit.apply(results))
    assert matches.scores.tolist() == [0.0, 0.0]
    assert matches.ious.tolist() == [1.0, 0.0]
    assert fit.apply([]) == []


def test_split_half_report_of_a_sharpened_scene():
    truth, results = scene(4, sharpen=2.0)
    report = split_half_report(truth, results)
    assert set(report.values) == {"raw", "isotonic", "temperature"}
    # All images are alike, so each half is the whole: raw values are those of all images, and the fits are exact.
    any_overlap = localization_calibration_report(truth, results, iou_threshold=0)
    d_ece = calibration_report(truth, results, score_threshold=0.3)
    expected = {
        "ECE": calibration_report(truth, results).ece,
        "D-ECE": d_ece.ece,
        "LaECE": localization_calibration_report(truth, results).laece,
        "LaECE_0": any_overlap.laece,
        "LaACE_0": any_overlap.laace,
        "Brier": brier_report(truth, results).brier,
    }
    assert report.values["raw"] == pytest.approx(expected)
    assert report.metric_settings["D-ECE"] == d_ece.settings
    for method in ("isotonic", "temperature"):
        for metric in ("ECE", "D-ECE", "LaECE", "LaECE_0"):
            assert report.values[method][metric] == pytest.approx(0.0, abs=1e-6)
        # Detections of 1/5, 1/2 and 4/5 that keep their word: (.16 + .25 + .16) / 3
        assert report.values[method]["Brier"] == pytest.approx(0.19, abs=1e-6)
    assert report.num_images == (2, 2)
    json.dumps(report.to_dict(), allow_nan=False)


def test_split_half_fits_on_one_half_and_reports_on_the_other():
    """Two images that contradict each other: each is measured with what the other taught."""
    truth, _ = scene(2)
    box = [0, 0, 10, 10]
    truth["annotations"] = [{"image_id": 0, "category_id": 7, "bbox": box}]
    results = [{"image_id": image_id, "category_id": 7, "bbox": box, "score": 0.6} for image_id in (0, 1)]
    # Image 0: right at .6; image 1: wrong at .6. Raw: (.4 + .6)/2. Fitted on the other: 0 for right, 1 for wrong.
    report = split_half_report(truth, results)
    assert report.values["raw"]["ECE"] == pytest.approx(0.5)
    assert report.values["isotonic"]["ECE"] == pytest.approx(1.0)
    assert report.values["isotonic"]["Brier"] == pytest.approx(1.0)


def test_the_split_does_not_depend_on_the_order():
    truth, results = scene(5, sharpen=1.5)
    results = [row for row in results if row["image_id"] != 2 or row["score"] > 0.5]
    first = split_half_report(truth, results)
    again = split_half_report({**truth, "images": truth["images"][::-1]}, results[::-1])
    assert first.num_images == (3, 2)
    for method, values in first.values.items():
        assert again.values[method] == pytest.approx(values)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=15), st.randoms(use_true_random=False)
)
def test_curves_are_monotone_bounded_and_do_not_depend_on_the_order(rows, random):
    grid = np.linspace(0, 1, 21)
    scores, targets = np.array(rows).T
    random.shuffle(rows)
    for fit in (fit_isotonic, fit_temperature):
        values = fit(scores, targets)(grid)
        assert (np.diff(values) >= -1e-12).all()
        assert values.min() >= 0
        assert values.max() <= 1
        np.testing.assert_allclose(fit(*np.array(rows).T)(grid), values, atol=1e-6)
    # No other non-decreasing map is nearer to the targets, the constant and the identity among them.
    error = np.mean((fit_isotonic(scores, targets)(scores) - targets) ** 2)
    assert error <= np.mean((scores - targets) ** 2) + 1e-12
    assert error <= np.var(targets) + 1e-12


BAD_SETTINGS = ({"method": "platt"}, {"iou_threshold": 2.0})


@pytest.mark.parametrize(
    ("measure", "options", "named"),
    [
        *[(ScoreCalibration.fit, one, next(iter(one))) for one in BAD_SETTINGS],
        (ScoreCalibration.fit, {"results": []}, "no detections"),
        (split_half_report, dict(zip(("ground_truth", "results"), scene(1), strict=True)), "images"),
    ],
)
def test_bad_settings_and_nothing_to_fit_or_to_halve(measure, options, named):
    truth, results = scene(2)
    with pytest.raises(ValueError, match=named):
        measure(**{"ground_truth": truth, "results": results, **options})


def sample() -> tuple[np.ndarray, np.ndarray]:
    """200 too sure scores in steps of 1/50, so that some are equal, and whether they are right."""
    random = np.random.RandomState(11)  # the only generator whose numbers are promised to stay
    scores = np.round(random.beta(0.8, 0.8, 200) * 48 + 1) / 50
    return scores, (random.random_sample(200) < 0.3 + 0.4 * scores).astype(float)


GRID = (0.0, 0.05, 0.21, 0.33, 0.5, 0.77, 0.9, 1.0)
# What sklearn.isotonic.IsotonicRegression(out_of_bounds="clip") 1.9.1 gave for `sample()` on GRID
SKLEARN_ISOTONIC = (
    0.11764705882352941, 0.11764705882352941, 0.3191489361702128, 0.3345744680851064,
    0.5274725274725275, 0.5274725274725275, 0.5274725274725275, 1.0,
)  # fmt: skip
# 1 / coefficient of sklearn.linear_model.LogisticRegression(C=inf, fit_intercept=False, tol=1e-10) of the log-odds
SKLEARN_TEMPERATURE = 2.9827206251986613


def test_curves_of_an_independent_library():
    np.testing.assert_allclose(fit_isotonic(*sample())(np.array(GRID)), SKLEARN_ISOTONIC, atol=1e-9)
    assert fit_temperature(*sample()).temperature == pytest.approx(SKLEARN_TEMPERATURE, rel=1e-6)
