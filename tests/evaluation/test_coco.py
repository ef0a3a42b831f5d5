"""COCO numbers, id mapping and the checks of what goes in."""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch

from drmm_hf.evaluation import detections_to_coco, evaluate_coco, evaluate_detections

PUBLISHED = {
    "AP": 0.505, "AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501,
    "AR1": 0.387, "AR10": 0.594, "AR100": 0.595, "ARs": 0.640, "ARm": 0.566, "ARl": 0.564,
}  # fmt: skip
DATA = os.environ.get("DRMM_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set DRMM_TEST_DATA to the folder of the real test data")


def make_truth() -> dict:
    """Two images, classes 3 and 7; a 50x50 box in each image, and a crowd region in the second."""
    return {
        "images": [{"id": 10}, {"id": 20}, {"id": 30}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 0, "image_id": 10, "category_id": 3, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0},
            {"id": 1, "image_id": 20, "category_id": 7, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 0},
            {"id": 2, "image_id": 20, "category_id": 7, "bbox": [100, 0, 90, 90], "area": 8100, "iscrowd": 1},
        ],
    }


def make_result(image_id=10, category_id=3, bbox=(10, 10, 50, 50), score=0.9) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


PERFECT = [make_result(), make_result(20, 7, (5, 5, 50, 50), 0.8)]


@needs_data
def test_published_numbers():
    folder = Path(DATA) / "coco_eval"
    metrics = evaluate_coco(
        folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    )
    assert {name: round(value, 3) for name, value in metrics.items()} == PUBLISHED


@needs_data
def test_one_pass_equals_two(capsys):
    folder = Path(DATA) / "coco_eval"
    files = folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    report = evaluate_detections(*files, score_thresholds=(0.0, 0.3))
    assert report.metrics == evaluate_coco(*files)
    assert [part.score_threshold for part in report.calibration] == [0.0, 0.3]
    assert capsys.readouterr().out == ""
    json.dumps(report.to_dict(), allow_nan=False)


def test_perfect_results_with_annotation_id_zero():
    metrics = evaluate_coco(make_truth(), PERFECT)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == pytest.approx(1.0)
    assert metrics["APs"] == -1.0  # no small objects
    assert all(type(value) is float for value in metrics.values())


def test_input_is_left_alone():
    truth, results = make_truth(), copy.deepcopy(PERFECT)
    evaluate_coco(truth, results)
    assert truth == make_truth()
    assert results == PERFECT


def test_no_detections_give_zeros():
    metrics = evaluate_coco(make_truth(), [])
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["APm"] == 0.0


def test_no_annotations_at_all():
    truth = make_truth() | {"annotations": []}
    assert set(evaluate_coco(truth, PERFECT).values()) == {-1.0}


def test_crowd_detection_is_ignored_and_elsewhere_is_wrong():
    on_crowd = make_result(20, 7, (110, 10, 40, 40), 0.99)
    beside = make_result(20, 7, (300, 300, 40, 40), 0.99)
    assert evaluate_coco(make_truth(), [*PERFECT, on_crowd])["AP"] == pytest.approx(1.0)
    assert evaluate_coco(make_truth(), [*PERFECT, beside])["AP"] == pytest.approx(0.75)


def test_missing_area_crowd_flag_and_info_are_filled():
    truth = make_truth()
    for annotation in truth["annotations"][:2]:
        del annotation["area"], annotation["iscrowd"]
    metrics = evaluate_coco(truth, PERFECT)
    assert metrics["APm"] == pytest.approx(1.0)  # 2500 px is a medium object
    assert metrics["APl"] == -1.0


def test_iou_decides_which_thresholds_count():
    results = [make_result(bbox=(10, 10, 50, 35))]  # IoU 0.7
    metrics = evaluate_coco(make_truth(), results, per_class=True)
    assert metrics["AP/cat"] == pytest.approx(0.5)  # .50, .55, .60, .65, .70 of ten
    assert metrics["AP/dog"] == 0.0
    assert metrics["AP50"] == pytest.approx(0.5)
    assert metrics["AP75"] == 0.0


def test_max_detections_and_image_ids():
    crowded = [make_result(bbox=(200, 200, 9, 9), score=0.95), *PERFECT]
    metrics = evaluate_coco(make_truth(), crowded, max_detections=(1, 2, 300))
    assert metrics["AR1"] == pytest.approx(0.5)
    assert metrics["AR2"] == metrics["AR300"] == pytest.approx(1.0)
    assert evaluate_coco(make_truth(), crowded, image_ids=[20])["AP"] == pytest.approx(1.0)


