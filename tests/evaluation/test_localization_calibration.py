"""LaECE, LaECE_0 and LaACE_0 on cases that can be worked out by hand, and against an independent library."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation.calibration import calibration_report
from drmm_hf.evaluation.coco import AREAS, run_coco_eval
from drmm_hf.evaluation.coco_input import prepare_ground_truth
from drmm_hf.evaluation.localization_calibration import localization_calibration_report
from drmm_hf.evaluation.matches import ANY_OVERLAP, match_detections, matches_at


def make_truth(*boxes: tuple, crowd: bool = False) -> dict:
    """One image with 10x10 boxes, each given as (class, x), and perhaps a crowd region of class 1 far below."""
    annotations = [{"image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10]} for c, x in boxes]
    if crowd:
        annotations.insert(0, {"image_id": 1, "category_id": 1, "bbox": [0, 500, 400, 400], "iscrowd": 1})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}, {"id": 3, "name": "three"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def found(score: float, x: float, *, height: float = 10, category_id: int = 1) -> dict:
    """A detection that covers height/10 of a box at `x`, which is also its IoU with it."""
    return {"image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, height], "score": score}


def test_score_equal_to_iou_is_zero():
    truth = make_truth((1, 0), (1, 20), (2, 40))
    results = [found(0.8, 0, height=8), found(0.6, 20, height=6), found(1.0, 40, category_id=2), found(0.0, 300)]
    report = localization_calibration_report(truth, results)
    assert report.laece == pytest.approx(0.0)
    assert report.laace == pytest.approx(0.0)


def test_known_value_of_two_classes():
    # Class one, 10 bins: [.9, 1]: IoUs .8 and 0 (a duplicate), scores .95 and .91: gap |1.86 - .8| = 1.06;
    # [.3, .4): IoU .5, score .3: gap .2; over 3 detections. Class two: score .4 on nothing: .4.
    # Singly: |.95-.8| + |.91-0| + |.3-.5| = 1.26, over 3. Class three has no detection and does not count.
    truth = make_truth((1, 0), (1, 20), (3, 40))
    results = [
        found(0.95, 0, height=8),
        found(0.91, 0, height=7),
        found(0.3, 20, height=5),
        found(0.4, 300, category_id=2),
    ]
    report = localization_calibration_report(truth, results, num_bins=10)
    assert report.per_class["one"].laece == pytest.approx(1.26 / 3)
    assert report.per_class["one"].laace == pytest.approx(1.26 / 3)
    assert report.per_class["two"].laece == pytest.approx(0.4)
    assert math.isnan(report.per_class["three"].laece)
    assert report.laece == pytest.approx((1.26 / 3 + 0.4) / 2)
    # In one bin the gaps of different sign cancel: |.95 + .91 + .3 - .8 - .5| / 3.
    coarse = localization_calibration_report(truth, results, num_bins=1)
    assert coarse.per_class["one"].laece == pytest.approx(0.86 / 3)
    assert coarse.laace == report.laace


def test_iou_threshold_and_any_overlap():
    # IoU .05: wrong for LaECE (|.5 - 0|), a true positive for LaECE_0 (|.5 - .05|).
    truth, results = make_truth((1, 0)), [found(0.5, 0, height=0.5)]
    assert localization_calibration_report(truth, results).laece == pytest.approx(0.5)
    report = localization_calibration_report(truth, results, iou_threshold=0)
    assert (report.laece, report.laace) == (pytest.approx(0.45), pytest.approx(0.45))


def test_no_overlap_is_no_match_at_iou_0():
    # Plain COCO matching at IoU >= 0 would give the box to the surer detection, which does not touch it.
    report = localization_calibration_report(make_truth((1, 0)), [found(0.9, 300), found(0.7, 0)], iou_threshold=0)
    assert report.laace == pytest.approx((0.9 + 0.3) / 2)


def test_ious_are_those_of_the_matched_box_with_a_crowd_first():
    on_crowd = {"image_id": 1, "category_id": 1, "bbox": [50, 550, 30, 30], "score": 0.99}
    truth = make_truth((1, 40), (1, 0), (1, 20), crowd=True)
    results = [found(0.7, 0, height=7), found(0.9, 20, height=9), found(0.8, 40, height=8), on_crowd]
    report = localization_calibration_report(truth, results)
    assert report.laace == pytest.approx(0.0)
    assert (report.num_detections, report.num_ignored) == (3, 1)


def test_one_class_of_exact_boxes_is_the_plain_calibration_error():
    truth = make_truth((1, 0), (1, 20), (1, 40))
    results = [found(0.9, 0), found(0.7, 20), found(0.35, 300), found(0.1, 20), found(0.62, 40)]
    expected = calibration_report(truth, results, num_bins=5).ece
    assert localization_calibration_report(truth, results, iou_threshold=0.5, num_bins=5).laece == expected


def test_score_threshold_and_max_detections():
    results = [found(1.0, 0), *[found(0.1, 300)] * 9]
    assert localization_calibration_report(make_truth((1, 0)), results).laece == pytest.approx(0.09)
    assert localization_calibration_report(make_truth((1, 0)), results, score_threshold=0.3).laece == 0.0
    assert localization_calibration_report(make_truth((1, 0)), results, max_detections=2).num_detections == 2


def test_matches_of_a_shared_evaluation_are_the_same():
    """One matching over several thresholds and areas serves every report."""
    truth = make_truth((1, 0), (1, 20), (2, 0), crowd=True)
    results = [found(0.9, 0, height=7), found(0.5, 20, height=4), found(0.8, 0, height=9, category_id=2)]
    prepared = prepare_ground_truth(truth)
    shared = run_coco_eval(prepared, results, iou_thresholds=[ANY_OVERLAP, 0.1, 0.5], areas=AREAS)
    for iou_threshold in (0.0, 0.1, 0.5):
        one = match_detections(truth, results, iou_threshold=iou_threshold, max_detections=100)
        other = matches_at(shared, prepared, iou_threshold)
        for name in ("classes", "scores", "correct", "ious", "num_objects"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.num_objects.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"iou_threshold 0\.75 was not matched; choose one of 0\.00, 0\.10, 0\.50"):
        matches_at(shared, prepared, 0.75)


def test_no_detections_have_no_calibration():
    report = localization_calibration_report(make_truth((1, 0)), [])
    assert math.isnan(report.laece)
    plain = report.to_dict()
    assert plain["laace"] is None
    assert plain["per_class"]["one"] == {"laece": None, "laace": None, "num_detections": 0}
    json.dumps(plain, allow_nan=False)


def test_report_carries_its_settings():
    report = localization_calibration_report(
        make_truth(), [], iou_threshold=0, num_bins=15, score_threshold=0.3, max_detections=50
    )
    assert report.settings == "IoU > 0, 15 bins, score >= 0.3, maxDets 50"
    assert localization_calibration_report(make_truth(), []).settings == "IoU 0.1, 25 bins, score >= 0, maxDets 100"


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 60), st.floats(1, 20)), min_size=1, max_size=12, unique=True),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
def test_bounds_and_order(rows, num_bins, random):
    truth = make_truth((1, 0), (1, 20), (1, 40))
    results = [found(score, x, height=height) for score, x, height in rows]
    report = localization_calibration_report(truth, results, iou_threshold=0, num_bins=num_bins)
    assert 0.0 <= report.laece <= report.laace + 1e-12 <= 1.0 + 1e-12
    if len({row[0] for row in rows}) == len(rows):  # equal scores are matched in the order of the list
        random.shuffle(results)
        shuffled = localization_calibration_report(truth, results, iou_threshold=0, num_bins=num_bins)
        assert shuffled.laece == pytest.approx(report.laece)
        assert shuffled.laace == pytest.approx(report.laace)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_threshold": -0.1}, r"iou_threshold must lie in \[0, 1\], not -0\.1"),
        ({"num_bins": 0}, "num_bins must be at least 1"),
        ({"score_threshold": 1.5}, r"score_threshold must lie in \[0, 1\]"),
        ({"max_detections": 0}, "max_detections must be increasing positive"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        localization_calibration_report(make_truth((1, 0)), [], **options)


def test_scores_that_are_no_probabilities():
    with pytest.raises(ValueError, match=r"score 3\.5 is outside \[0, 1\]"):
        localization_calibration_report(make_truth((1, 0)), [found(3.5, 0)])


def scene() -> tuple[dict, list[dict]]:
    """12 images of two classes with good, loose, duplicate, confused and free detections, from a frozen stream."""
    random = np.random.RandomState(7)  # the only generator whose numbers are promised to stay
    annotations, results = [], []
    for image_id in range(12):
        for place in range(4):
            box = np.array([60.0 * place, 0, 20 + 20 * random.random_sample(), 30])
            category_id = 1 + random.randint(2)
            annotations.append({"image_id": image_id, "category_id": category_id, "bbox": box.tolist()})
            for _ in range(random.randint(4)):
                moved = box + random.normal(scale=(4, 4, 3, 3))
                moved[0] += box[2] * 0.85 * (random.random_sample() < 0.2)  # hardly an overlap
                guess = category_id if random.random_sample() < 0.8 else 3 - category_id
                row = {"image_id": image_id, "category_id": guess, "bbox": np.maximum(moved, 0).tolist()}
                results.append(row | {"score": float(random.beta(2, 2))})
        row = {"image_id": image_id, "category_id": 1 + image_id % 2, "bbox": [0, 200, 30, 30]}
        # Scores 0 and 1 in each class: the library's bins run from the lowest to the highest score.
        results.append(row | {"score": {0: 0.0, 1: 0.0, 2: 1.0, 3: 1.0}.get(image_id, float(random.beta(1, 4)))})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    return {"images": [{"id": i} for i in range(12)], "categories": categories, "annotations": annotations}, results


# (IoU threshold, bins) -> what uq_detr.laece 0.1.1 gave for `scene()` with tp_criterion="greedy"; it has no any-overlap
# mode, for which 1e-9 stands, nor LaACE, which is LaECE in so many bins that each holds one detection.
UQ_DETR = {
    (0.1, 25): 0.32671487144349576,
    (1e-9, 25): 0.32191815567328225,
    (1e-9, 1_000_000): 0.3775521202122476,
    (0.5, 10): 0.31068358805954227,
}


@pytest.mark.parametrize(("iou_threshold", "num_bins"), UQ_DETR)
def test_values_of_an_independent_library(iou_threshold, num_bins):
    truth, results = scene()
    report = localization_calibration_report(
        truth, results, iou_threshold=0 if iou_threshold == 1e-9 else iou_threshold, num_bins=min(num_bins, 25)
    )
    value = report.laace if num_bins > 25 else report.laece
    assert value == pytest.approx(UQ_DETR[iou_threshold, num_bins], abs=1e-9)


@pytest.mark.parametrize(("iou_threshold", "num_bins"), UQ_DETR)
def test_the_independent_library_gives_these_values(iou_threshold, num_bins):
    library = pytest.importorskip("uq_detr")
    truth, results = scene()
    detections, objects = [], []
    for image in truth["images"]:
        rows = [row for row in results if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows])
        scores, labels = [row["score"] for row in rows], [row["category_id"] for row in rows]
        detections.append(library.Detections.from_xywh(boxes, np.array(scores), labels=np.array(labels)))
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        boxes, labels = np.array([row["bbox"] for row in rows]), np.array([row["category_id"] for row in rows])
        objects.append(library.GroundTruth.from_xywh(boxes, labels, normalized=False, image_size=None))
    value = library.laece(detections, objects, tp_criterion="greedy", iou_threshold=iou_threshold, n_bins=num_bins)
    assert value.score == pytest.approx(UQ_DETR[iou_threshold, num_bins], abs=1e-9)


# Score threshold -> what hotcoco 1.3.0 (its own matching) gave for `scene()` at IoU .5, 10 bins; netcal 1.4.0's ECE of
# our matches agrees.
HOTCOCO = {0.0: 0.17904737848025049, 0.3: 0.2098881583998761}


@pytest.mark.parametrize("score_threshold", HOTCOCO)
def test_ece_and_d_ece_of_an_independent_library(score_threshold):
    truth, results = scene()
    report = calibration_report(truth, results, score_threshold=score_threshold)
    assert report.ece == pytest.approx(HOTCOCO[score_threshold], abs=1e-9)


@pytest.mark.parametrize("score_threshold", HOTCOCO)
def test_the_independent_library_gives_this_ece(score_threshold, tmp_path):
    library = pytest.importorskip("hotcoco")
    truth, results = scene()
    for index, row in enumerate(truth["annotations"]):
        row |= {"id": index + 1, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
    for image in truth["images"]:
        image |= {"width": 300, "height": 300, "file_name": "none"}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps([r for r in results if r["score"] >= score_threshold]))
    annotations = library.COCO(str(tmp_path / "truth.json"))
    evaluation = library.COCOeval(annotations, annotations.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    value = evaluation.calibration(n_bins=10, iou_threshold=0.5)
    assert value["ece"] == pytest.approx(HOTCOCO[score_threshold], abs=1e-9)
