"""COCO annotations: their fields read and checked, their boxes cleaned, and the labels that a model is trained on.

`Records` and `clean_boxes` serve whatever brings boxes: the image processor, the files and tables of `data/`, and the
ground truth and results of `evaluation/`.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from .configuration_drmm import shown

MIN_SIDE = 1e-3
"""A box whose width or height inside the image is not larger than this (pixels) has no area."""
CLIP_TOLERANCE = 0.05
"""Clipping that moves an edge by no more than this (pixels) is rounding of the file."""
INT64 = 2**63
_LARGEST = 1e30
"""Pixels and scores beyond it are mistakes, and their products would not be finite."""


class Records:
    """A list of JSON objects such as COCO annotations, of which one field at a time is read and checked.

    A value that is wrong is refused by a `ValueError` that says where it is. Whole numbers such as 3.0 are integers
    everywhere, numpy's own included.

    Args:
        records: mappings.
        where: what messages call a record: the name of the list, or a function of the record's index.
    """

    def __init__(self, records: Sequence[Any], where: str | Callable[[int], str]) -> None:
        self.records = records
        self.where = where if callable(where) else lambda index: f"{where}[{index}]"
        for index, record in enumerate(records):
            if not isinstance(record, Mapping):
                raise ValueError(f"{self.where(index)} is {shown(record)}; it must be an object with fields")

    def __len__(self) -> int:
        return len(self.records)

    def values(self, field: str) -> list[Any]:
        """The field of every record as it came, None where it has none."""
        return [record.get(field) for record in self.records]

    def refuse(self, index: int, field: str, problem: str) -> NoReturn:
        """Say what is wrong with a value."""
        record = self.records[index]
        known = "" if field == "id" or record.get("id") is None else f" (id {shown(record['id'])})"
        value = "missing" if record.get(field) is None else shown(record[field])
        place = self.where(index)
        joint = "." if place.endswith("]") else ", "
        raise ValueError(f"{place}{joint}{field}{known} is {value}; {problem}")

    def require(self, good: Any, field: str, wanted: str) -> None:
        """Refuse the first value that is not `good` (n,)."""
        (bad,) = np.nonzero(~np.asarray(good, dtype=bool))
        if bad.size:
            self.refuse(int(bad[0]), field, f"it must be {wanted}: correct or remove it")

    def integers(self, field: str, wanted: str = "a whole number", low: int = -INT64, high: int = INT64) -> np.ndarray:
        """(n,) int64, each at least `low` and below `high`."""
        values = self.values(field)
        if not set(map(type, values)) <= {int}:
            values = [_whole_number(value) for value in values]
        self.require([value is not None and low <= value < high for value in values], field, wanted)
        return np.array(values, dtype=np.int64)

    def ids(self, field: str = "id", *, texts: bool = False) -> Sequence[Any]:
        """Ids of 64 bits, every one different; with `texts` all of them may be texts."""
        ids = _plain_ids(self.values(field))
        named = texts and bool(ids) and isinstance(ids[0], str)
        good = [isinstance(one, str) if named else isinstance(one, int) and -INT64 <= one < INT64 for one in ids]
        self.require(good, field, "an integer" + (" or a text, as those of the others are" if texts else ""))
        self.require_different(ids, field)
        return ids

    def ids_or_numbers(self, field: str) -> tuple[np.ndarray, bool]:
        """The ids (n,), or 0, 1, ... where they are not different integers; and whether it is the ids."""
        try:
            return np.array(self.ids(field), dtype=np.int64), True
        except ValueError:
            return np.arange(len(self)), False

    def require_different(self, values: Sequence[Any], field: str) -> None:
        """Refuse a value that an earlier record has."""
        first: dict[Any, int] = {}
        for index, value in enumerate(values):
            if first.setdefault(value, index) != index:
                self.refuse(index, field, f"{self.where(first[value])} has the same: make them different")

    def references(self, field: str) -> Sequence[Any]:
        """Ids of other records as they are compared: 7, 7.0 and "7" are the same; None for what is no id."""
        return _plain_ids(self.values(field))

    def positions(self, field: str, known: Sequence[Any], wanted: str) -> np.ndarray:
        """(n,) int64, the place among the `known` ids of the one that each record refers to."""
        place = {value: index for index, value in enumerate(known)}
        ids = self.references(field)
        found = np.array([-1 if value is None else place.get(value, -1) for value in ids], dtype=np.int64)
        self.require(found >= 0, field, wanted)
        return found

    def texts(self, field: str) -> list[str]:
        """Texts, none of them empty."""
        values = self.values(field)
        self.require([isinstance(v, str) and bool(v.strip()) for v in values], field, "a text that is not empty")
        return values

    def flags(self, field: str) -> np.ndarray:
        """(n,) bool of 0 and 1, or true and false; false where there is none."""
        values = [
            0 if value is None else int(value) if isinstance(value, bool | np.bool_) else _whole_number(value)
            for value in self.values(field)
        ]
        self.require([value in (0, 1) for value in values], field, "0 or 1")
        return np.array(values, dtype=bool)

    def numbers(
        self,
        field: str,
        wanted: str,
        low: float = -_LARGEST,
        high: float = _LARGEST,
        *,
        width: int | None = None,
        missing: bool = False,
        values: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """(n,) float64 from `low` to `high`, or (n, width) of such; with `missing` NaN where there is none.

        `values` replace those of the field.
        """
        values = self.values(field) if values is None else values
        numbers = _as_numbers(values, width)
        good = (numbers >= low) & (numbers <= high)
        if missing:
            good |= np.array([value is None for value in values], dtype=bool)
        self.require(good if width is None else np.all(good, axis=1), field, wanted)
        return numbers

    def areas(self) -> np.ndarray:
        """(n,) float64 of `area` in px², NaN where there is none."""
        return self.numbers("area", "a number of square pixels, 0 or more", 0.0, missing=True)

    def boxes(self) -> np.ndarray:
        """(n, 4) float64 of `bbox`, `[x, y, width, height]` in pixels, or around the polygons of `segmentation`."""
        values = self.values("bbox")
        for index, value in enumerate(values):
            if value is None or (isinstance(value, list) and not value):
                values[index] = _around(self.records[index].get("segmentation"))
        boxes = self.numbers("bbox", "four finite numbers [x, y, width, height]", width=4, values=values)
        self.require(
            (boxes[:, 2:] >= 0).all(axis=1),
            "bbox",
            "[x, y, width, height] without a negative side (convert yours if they are corners [x1, y1, x2, y2])",
        )
        return boxes


def _whole_number(value: Any) -> int | None:
    """The integer of 64 bits that a value is, 3.0 included; None where it is none."""
    dimensions: int = getattr(value, "ndim", 0)
    if isinstance(value, bool | np.bool_ | str | bytes) or dimensions:
        return None
    try:
        number = int(value)
        return number if number == value and -INT64 <= number < INT64 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _plain_ids(values: Sequence[Any]) -> Sequence[Any]:
    """Ids as they are compared: 7, 7.0 and "7" are the same; None for what is no id."""
    if set(map(type, values)) <= {int}:
        return values
    plain: list[Any] = []
    for value in values:
        digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
        plain.append(int(value) if digits else value if isinstance(value, str) else _whole_number(value))
    return plain


def _as_numbers(values: Sequence[Any], width: int | None) -> np.ndarray:
    """(n,) or (n, width) float64, NaN for what is no number, and for what does not hold `width` of them."""
    shape = (len(values),) if width is None else (len(values), width)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        array = np.array(values)
        if array.shape == shape and array.dtype.kind in "iuf":
            return array.astype(np.float64, copy=False)
    numbers = np.full(shape, np.nan)
    for index, value in enumerate(values):
        with contextlib.suppress(TypeError, ValueError):  # no sequence, or of another length
            numbers[index] = _number(value) if width is None else np.array([_number(v) for v in value]).reshape(width)
    return numbers


def _around(polygons: Any) -> list[float] | None:
    """The box around polygons `[[x1, y1, x2, y2, ...], ...]`, or around one; None where it is anything else."""
    if not isinstance(polygons, list) or not polygons:
        return None
    polygons = polygons if all(isinstance(polygon, list) for polygon in polygons) else [polygons]
    points = np.array([_number(value) for polygon in polygons for value in polygon])
    if len(points) < 6 or len(points) % 2:
        return None
    low, high = points.reshape(-1, 2).min(axis=0), points.reshape(-1, 2).max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_ | str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def clean_boxes(
    boxes: np.ndarray, widths: float | np.ndarray, heights: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip boxes to their images.

    Args:
        boxes: (N, 4) [x, y, width, height] in pixels of their images, finite and without negative sides.
        widths, heights: of the images in pixels: one number, or one per box (N,).

    Returns:
        clipped (N, 4) float64, like `boxes` but inside the images; kept (N,) bool, false where a side inside the image
        is not above 1e-3 px; moved (N,) bool, true where clipping moved an edge by more than 0.05 px.
    """
    limits = np.stack(np.broadcast_arrays(widths, heights), axis=-1).astype(np.float64)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    new_low, new_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    sides = new_high - new_low
    moved = np.maximum(new_low - low, high - new_high).max(axis=1) > CLIP_TOLERANCE
    return np.concatenate([new_low, sides], axis=1), (sides > MIN_SIDE).all(axis=1), moved


