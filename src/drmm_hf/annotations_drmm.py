"""COCO annotations of one image, checked and turned into the label that the model trains on."""

import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision.ops import box_convert, clip_boxes_to_image

_INT64 = 2**63
_MAX_AREA = 1e30  # float32 holds it
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 40


def shown(value: Any) -> str:
    """What a message shows of a value: its repr, shortened where it is long or deep."""
    return _SHORT.repr(value)


def make_label(annotation: Any, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The label of one image.

    Args:
        annotation: `{"image_id": int, "annotations": [record, ...]}`; a record has `bbox` [x, y, w, h] in
            pixels, `category_id` and, if known, `area` (pixels²; w·h without it) and `iscrowd`.
        image: (C, H, W), the image before any resizing; gives the size and the device.

    Returns:
        image_id (1,) int64, class_labels (N,) int64, boxes (N, 4) float32 cxcywh normalized by (W, H),
        area (N,) float32 in pixels², iscrowd (N,) zeros, orig_size (2,) int64 (H, W). Boxes are clipped to
        the image. Crowd regions and boxes that are empty after clipping are left out, as mmdetection does.

    Raises:
        ValueError: naming the image_id, the annotation's index, the field and the fix.
    """
    height, width = image.shape[-2:]
    image_id, records = _check_image(annotation)
    boxes, classes, areas = [], [], []
    for index, record in enumerate(records):
        box, category, area, crowd = _check_record(record, f"image_id {image_id}, annotation {index}")
        if not crowd:
            boxes.append(box)
            classes.append(category)
            areas.append(area)
    # float64 until the end, so that a box on the image's border ends exactly at 0 or 1 in float32.
    xyxy = box_convert(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), "xywh", "xyxy")
    xyxy = clip_boxes_to_image(xyxy, (height, width))
    kept = (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)
    normalized = box_convert(xyxy[kept], "xyxy", "cxcywh") / xyxy.new_tensor([width, height, width, height])
    class_labels = torch.tensor(classes, dtype=torch.int64)[kept]
    label = {
        "image_id": torch.tensor([image_id], dtype=torch.int64),
        "class_labels": class_labels,
        "boxes": normalized.float(),
        "area": torch.tensor(areas, dtype=torch.float32)[kept],
        "iscrowd": torch.zeros_like(class_labels),
        "orig_size": torch.tensor([height, width], dtype=torch.int64),
    }
    return {name: value.to(image.device) for name, value in label.items()}


def _check_image(annotation: Any) -> tuple[int, Sequence[Any]]:
    """(image_id, records) of one image's annotation."""
    if not isinstance(annotation, Mapping) or not {"image_id", "annotations"} <= annotation.keys():
        found = sorted(map(str, annotation)) if isinstance(annotation, Mapping) else type(annotation).__name__
        raise ValueError(
            f"the annotation of an image must be a dict with image_id and annotations (a list), not {found}. "
            'Wrap COCO records as {"image_id": 7, "annotations": [record, ...]}.'
        )
    image_id = _whole_number(annotation["image_id"])
    if image_id is None:
        raise ValueError(
            f"image_id is {shown(annotation['image_id'])}: give a whole number, for example the image's index."
        )
    records = annotation["annotations"]
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(
            f"image_id {image_id}: annotations is a {type(records).__name__}, expected a list of dicts "
            "(an empty one if the image has no objects)."
        )
    return image_id, records


def _whole_number(value: Any) -> int | None:
    """The value as an integer that fits into a tensor; None where it is no such number."""
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if -_INT64 <= number < _INT64 else None


def _check_record(record: Any, where: str) -> tuple[list[float], int, float, bool]:
    """(box xywh, category, area, crowd) of one COCO record."""
    for name in ("bbox", "category_id"):
        if not isinstance(record, Mapping) or name not in record:
            raise ValueError(f"{where}: {name} is missing. Give a dict with bbox and category_id.")
    box = _check_box(record["bbox"], where)
    category = _whole_number(record["category_id"])
    if category is None or category < 0:
        raise ValueError(
            f"{where}: category_id is {shown(record['category_id'])}, expected a class index from 0. Map names or "
            "sparse ids to 0 .. num_labels - 1 first."
        )
    area = record.get("area")
    try:
        area = box[2] * box[3] if area is None else float(area)
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if not 0 <= area < _MAX_AREA:
        raise ValueError(
            f"{where}: area is {shown(record['area'])}, expected a number of pixels², from 0. Leave it out if unknown."
        )
    return box, category, area, bool(record.get("iscrowd", 0))


def _check_box(value: Any, where: str) -> list[float]:
    try:
        box = [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(
            f"{where}: bbox is {shown(value)}, expected four finite numbers [x, y, width, height]. "
            "Correct the box or leave it out."
        )
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where}: bbox is {shown(value)}, with a negative width or height. COCO boxes are [x, y, width, "
            "height]: if yours are corners [x1, y1, x2, y2], convert them."
        )
    return box
