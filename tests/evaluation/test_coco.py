"""COCO numbers, id mapping and the checks of what goes in."""

import copy
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drmm_hf.evaluation import (
    brier_report,
    calibration_report,
    coco,
    detections_to_coco,
    evaluate_coco,
    evaluate_detections,
    localization_calibration_report,
    lrp_report,
)
from evaluation_fixtures import scene

PUBLISHED = {
    "AP": 0.505, "AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501,
    "AR1": 0.387, "AR10": 0.594, "AR100": 0.595, "ARs": 0.640, "ARm": 0.566, "ARl": 0.564,
}  # fmt: skip
DATA = os.environ.get("DRMM_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set DRMM_TEST_DATA to the folder of the real test data")
# 100 images of COCO and the results that pycocotools' authors give with their numbers
FILES = [
    Path(DATA or "") / "coco_eval" / name
    for name in ("instances_val2014_100.json", "instances_val2014_fakebbox100_results.json")
]


def make_truth() -> dict[str, Any]:
    """Two images, classes 3 and 7; a 50x50 box in each image, and a crowd region in the second."""
    columns = (
        (10, 3, [10, 10, 50, 50], 2500, 0), (20, 7, [5, 5, 50, 50], 2500, 0), (20, 7, [100, 0, 90, 90], 8100, 1),
    )  # fmt: skip
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [{"id": 10}, {"id": 20}, {"id": 30}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [{"id": n, **dict(zip(names, one, strict=True))} for n, one in enumerate(columns)],
    }


def make_result(image_id=10, category_id=3, bbox=(10, 10, 50, 50), score=0.9) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


PERFECT = [make_result(), make_result(20, 7, (5, 5, 50, 50), 0.8)]
BESIDE = make_result(bbox=(200, 200, 9, 9), score=0.95)


@pytest.fixture(params=["pycocotools", "hotcoco"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    else:
        monkeypatch.setattr(coco, "hotcoco", None)


@needs_data
@pytest.mark.usefixtures("backend")
def test_published_numbers() -> None:
    assert {name: round(value, 3) for name, value in evaluate_coco(*FILES).items()} == PUBLISHED


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 12]), st.booleans())
def test_hotcoco_gives_the_same_to_the_bit(seed: int, digits: int, texts: bool) -> None:
    pytest.importorskip("hotcoco")
    truth, results = scene(seed, num_images=4, crowd=True, digits=digits)
    # an exact box, twice, and two equal objects: ties, and IoU 1
    truth["annotations"] += [{**truth["annotations"][0], "id": 1000 + copy} for copy in (0, 1)]
    results += [{**truth["annotations"][0], "score": score} for score in (0.5, 0.5)]
    if texts:
        named = [(truth["images"], "id"), (truth["annotations"], "image_id"), (results, "image_id")]
        for record, field in ((record, field) for records, field in named for record in records):
            record[field] = f"image {record[field]}"
    options: dict[str, Any] = {"max_detections": (1, 3, 100), "per_class": True}
    fast = evaluate_coco(truth, results, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco, "hotcoco", None)
        assert evaluate_coco(truth, results, **options) == fast


def test_all_numbers_in_one_go(capsys: pytest.CaptureFixture) -> None:
    truth, results = scene(crowd=True)
    report = evaluate_detections(truth, results, per_class=True, details=True, num_bins=7)
    assert report.metrics == evaluate_coco(truth, results, per_class=True)
    expected = [
        calibration_report(truth, results, num_bins=7),
        calibration_report(truth, results, score_threshold=0.3),  # D-ECE has ten bins, whatever the ECE has
        localization_calibration_report(truth, results),
        localization_calibration_report(truth, results, iou_threshold=0),
        lrp_report(truth, results),
        brier_report(truth, results),
    ]
    measured = [*report.calibration, *report.localization, report.lrp, report.brier]
    assert [one.to_dict() for one in measured] == [one.to_dict() for one in expected]
    assert capsys.readouterr().out == ""
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert set(plain) == {"metrics", "calibration", "localization", "lrp", "brier"}
    with_parts = evaluate_detections(truth, [{**one, "objectness": 1.0} for one in results], details=True).to_dict()
    assert set(with_parts["parts"]["objectness"]) >= {"ece", "num_bins"}
    assert set(evaluate_detections(truth, results).to_dict()) == {"metrics", "calibration"}


