"""Labels from COCO annotations: what is left out, what is filled in, and every error message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf.annotations_drmm import make_label
from drmm_hf.image_processing_drmm import DrmmImageProcessor

IMAGE = torch.zeros(3, 50, 40)


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


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"category_id": 0}, "image_id 7, annotation 1: bbox is missing"),
        ({"bbox": [1, 2, 3, 4]}, "image_id 7, annotation 1: category_id is missing"),
        ("box", "image_id 7, annotation 1: bbox is missing"),
        (
            {"bbox": [1, 2, float("nan"), 4], "category_id": 0},
            "annotation 1: bbox is .*nan.*four finite numbers",
        ),
        ({"bbox": [1, 2, 3], "category_id": 0}, "annotation 1: bbox is .*four finite numbers"),
        ({"bbox": None, "category_id": 0}, "annotation 1: bbox is None, expected four finite numbers"),
        (
            {"bbox": [9, 2, -3, 4], "category_id": 0},
            "annotation 1: bbox is .*negative width or height.*convert",
        ),
        (
            {"bbox": [1, 2, 3, 4], "category_id": -1},
            "annotation 1: category_id is -1.*Map names or sparse ids",
        ),
        ({"bbox": [1, 2, 3, 4], "category_id": "cat"}, "annotation 1: category_id is 'cat'.*Map names"),
        ({"bbox": [1, 2, 3, 4], "category_id": 0, "area": "big"}, "annotation 1: area is 'big'"),
    ],
)
def test_wrong_record(record: Any, message: str) -> None:
    annotation = annotation_of([1, 2, 3, 4])
    annotation["annotations"].append(record)
    with pytest.raises(ValueError, match=message):
        make_label(annotation, IMAGE)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"annotations": []}, r"must be a dict with image_id and annotations .*not \['annotations'\]"),
        (
            [[{"bbox": [1, 2, 3, 4]}]],
            "must be a dict with image_id and annotations .*not list. Wrap COCO records",
        ),
        ({"image_id": "a.jpg", "annotations": []}, "image_id is 'a.jpg': give a whole number"),
        ({"image_id": 3, "annotations": {"bbox": []}}, "image_id 3: annotations is a dict, expected a list"),
    ],
)
def test_wrong_annotation(annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_label(annotation, IMAGE)


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
