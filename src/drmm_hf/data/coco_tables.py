"""A COCO json file as checked columns. Every problem is one ValueError that names file, field and fix."""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..annotations_drmm import shown
from .coco_layout import check_file_names

_INT64 = 2**63
_INT32 = 2**31


@dataclass(frozen=True)
class CocoTables:
    """Columns of a COCO json file: I images, C categories in ascending id order, M annotations in file order.

    `image_index` (M,) and `category_index` (M,) point into the images and categories; `boxes` (M, 4) float64
    are `[x, y, width, height]` in pixels of the stored image, as in the file; `areas` (M,) is NaN where not
    given.
    """

    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    file_names: list[str]
    category_ids: list[int]
    category_names: list[str]
    annotation_ids: np.ndarray
    image_index: np.ndarray
    category_index: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Millions of new objects, none of them garbage, would have the collector walk through all of them many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collection_paused()
def read_coco_tables(path: Path) -> CocoTables:
    """Read and check a COCO instances file.

    Raises:
        ValueError: the file is not JSON, not COCO, or holds a value that cannot be right.
    """
    data = _read_json(path)
    images, annotations, categories = _sections(data, path)
    image_ids = _unique_ints(images, "images", "id", path)
    widths = _ints(images, "images", "width", path)
    heights = _ints(images, "images", "height", path)
    for field, values in (("width", widths), ("height", heights)):
        bad = _first(values, lambda v: not 0 < v < _INT32)
        if bad is not None:
            _fail(path, f"images[{bad}].{field}", values[bad], "a positive number of pixels")
    file_names = _texts(images, "images", "file_name", path)
    check_file_names(file_names, path)

    category_ids = _unique_ints(categories, "categories", "id", path)
    category_names = _texts(categories, "categories", "name", path)
    _check_unique(category_names, "categories", "name", path)
    order = sorted(range(len(category_ids)), key=category_ids.__getitem__)
    category_ids = [category_ids[i] for i in order]

    return CocoTables(
        image_ids=np.array(image_ids, dtype=np.int64),
        widths=np.array(widths, dtype=np.int32),
        heights=np.array(heights, dtype=np.int32),
        file_names=file_names,
        category_ids=category_ids,
        category_names=[category_names[i] for i in order],
        annotation_ids=np.array(_unique_ints(annotations, "annotations", "id", path), dtype=np.int64),
        image_index=_references(annotations, "image_id", image_ids, "images", path),
        category_index=_references(annotations, "category_id", category_ids, "categories", path),
        boxes=_boxes(annotations, path),
        areas=_areas(annotations, path),
        is_crowd=_crowd_flags(annotations, path),
    )


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
        return json.loads(content)
    except json.JSONDecodeError as error:
        truncated = error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip()) - 1
        what = "ends early (truncated?)" if truncated else "is not valid JSON"
        raise ValueError(
            f"{path}: {what} at line {error.lineno}, column {error.colno} ({error.msg}); export or download it again"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid JSON ({type(error).__name__}); export or download it again") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def _sections(data: Any, path: Path) -> tuple[list[Any], list[Any], list[Any]]:
    if isinstance(data, list):
        is_results = bool(data) and isinstance(data[0], dict) and "score" in data[0]
        what = "looks like a file of detection results" if is_results else "is a list"
        raise ValueError(
            f"{path}: {what}, not COCO annotations; give the instances file, an object with `images`, "
            "`annotations` and `categories`"
        )
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}, not COCO annotations; give an instances file")
    for name in ("images", "annotations", "categories"):
        if name not in data:
            hint = " (a test file without boxes?)" if name == "annotations" else ""
            raise ValueError(f"{path}: `{name}` is missing{hint}; a COCO instances file must have this list")
        if not isinstance(data[name], list):
            raise ValueError(f"{path}: `{name}` is a {type(data[name]).__name__}; it must be a list of objects")
    for name in ("images", "categories"):
        if not data[name]:
            raise ValueError(f"{path}: `{name}` is empty; a data set needs at least one")
    return data["images"], data["annotations"], data["categories"]


