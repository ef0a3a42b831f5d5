"""The `objects` column of all images as flat arrays, each value checked and named by its row where it is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .coco import ordered_labels

OBJECT_FIELDS = ("id", "bbox", "category", "area", "iscrowd")
SCHEMA = (
    "`image` and `objects` with `bbox` ([x, y, width, height] in pixels) and `category`; `image_id`, `width`, "
    "`height`, `objects.id`, `objects.area` and `objects.iscrowd` may be left out"
)
RENAME = "rename the columns, or give `columns=` to `objects_dataset`"
_MAX_CLASSES = 10_000
"""Integer categories above this are category ids or a mistake, not labels 0..C-1."""


@dataclass(frozen=True)
class ObjectFields:
    """The boxes of all rows one after the other.

    `rows` (M,) and `positions` (M,) are each box's row and place in it; `fields[name]` has M values; `names` are the
    data set's names of the fields.
    """

    source: str
    rows: np.ndarray
    positions: np.ndarray
    fields: dict[str, pa.Array]
    names: dict[str, str]

    def fail_at(self, field: str, bad: np.ndarray, wanted: str) -> None:
        """Raise for the first of the boxes where `bad` (M,) is true."""
        if not bad.any():
            return
        index = int(bad.argmax())
        shown = repr(self.fields[field][index].as_py())
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ValueError(
            f"{self.source}: objects.{self.names[field]} of row {self.rows[index]} (box {self.positions[index]}) is "
            f"{shown}; it must be {wanted}: correct or remove it"
        )

    def fail_type(self, field: str, wanted: str) -> NoReturn:
        kind = self.fields[field].type
        raise ValueError(f"{self.source}: objects.{self.names[field]} are {kind}; they must be {wanted}: convert them")


def flat_objects(column: pa.Array, names: Mapping[str, str], name: str) -> ObjectFields:
    """The boxes of the `objects` column, a dict of lists or a list of dicts; `names` has the data set's own names."""
    kind = column.type
    if pa.types.is_struct(kind):  # a dict of lists
        present = {field.name: pc.struct_field(column, field.name) for field in kind}
    elif _is_list(kind) and pa.types.is_struct(kind.value_type):
        flat = pc.list_flatten(column)
        present = {field.name: pc.struct_field(flat, field.name) for field in kind.value_type}
    elif _is_list(kind) and pa.types.is_null(kind.value_type):
        raise ValueError(f"{name}: `{names['objects']}` is empty in every row; a data set needs boxes")
    else:
        raise ValueError(f"{name}: `{names['objects']}` is {kind}; it must be a dict of lists or a list of dicts")

    names = dict(names)
    if names["category"] not in present and names["category"] == "category" and "categories" in present:
        names["category"] = "categories"  # as in the documentation of imagefolder
    missing = [names[field] for field in ("bbox", "category") if names[field] not in present]
    if missing:
        raise ValueError(
            f"{name}: `{names['objects']}` has no {missing}, only {sorted(present)}; needed are {SCHEMA}; {RENAME}"
        )
    fields = {field: present[names[field]] for field in OBJECT_FIELDS if names[field] in present}
    if pa.types.is_struct(kind):
        counts = _list_lengths(fields["bbox"], names["bbox"], name)
        for field, values in fields.items():
            others = _list_lengths(values, names[field], name)
            if (others != counts).any():
                row = int((others != counts).argmax())
                raise ValueError(
                    f"{name}: objects.{names[field]} of row {row} has {others[row]} entries, but "
                    f"objects.{names['bbox']} has {counts[row]}; give every box one, or leave the field out"
                )
            fields[field] = pc.list_flatten(values)
    else:
        counts = pc.list_value_length(column).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return ObjectFields(name, rows, np.arange(len(rows)) - first[rows], fields, names)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _list_lengths(column: pa.Array, field: str, name: str) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64)
    if not _is_list(column.type):
        raise ValueError(f"{name}: objects.{field} is {column.type}; it must be a list with one entry a box")
    return pc.list_value_length(column).fill_null(0).to_numpy()


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def boxes_of(objects: ObjectFields) -> np.ndarray:
    """(M, 4) float64 xywh, finite, sides not negative."""
    column = objects.fields["bbox"]
    if not len(column):
        return np.zeros((0, 4))
    wanted = "four numbers [x, y, width, height]"
    if not _is_list(column.type) or not is_number(column.type.value_type):
        objects.fail_type("bbox", f"lists of {wanted}")
    objects.fail_at("bbox", pc.list_value_length(column).fill_null(0).to_numpy() != 4, wanted)
    boxes = pc.list_flatten(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, 4)
    objects.fail_at("bbox", ~np.isfinite(boxes).all(axis=1), "four finite numbers (no NaN, no infinity)")
    objects.fail_at("bbox", (boxes[:, 2:] < 0).any(axis=1), f"{wanted} with width and height not negative")
    return boxes


