"""Labels from COCO annotations, and the cleaning of boxes: what is left out, filled in, and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf.annotations import clean_boxes
from drmm_hf.image_processing_drmm import DrmmImageProcessor

IMAGE = torch.zeros(3, 50, 40)


def make_label(annotation: Any, image: torch.Tensor) -> Any:
    return DrmmImageProcessor(do_resize=False)(image, annotation, return_tensors="pt")["labels"][0]


def annotation_of(*boxes: list[float], **fields: Any) -> dict[str, Any]:
    """An image's annotation; `fields` go into every record."""
    return {"image_id": 7, "annotations": [{"bbox": box, "category_id": 1, **fields} for box in boxes]}


def test_crowd_and_empty_boxes_are_left_out_and_others_clipped() -> None:
    annotation = annotation_of([-10, 0, 20, 25], [0, 0, 0, 10], [100, 100, 5, 5])
    annotation["annotations"] += annotation_of([1, 1, 5, 5], iscrowd=1)["annotations"]
    label = make_label(annotation, IMAGE)
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.125, 0.25, 0.25, 0.5]]))
    assert len(label["class_labels"]) == len(label["area"]) == len(label["iscrowd"]) == 1


def test_box_that_fills_the_image_ends_at_its_border() -> None:
    label = make_label(annotation_of([0, 0, 4999, 3333]), torch.zeros(3, 3333, 4999))
    assert label["boxes"].tolist() == [[0.5, 0.5, 1, 1]]


def test_image_without_objects() -> None:
    label = make_label(annotation_of(), IMAGE)
    assert label["boxes"].shape == (0, 4)
    assert label["class_labels"].shape == (0,)
    assert label["class_labels"].dtype == torch.int64
    assert label["orig_size"].tolist() == [50, 40]


def test_area_may_be_missing_and_numpy_is_fine() -> None:
    record = {"bbox": np.array([0, 0, 10, 20]), "category_id": np.int64(2)}
    label = make_label({"image_id": np.int64(1), "annotations": [record]}, IMAGE)
    assert label["area"].tolist() == [200]
    assert label["class_labels"].tolist() == [2]


def test_given_area_is_kept() -> None:
    assert make_label(annotation_of([0, 0, 10, 20], area=150), IMAGE)["area"].tolist() == [150]


@pytest.mark.parametrize("crowd", [0, 1, True, 1.0, np.int64(1), np.bool_(False), None, np.float32(1)])
def test_whole_numbers_may_be_floats(crowd: Any) -> None:
    records = [{"bbox": [0, 0, 10, 20], "category_id": 2.0, "iscrowd": crowd}]
    label = make_label({"image_id": 7.0, "annotations": records}, IMAGE)
    assert label["image_id"].tolist() == [7]
    assert label["class_labels"].tolist() == ([] if crowd else [2])


def test_fractions_and_corners_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions"):
        make_label(annotation_of([0.1, 0.2, 0.5, 0.5]), IMAGE)
    with pytest.raises(ValueError, match="corners"):
        make_label(annotation_of(*([20, 30, 35 + shift, 40 + shift] for shift in range(4))), IMAGE)
    slivers = annotation_of([0, 0, 0.5, 0.7], [0, 0, 1, 1])  # what a crop leaves
    assert len(make_label(slivers, IMAGE)["boxes"]) == 2