def _boxes(annotations: list[Any], path: Path) -> np.ndarray:
    values = _column(annotations, "annotations", "bbox", path)
    if not values:
        return np.zeros((0, 4))
    try:
        boxes = np.array(values)
    except (ValueError, OverflowError):
        boxes = np.empty(0, dtype=object)
    # Nearly every file takes this path; the loop below only finds out which annotation is wrong.
    if boxes.dtype.kind in "iuf" and boxes.shape == (len(values), 4):
        boxes = boxes.astype(np.float64)
        if np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all():
            return boxes
    for index, box in enumerate(values):
        where = f"annotations[{index}].bbox"
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            _fail(path, where, box, "four numbers [x, y, width, height]", annotations[index])
        if not all(abs(v) < float("inf") for v in box):
            _fail(path, where, box, "finite (no NaN, no infinity)", annotations[index])
        if min(box[2:]) < 0:
            _fail(
                path,
                where,
                box,
                "[x, y, width, height] with width and height not negative",
                annotations[index],
            )
    return np.array([[float(min(max(v, -1e300), 1e300)) for v in box] for box in values])


def _areas(annotations: list[Any], path: Path) -> np.ndarray:
    values = [annotation.get("area") for annotation in annotations]
    bad = _first(values, lambda v: v is not None and not (_is_number(v) and 0 <= v < 1e30))
    if bad is not None:
        _fail(path, f"annotations[{bad}].area", values[bad], "a number of pixels, 0 or more", annotations[bad])
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _crowd_flags(annotations: list[Any], path: Path) -> np.ndarray:
    values = [annotation.get("iscrowd", 0) for annotation in annotations]
    bad = _first(values, lambda v: not isinstance(v, int) or v not in (0, 1))
    if bad is not None:
        _fail(path, f"annotations[{bad}].iscrowd", values[bad], "0 or 1", annotations[bad])
    return np.array(values, dtype=np.int8)


def _references(annotations: list[Any], field: str, ids: list[int], section: str, path: Path) -> np.ndarray:
    """Positions (M,) of the ids that the annotations refer to."""
    values = _ints(annotations, "annotations", field, path)
    position = {value: index for index, value in enumerate(ids)}
    indices = [position.get(value, -1) for value in values]
    if -1 in indices:
        bad = indices.index(-1)
        unknown = sum(index < 0 for index in indices)
        _fail(
            path,
            f"annotations[{bad}].{field}",
            values[bad],
            f"the id of one of `{section}` ({unknown} annotations are not)",
            annotations[bad],
        )
    return np.array(indices, dtype=np.int64)


def _column(records: list[Any], section: str, field: str, path: Path) -> list[Any]:
    try:
        return [record[field] for record in records]
    except (KeyError, TypeError, IndexError):
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                _fail(path, f"{section}[{index}]", record, "an object")
            if field not in record:
                identity = f" (id {record['id']})" if "id" in record else ""
                raise ValueError(
                    f"{path}: {section}[{index}]{identity} has no `{field}`; every one of `{section}` needs it"
                ) from None
        raise


def _ints(records: list[Any], section: str, field: str, path: Path) -> list[int]:
    values = _column(records, section, field, path)
    bad = _first(values, lambda v: type(v) is not int or not -_INT64 <= v < _INT64)
    if bad is not None:
        owner = records[bad] if section == "annotations" and field != "id" else None
        _fail(path, f"{section}[{bad}].{field}", values[bad], "an integer", owner)
    return values


def _unique_ints(records: list[Any], section: str, field: str, path: Path) -> list[int]:
    values = _ints(records, section, field, path)
    _check_unique(values, section, field, path)
    return values


def _texts(records: list[Any], section: str, field: str, path: Path) -> list[str]:
    values = _column(records, section, field, path)
    bad = _first(values, lambda v: not isinstance(v, str) or not v.strip())
    if bad is not None:
        _fail(path, f"{section}[{bad}].{field}", values[bad], "a text that is not empty")
    return values


def _check_unique(values: Sequence[Any], section: str, field: str, path: Path) -> None:
    if len(set(values)) == len(values):
        return
    seen: dict[Any, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            raise ValueError(
                f"{path}: {section}[{index}].{field} is {shown(value)}, the same as "
                f"{section}[{seen[value]}].{field}; make every `{field}` of `{section}` different"
            )
        seen[value] = index


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _first(values: Sequence[Any], is_bad: Callable[[Any], bool]) -> int | None:
    return next((index for index, value in enumerate(values) if is_bad(value)), None)


def _fail(path: Path, field: str, value: Any, wanted: str, annotation: Any = None) -> NoReturn:
    identity = f" (annotation id {annotation['id']})" if annotation is not None else ""
    raise ValueError(f"{path}: {field}{identity} is {shown(value)}; it must be {wanted}: correct or remove it")
