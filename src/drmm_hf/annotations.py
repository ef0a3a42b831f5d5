"""COCO annotations of a batch to the labels that the model is trained on, and the one cleaning of boxes.

`clean_boxes` serves whatever brings boxes: files and data sets of the Hub in `data/rows.py`, and the image processor.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .configuration_drmm import shown

MIN_SIDE = 1e-3
"""A box whose width or height inside the image is not larger than this (pixels) has no area."""
CLIP_TOLERANCE = 0.05
"""Clipping that moves an edge by no more than this (pixels) is rounding of the file."""
_MAX_AREA, _INT64 = 1e30, 2**63


class InvalidBox(ValueError):
    """A box that cannot be right; `index` is its place among those given and `reason` says what is wrong."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"box {index} {reason}")
        self.index, self.reason = index, reason


def clean_boxes(
    boxes: Any, widths: float | np.ndarray, heights: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip boxes to their images.

    Args:
        boxes: N boxes [x, y, width, height] in pixels of their images: an array (N, 4), or a sequence of sequences.
        widths, heights: of the images in pixels: one number, or one per box (N,).

    Returns:
        clipped (N, 4) float64, like `boxes` but inside the images; kept (N,) bool, false where a side inside the image
        is not above 1e-3 px; moved (N,) bool, true where clipping moved an edge by more than 0.05 px.

    Raises:
        InvalidBox: at the first box that is not four finite numbers, or has a negative side.
    """
    raw = _as_array(boxes)
    finite = np.isfinite(raw).all(axis=1)
    invalid = ~finite | (raw[:, 2:] < 0).any(axis=1)
    if invalid.any():
        index = int(invalid.argmax())
        if not finite[index]:
            raise InvalidBox(index, f"is {shown(raw[index].tolist())}, not four finite numbers [x, y, width, height]")
        raise InvalidBox(
            index,
            f"is {shown(raw[index].tolist())}, with a negative width or height: boxes are [x, y, width, height], so "
            "convert yours if they are corners [x1, y1, x2, y2]",
        )
    limits = np.stack(np.broadcast_arrays(widths, heights), axis=-1).astype(np.float64)
    with np.errstate(over="ignore"):  # a box of 1e308 pixels ends at infinity, which is clipped as well
        low, high = raw[:, :2], raw[:, :2] + raw[:, 2:]
    new_low, new_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    sides = new_high - new_low
    moved = np.maximum(new_low - low, high - new_high).max(axis=1) > CLIP_TOLERANCE
    return np.concatenate([new_low, sides], axis=1), (sides > MIN_SIDE).all(axis=1), moved


def _as_array(boxes: Any) -> np.ndarray:
    """Boxes as (N, 4) float64; those that do not come as an array of numbers are read one by one."""
    if isinstance(boxes, np.ndarray) and boxes.dtype.kind in "iuf" and boxes.shape[1:] == (4,):
        return boxes.astype(np.float64, copy=False)
    rows = np.empty((len(boxes), 4))
    for index, box in enumerate(boxes):
        try:
            values = [math.nan if isinstance(value, (str, bytes)) else float(value) for value in box]
        except (TypeError, ValueError, OverflowError):
            values = []
        if len(values) != 4:
            raise InvalidBox(index, f"is {shown(box)}, not four finite numbers [x, y, width, height]")
        rows[index] = values
    return rows


def make_labels(
    annotations: Any, old_sizes: np.ndarray, new_sizes: np.ndarray, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """The labels of a batch, as `DrmmImageProcessor.preprocess` describes them.

    The boxes of all images are cleaned at once and reach the device in one copy of each field.

    Args:
        annotations: what the user gave.
        old_sizes, new_sizes: (B, 2) (height, width) in pixels before and after the resize.
        device: of the labels.
    """
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if not isinstance(annotations, Sequence):
        raise ValueError(f"annotations is a {type(annotations).__name__}: give one dict per image, in a list.")
    if len(annotations) != len(old_sizes):
        raise ValueError(f"{len(old_sizes)} images but {len(annotations)} annotations: give one dict per image.")
    boxes, rows, places, image_ids = [], [], [], []
    for image, annotation in enumerate(annotations):
        image_id, records = _check_annotation(annotation)
        image_ids.append(image_id)
        for index, record in enumerate(records):
            places.append(f"image_id {image_id}, annotation {index}")
            rows.append((image, *_check_record(record, places[-1])))
            boxes.append(record["bbox"])
    types = {"image": np.int64, "class": np.int64, "area": np.float64, "crowd": bool}
    table = np.array(rows, dtype=list(types.items()))
    image_of, areas = table["image"], table["area"]
    height, width = old_sizes[image_of].T
    try:
        raw = _as_array(boxes)
        clipped, kept, _ = clean_boxes(raw, width, height)
    except InvalidBox as error:
        raise ValueError(f"{places[error.index]}: bbox {error.reason}. Correct the box or leave it out.") from None

    kept &= ~table["crowd"]
    # float64 until the end, so that a box on the image's border ends exactly at 0 or 1 in float32.
    sides = clipped[:, 2:]
    normalized = np.concatenate([clipped[:, :2] + sides / 2, sides], axis=1) / np.stack([width, height] * 2, axis=1)
    with np.errstate(over="ignore"):
        areas = np.where(areas < 0, np.minimum(raw[:, 2] * raw[:, 3], _MAX_AREA), areas)
    areas = areas * (new_sizes / old_sizes).prod(axis=1)[image_of]
    of_boxes = {
        "class_labels": torch.from_numpy(table["class"][kept]),
        "boxes": torch.from_numpy(normalized[kept].astype(np.float32)),
        "area": torch.from_numpy(areas[kept].astype(np.float32)),
    }
    of_images = {
        "image_id": torch.tensor(image_ids, dtype=torch.int64)[:, None],
        "orig_size": torch.from_numpy(old_sizes),
        "size": torch.from_numpy(new_sizes),
    }
    counts = np.bincount(image_of[kept], minlength=len(old_sizes)).tolist()
    columns = {name: to_device(value, device).split(counts) for name, value in of_boxes.items()}
    columns["iscrowd"] = tuple(torch.zeros_like(labels) for labels in columns["class_labels"])
    columns |= {name: to_device(value, device).unbind() for name, value in of_images.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _check_annotation(annotation: Any) -> tuple[int, Sequence[Any]]:
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
            f"image_id is {shown(annotation['image_id'])}: give a whole number, such as the image's index."
        )
    records = annotation["annotations"]
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(
            f"image_id {image_id}: annotations is a {type(records).__name__}, expected a list of dicts "
            "(an empty one if the image has no objects)."
        )
    return image_id, records


def _check_record(record: Any, place: str) -> tuple[int, float, bool]:
    """(category, area, crowd) of one COCO record; area is -1 where it is not given."""
    for name in ("bbox", "category_id"):
        if not isinstance(record, Mapping) or name not in record:
            raise ValueError(f"{place}: {name} is missing. Give a dict with bbox and category_id.")
    category = _whole_number(record["category_id"])
    if category is None or category < 0:
        raise ValueError(
            f"{place}: category_id is {shown(record['category_id'])}, expected a class index from 0. Map names or "
            "sparse ids to 0 .. num_labels - 1 first."
        )
    crowd = _whole_number(record.get("iscrowd", 0))
    if crowd not in (0, 1):
        raise ValueError(f"{place}: iscrowd is {shown(record['iscrowd'])}, expected 0 or 1.")
    area = record.get("area")
    if area is None:
        return category, -1.0, bool(crowd)
    try:
        area = float(area)
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if not 0 <= area < _MAX_AREA:
        raise ValueError(
            f"{place}: area is {shown(record['area'])}, expected a number of pixels², from 0. Leave it out if unknown."
        )
    return category, area, bool(crowd)


def _whole_number(value: Any) -> int | None:
    """The value as an integer that fits into a tensor, 3.0 as 3; None where it is no such number."""
    try:
        number = int(value)
        return number if number == value and -_INT64 <= number < _INT64 else None
    except (TypeError, ValueError, OverflowError):
        return None


def to_device(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on the device; copies to a GPU are queued, so that its work goes on meanwhile."""
    if device is None:
        return tensor
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and torch.device(device).type == "cuda")