def test_a_second_limit_of_detections() -> None:
    results = [BESIDE] * 100 + PERFECT
    report = evaluate_detections(make_truth(), results, also_at=101)
    alone, both = (evaluate_coco(make_truth(), results, max_detections=(limit,))["AP"] for limit in (100, 101))
    assert report.metrics["AP"] == alone == pytest.approx(0.5)
    assert report.metrics["AP@101"] == both > 0.5
    assert (report.metrics["AR100"], report.metrics["AR101"]) == (0.5, 1.0)
    assert report.calibration[0].num_detections == 102


@pytest.mark.usefixtures("backend")
def test_perfect_results_with_annotation_id_zero_and_input_left_alone() -> None:
    truth, results = make_truth(), copy.deepcopy(PERFECT)
    metrics = evaluate_coco(truth, results)
    assert (truth, results) == (make_truth(), PERFECT)
    assert (metrics["AP"], metrics["AR100"]) == pytest.approx((1.0, 1.0))
    assert metrics["APs"] == -1.0  # no small objects
    assert all(type(value) is float for value in metrics.values())
    for annotation in truth["annotations"][:2]:
        del annotation["area"], annotation["iscrowd"]
    assert evaluate_coco(truth, PERFECT) == metrics  # both are filled in; 2500 px is a medium object
    assert metrics["APm"] == pytest.approx(1.0)


@pytest.mark.usefixtures("backend")
def test_no_detections_give_zeros_and_no_objects_no_numbers() -> None:
    metrics = evaluate_coco(make_truth(), [])
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["APm"] == 0.0
    assert set(evaluate_coco(make_truth() | {"annotations": []}, PERFECT).values()) == {-1.0}


@pytest.mark.usefixtures("backend")
def test_crowds_overlaps_and_limits() -> None:
    def ap(*results: dict[str, Any], **options: Any) -> dict[str, float]:
        return evaluate_coco(make_truth(), list(results), **options)

    assert ap(*PERFECT, make_result(20, 7, (110, 10, 40, 40), 0.99))["AP"] == pytest.approx(1.0), "on the crowd region"
    assert ap(*PERFECT, make_result(20, 7, (300, 300, 40, 40), 0.99))["AP"] == pytest.approx(0.75), "beside it"
    loose = ap(make_result(bbox=(10, 10, 50, 35)), per_class=True)  # IoU 0.7
    assert loose["AP/cat"] == pytest.approx(0.5)  # .50, .55, .60, .65, .70 of ten
    assert (loose["AP/dog"], loose["AP50"], loose["AP75"]) == (0.0, pytest.approx(0.5), 0.0)
    limited = ap(BESIDE, *PERFECT, max_detections=(1, 2, 300))
    assert limited["AR1"] == pytest.approx(0.5)
    assert limited["AR2"] == limited["AR300"] == pytest.approx(1.0)


def test_repeated_category_names_stay_apart() -> None:
    truth = make_truth()
    truth["categories"][1]["name"] = "cat"
    metrics = evaluate_coco(truth, PERFECT[:1], per_class=True)
    assert (metrics["AP/cat (3)"], metrics["AP/cat (7)"]) == (pytest.approx(1.0), 0.0)