def test_repeated_category_names_stay_apart():
    truth = make_truth()
    truth["categories"][1]["name"] = "cat"
    metrics = evaluate_coco(truth, PERFECT[:1], per_class=True)
    assert (metrics["AP/cat (3)"], metrics["AP/cat (7)"]) == (pytest.approx(1.0), 0.0)


def test_detections_to_coco():
    detections = [
        {
            "scores": torch.tensor([0.75, 0.5], requires_grad=True),
            "labels": torch.tensor([1, 0]),
            "boxes": torch.tensor([[1.0, 2.0, 4.0, 8.0], [5.0, 5.0, 4.0, 6.0]]),
        },
        {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    results = detections_to_coco(detections, [20, 10], [3, 7])
    assert results == [
        make_result(20, 7, (1.0, 2.0, 3.0, 6.0), 0.75),
        make_result(20, 3, (5.0, 5.0, 0.0, 1.0), 0.5),  # an inverted edge has no width
    ]
    json.dumps(results)


def test_detections_to_coco_rejects_other_lengths_and_labels():
    detection = {"scores": torch.ones(1), "labels": torch.tensor([2]), "boxes": torch.ones(1, 4)}
    with pytest.raises(ValueError, match="1 images but 2 image_ids"):
        detections_to_coco([detection], [1, 2], [3, 7])
    with pytest.raises(ValueError, match=r"image 1: labels run from 2 to 2 but category_ids has 2 entries"):
        detections_to_coco([detection], [1], [3, 7])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"results\[1\]\.image_id: 99 is no image of ground truth"),
        ({"category_id": 1}, r"results\[1\]\.category_id: 1 is no category of .* original category ids"),
        ({"category_id": [3]}, r"results\[1\]\.category_id"),
        ({"score": math.nan}, r"results\[1\]\.score: nan is not a finite number"),
        ({"score": "high"}, r"results\[1\]\.score: 'high'"),
        ({"bbox": [1, 2, math.inf, 4]}, r"results\[1\]\.bbox: .* four finite numbers"),
        ({"bbox": [1, 2, 3]}, r"results\[1\]\.bbox: .* four finite numbers"),
        ({"bbox": [9, 9, -3, 4]}, r"results\[1\]\.bbox: .* negative size"),
        ({"bbox": None}, r"results\[1\]\.bbox: None"),
    ],
)
def test_bad_results(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(make_truth(), [make_result(), make_result() | change])


def test_bad_results_name_their_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"image_id": 10}]))
    with pytest.raises(ValueError, match=r"mine\.json: results\[0\]\.category_id is missing"):
        evaluate_coco(make_truth(), path)
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match=r"mine\.json: not valid JSON \(line 1, column 6"):
        evaluate_coco(make_truth(), path)
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"mine\.json: not a JSON file"):
        evaluate_coco(make_truth(), path)
    path.write_text(json.dumps(make_truth()))
    with pytest.raises(ValueError, match=r"mine\.json: results: COCO results are a list .* not a dict"):
        evaluate_coco(make_truth(), path)
    with pytest.raises(FileNotFoundError, match=r"other\.json: no such file"):
        evaluate_coco(tmp_path / "other.json", [])


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("categories", None, "field 'categories' is not a list"),
        ("images", [{"id": 10}, {"id": 10}], r"images\[1\]\.id: 10 occurs twice"),
        ("images", [{"file_name": "a.jpg"}], r"images\[0\]\.id is missing"),
        ("annotations", [{"id": 5, "image_id": 1}], r"annotations\[0\] \(id 5\)\.image_id: 1 is not among"),
        (
            "annotations",
            [{"image_id": 10, "category_id": 8}],
            r"annotations\[0\]\.category_id: 8 is not among",
        ),
        ("annotations", [{"image_id": 10, "category_id": 3, "bbox": [1, 2, -1, 4]}], "negative size"),
        (
            "annotations",
            [{"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "area": "big"}],
            "area: 'big'",
        ),
    ],
)
def test_bad_ground_truth(section, value, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(make_truth() | {section: value}, [])


def test_ground_truth_that_is_something_else():
    with pytest.raises(ValueError, match="this is a list, as COCO results are"):
        evaluate_coco(PERFECT, [])
    with pytest.raises(ValueError, match="field 'annotations' is missing"):
        evaluate_coco({"images": [], "categories": []}, [])


def test_bad_settings():
    with pytest.raises(ValueError, match="max_detections must be increasing"):
        evaluate_coco(make_truth(), [], max_detections=(100, 10))
    with pytest.raises(ValueError, match="image_ids: 11 is no image"):
        evaluate_coco(make_truth(), [], image_ids=[10, 11])
    with pytest.raises(ValueError, match=r"iou_threshold 0\.33 was not matched"):
        evaluate_detections(make_truth(), [], iou_threshold=0.33)