ARE_THEY_CORNERS = "Most boxes leave their image: are they corners [x1, y1, x2, y2] instead of [x, y, width, height]?"


def frame_problem(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, enough: int = 1) -> str | None:
    """What is wrong with boxes that are in no pixels of their images, or are corners; None where nothing seems to be.

    Args:
        boxes: (N, 4) [x, y, width, height], as they came.
        widths, heights: (N,) of their images in pixels.
        enough: fewer boxes may look like corners by chance.
    """
    if not len(boxes):
        return None
    # A sliver that a crop leaves of an object begins at 0 or at a whole pixel.
    if boxes.max() <= 1 and (boxes[:, :2] % 1).any() and min(widths.min(), heights.min()) > 2:
        return (
            "no number of any box is above 1, so they seem to be fractions of their images; multiply x and width by "
            "the image's width, y and height by its height"
        )
    sizes = np.stack([widths, heights], axis=1)
    leave = (boxes[:, :2] + boxes[:, 2:] > 1.1 * sizes).any(axis=1)
    if (
        len(boxes) >= enough
        and leave.mean() > 0.5
        and (boxes[:, 2:] > boxes[:, :2]).all()
        and (boxes[:, 2:] <= sizes + 1).all()
    ):
        return f"{ARE_THEY_CORNERS} All would fit as corners; convert them to [x1, y1, x2 - x1, y2 - y1]"
    return None


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
    of_images = Records(annotations, "annotations")
    image_ids = of_images.integers("image_id", "a whole number, such as the image's index")
    lists = of_images.values("annotations")
    of_images.require(
        [isinstance(records, Sequence) and not isinstance(records, str) for records in lists],
        "annotations",
        'a list of dicts (empty if the image has no objects), as in {"image_id": 7, "annotations": [record, ...]}',
    )
    image_of = np.repeat(np.arange(len(lists)), [len(records) for records in lists])
    places = [
        (image, number)
        for image, records in zip(image_ids.tolist(), lists, strict=True)
        for number in range(len(records))
    ]
    records = Records(
        [record for records in lists for record in records],
        lambda index: "image_id {}, annotations[{}]".format(*places[index]),
    )
    raw = records.boxes()
    classes = records.integers(
        "category_id", "a class index from 0 (map names or sparse ids to 0 .. num_labels - 1 first)", 0
    )
    height, width = old_sizes[image_of].T
    if problem := frame_problem(raw, width, height, enough=4):
        raise ValueError(f"annotations: {problem}.")
    clipped, kept, _ = clean_boxes(raw, width, height)
    kept &= ~records.flags("iscrowd")
    # float64 until the end, so that a box on the image's border ends exactly at 0 or 1 in float32.
    sides = clipped[:, 2:]
    normalized = np.concatenate([clipped[:, :2] + sides / 2, sides], axis=1) / np.stack([width, height] * 2, axis=1)
    areas = records.areas()
    areas = np.where(np.isnan(areas), np.minimum(raw[:, 2] * raw[:, 3], _LARGEST), areas)
    areas = areas * (new_sizes / old_sizes).prod(axis=1)[image_of]
    of_boxes = {
        "class_labels": torch.from_numpy(classes[kept]),
        "boxes": torch.from_numpy(normalized[kept].astype(np.float32)),
        "area": torch.from_numpy(areas[kept].astype(np.float32)),
    }
    of_each = {
        "image_id": torch.from_numpy(image_ids)[:, None],
        "orig_size": torch.from_numpy(old_sizes),
        "size": torch.from_numpy(new_sizes),
    }
    counts = np.bincount(image_of[kept], minlength=len(old_sizes)).tolist()
    columns = {name: to_device(value, device).split(counts) for name, value in of_boxes.items()}
    columns["iscrowd"] = tuple(torch.zeros_like(labels) for labels in columns["class_labels"])
    columns |= {name: to_device(value, device).unbind() for name, value in of_each.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def to_device(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on the device; copies to a GPU are queued, so that its work goes on meanwhile."""
    if device is None:
        return tensor
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and torch.device(device).type == "cuda")