def test_detections_to_coco() -> None:
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
    assert detections_to_coco(detections, [20, 10], [-1, 7]) == results[:1]
    with pytest.raises(ValueError):  # noqa: PT011
        detections_to_coco(detections, [1], [3, 7])
    with pytest.raises(ValueError, match=r"image 20.*labels"):
        detections_to_coco(detections, [20, 10], [3])
    with pytest.raises(ValueError, match=r"image 20.*scales"):
        detections_to_coco(detections, [20, 10], [3, 7], with_scales=True)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": 99}, {"image_id": None}, {"category_id": 1}, {"category_id": [3]}, {"score": math.nan},
        {"score": "high"}, {"score": "0.5"}, {"score": 1e31}, {"bbox": [1, 2, math.inf, 4]}, {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, "3", 4]}, {"bbox": [9, 9, -3, 4]}, {"bbox": None}, {"bbox": [[1, 2, 3, 4]]},
    ],
)  # fmt: skip
def test_bad_results_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    rows = [make_result(), make_result() | change]
    where = re.escape(f"results[1].{next(iter(change))}")
    with pytest.raises(ValueError, match=where):
        evaluate_coco(make_truth(), rows)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([rows[0], {name: value for name, value in rows[1].items() if name not in change}]))
    with pytest.raises(ValueError, match=rf"mine\.json: {where}"):
        evaluate_coco(make_truth(), path)


@pytest.mark.parametrize("content", ["[1, 2", "[1]", json.dumps(make_truth()), "7", b"\xff\xd8\xff\xe0", "[" * 99999])
def test_files_that_hold_something_else_are_named(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"mine\.json"):
        evaluate_coco(make_truth(), path)
    path.write_bytes(json.dumps(PERFECT).encode() if "images" in str(content) else path.read_bytes())
    with pytest.raises(ValueError, match=r"mine\.json"):
        evaluate_coco(path, [])
    with pytest.raises(FileNotFoundError, match=r"other\.json"):
        evaluate_coco(tmp_path / "other.json", [])


ANNOTATION = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("section", "value", "named"),
    [
        ("categories", None, "categories"),
        ("images", [{"id": 10}, {"id": 10}], "images[1].id"),
        ("images", [{"id": 10}, {"id": "twenty"}], "images[1].id"),
        ("images", [{"id": 2**64}], "images[0].id"),
        ("images", [{"file_name": "a.jpg"}], "images[0].id"),
        ("annotations", [{**ANNOTATION, "image_id": 1}], "annotations[0].image_id"),
        ("annotations", [ANNOTATION, {**ANNOTATION, "category_id": 8}], "annotations[1].category_id"),
        ("annotations", [{**ANNOTATION, "bbox": [1, 2, -1, 4]}], "annotations[0].bbox"),
        ("annotations", [{**ANNOTATION, "bbox": [1, 2, 3, None]}], "annotations[0].bbox"),
        ("annotations", [{**ANNOTATION, "area": "big"}], "annotations[0].area"),
        ("annotations", [{**ANNOTATION, "area": -1}], "annotations[0].area"),
        ("annotations", [{**ANNOTATION, "iscrowd": 2}], "annotations[0].iscrowd"),
        ("annotations", [7], "annotations[0]"),
    ],
)
def test_bad_ground_truth_is_named(section: str, value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        evaluate_coco(make_truth() | {section: value}, [])


@pytest.mark.parametrize(
    ("measure", "options"),
    [(evaluate_coco, {"max_detections": (100, 10)}), (evaluate_detections, {"also_at": 100})],
)
def test_bad_settings(measure: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        measure(make_truth(), [], **options)


@pytest.mark.parametrize("as_written", [str, float], ids=["text", "float"])
def test_ids_of_digits_and_whole_numbers_are_the_integers_that_data_sets_read(as_written: type) -> None:
    truth = make_truth()
    for section in ("images", "categories", "annotations"):
        for entry in truth[section]:
            entry |= {field: as_written(entry[field]) for field in ("id", "image_id", "category_id") if field in entry}
    if as_written is str:  # an annotation's own id is not used
        truth["annotations"][0]["id"] = "a1"
    assert evaluate_coco(truth, PERFECT) == evaluate_coco(make_truth(), PERFECT)