def test_box_around_polygons() -> None:
    record = {"segmentation": [[1, 2, 5, 2, 5, 8], [3, 1, 9, 1, 9, 4]], "category_id": 0}
    label = make_label({"image_id": 1, "annotations": [record, {**record, "bbox": []}]}, IMAGE)
    assert label["area"].tolist() == [56, 56]
    for wrong in ({"counts": "x", "size": [1, 1]}, [], [[1, 2, 3, 4]], [1, 2, "3", 4, 5, 6]):
        with pytest.raises(ValueError, match="bbox"):
            make_label({"image_id": 1, "annotations": [{**record, "segmentation": wrong}]}, IMAGE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("bbox", box) for box in ([1, 2, float("nan"), 4], [1, 2, 3], None, [9, 2, -3, 4], ["1", 2, 3, 4], "abcd")),
        *(("bbox", box) for box in ([1, 2, 10**400, 4], [1, 2, float("inf"), 4], {}, [[1], [2], [3], [4]])),
        *(("category_id", category) for category in (-1, "cat", "3", 1.5, None, float("nan"), 2**63, [])),
        *(("area", area) for area in ("big", -1, float("inf"), float("nan"), 10**400, [])),
        *(("iscrowd", crowd) for crowd in (2, -1, 0.5, "0", "false", float("nan"), [0])),
        *(("image_id", image_id) for image_id in ("a.jpg", 1.5, None, 2**70, "x" * 5000)),
        *(("annotations", records) for records in ({"bbox": []}, "abc", 3, None, ["box"], [{"category_id": 0}], [[]])),
        ("annotations", [{"bbox": [1, 2, 3, 4]}]),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    annotation = annotation_of([1, 2, 3, 4], [5, 6, 7, 8])
    if field in annotation:
        annotation[field] = value
    else:
        annotation["annotations"][1][field] = value
    with pytest.raises(ValueError, match=field if field in annotation else r"image_id 7, annotations\[1\]"):
        make_label(annotation, IMAGE)


@pytest.mark.parametrize("annotation", [{"annotations": []}, [[{"bbox": [1, 2, 3, 4]}]], 7, "a", [None], [], [{}, {}]])
def test_what_is_no_annotation(annotation: Any) -> None:
    with pytest.raises(ValueError, match="annotation"):
        make_label(annotation, IMAGE)


def test_boxes_are_clipped_to_their_images() -> None:
    boxes = np.array([[-1, 2, 5, 5], [8, 1, 9, 3], [0, 0, 10.04, 3], [50, 0, 5, 5], [2, 2, 0, 4], [1, 1, 1e29, 1e29]])
    clipped, kept, moved = clean_boxes(boxes, 10, np.array([20.0, 20, 20, 20, 20, 30]))
    assert clipped.dtype == np.float64
    assert clipped.tolist() == [
        *([0, 2, 4, 5], [8, 1, 2, 3], [0, 0, 10, 3], [10, 0, 0, 5], [2, 2, 0, 4], [1, 1, 9, 29]),
    ]
    assert kept.tolist() == [True, True, True, False, False, True]
    assert moved.tolist() == [True, True, False, True, False, True]  # 0.04 px are rounding of the file
    assert [part.shape for part in clean_boxes(np.zeros((0, 4)), 10, 20)] == [(0, 4), (0,), (0,)]


def test_real_images(coco: Path) -> None:
    data = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    index_of = {category["id"]: index for index, category in enumerate(data["categories"])}
    files = {path.name: path for path in coco.rglob("*.jpg")}
    entries = data["images"][:4]
    records = [[r for r in data["annotations"] if r["image_id"] == entry["id"]] for entry in entries]
    annotations = [
        {
            "image_id": entry["id"],
            "annotations": [{**r, "category_id": index_of[r["category_id"]]} for r in of_image],
        }
        for entry, of_image in zip(entries, records, strict=True)
    ]
    images = [Image.open(files[entry["file_name"]]) for entry in entries]
    batch = DrmmImageProcessor(size={"shortest_edge": 120, "longest_edge": 200})(images, annotations)
    for label, entry, of_image in zip(batch["labels"], entries, records, strict=True):
        boxes = [r["bbox"] for r in of_image if not r["iscrowd"]]
        expected = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        scale = torch.tensor([entry["width"], entry["height"]] * 2)
        found = label["boxes"].double() * scale
        found[:, :2] -= found[:, 2:] / 2
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
        assert label["orig_size"].tolist() == [entry["height"], entry["width"]]