def check_absolute(boxes: np.ndarray, widths: np.ndarray, name: str) -> None:
    """Refuse boxes (M, 4) that are fractions of their images."""
    if len(boxes) and boxes.max() <= 1 and boxes.max() > 0 and widths.min() > 2:
        raise ValueError(
            f"{name}: no objects.bbox has a value above 1, so they seem relative to the image; multiply them by its "
            "width and height in pixels"
        )


def class_label_names(feature: Any, field: str) -> list[str] | None:
    """Names of the ClassLabel of a field of `objects`, inside lists in whichever order."""
    for _ in range(3):
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            feature = feature.feature
        elif isinstance(feature, Mapping):
            feature = feature[field]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def categories_of(
    objects: ObjectFields, class_names: list[str] | None, id2label: Mapping[int, str] | None
) -> tuple[np.ndarray, list[str]]:
    """Category (M,) of every box and the names that it points into."""
    column = objects.fields["category"]
    if pa.types.is_null(column.type) and not len(column):
        column = column.cast(pa.int64())
    objects.fail_at("category", np.asarray(column.is_null()), "the category of the box")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
        objects.fail_at("category", np.array([not text.strip() for text in texts], dtype=bool), "a text not empty")
        names = sorted(set(texts))
        position = {text: index for index, text in enumerate(names)}
        return np.array([position[text] for text in texts], dtype=np.int64), names
    if not pa.types.is_integer(column.type):
        objects.fail_type("category", "ClassLabel, texts or integers")
    values = column.to_numpy()
    objects.fail_at("category", values < 0, "0 or more")
    limit = len(class_names or id2label or ()) or _MAX_CLASSES
    known_from = "ClassLabel" if class_names else "id2label" if id2label else "integers without names"
    objects.fail_at("category", values >= limit, f"a label below {limit} ({known_from})")
    if class_names is not None:
        return values.astype(np.int64), class_names
    if id2label is not None:
        return values.astype(np.int64), ordered_labels(id2label)
    if not len(values):
        raise ValueError(f"{objects.source}: has no boxes to tell the classes from; give `id2label`")
    return values.astype(np.int64), [f"class_{label}" for label in range(int(values.max()) + 1)]


def areas_of(objects: ObjectFields) -> np.ndarray:
    """(M,) float64 px², NaN where not given."""
    column = objects.fields.get("area")
    if column is None or pa.types.is_null(column.type):
        return np.full(len(objects.rows), np.nan)
    if not is_number(column.type):
        objects.fail_type("area", "numbers of square pixels")
    areas = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    objects.fail_at("area", (areas < 0) | (areas >= 1e30), "a number of pixels, 0 or more")
    return areas


def crowd_flags(objects: ObjectFields) -> np.ndarray:
    """(M,) int8, 0 where not given."""
    column = objects.fields.get("iscrowd")
    if column is None or pa.types.is_null(column.type):
        return np.zeros(len(objects.rows), dtype=np.int8)
    if not pa.types.is_boolean(column.type) and not is_number(column.type):
        objects.fail_type("iscrowd", "0 or 1")
    flags = column.cast(pa.float64(), safe=False).fill_null(0).to_numpy()
    objects.fail_at("iscrowd", (flags != 0) & (flags != 1), "0 or 1")
    return flags.astype(np.int8)


def unique_ids(column: pa.Array | pa.ChunkedArray | None) -> np.ndarray | None:
    """The column as int64, or None where it is no column of different integers."""
    if column is None or column.null_count or not pa.types.is_integer(column.type):
        return None
    values = column.to_numpy()
    if len(np.unique(values)) != len(values) or (values.dtype == np.uint64 and (values >= 2**63).any()):
        return None
    return values.astype(np.int64)
