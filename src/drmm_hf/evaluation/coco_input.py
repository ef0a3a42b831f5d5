"""Reads and checks what COCO evaluation needs: a ground-truth file and a results list.

Everything is checked here, once, with messages that name file and field, because pycocotools answers bad
input with assertions, `KeyError` or, worse, a plausible wrong number. Nothing that the caller passes in is
modified.
"""

import contextlib
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pycocotools.coco import COCO

from ..annotations_drmm import shown
from ..files import collection_paused

GroundTruth: TypeAlias = str | PathLike[str] | Mapping[str, Any] | COCO
Results: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, Any]]

_LARGEST = 1e30
"""Pixels and scores beyond it are mistakes, and their products would not be finite."""


@dataclass(frozen=True)
class CocoGroundTruth:
    """Checked ground truth.

    Attributes:
        coco: indexed copy of the boxes, without segmentations; annotation ids are renumbered from 1.
        source: what error messages call it: the file's path, or "ground truth".
        image_ids: every image of the file, with or without annotations.
        category_names: original category id -> unique name.
    """

    coco: COCO
    source: str
    image_ids: frozenset[Any]
    category_names: dict[int, str]


@collection_paused()
def prepare_ground_truth(ground_truth: GroundTruth) -> CocoGroundTruth:
    """Check COCO ground truth and index it for box evaluation.

    A missing `iscrowd` counts as 0, a missing `area` as width·height of the box, and `info` may be absent.
    Annotations are renumbered from 1: pycocotools takes a match with annotation id 0 for no match.

    Args:
        ground_truth: path of a COCO instances file, its content as a dict, or a `pycocotools.coco.COCO`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, not COCO ground truth, or an annotation that cannot be evaluated.
    """
    source = "ground truth"
    if isinstance(ground_truth, COCO):
        content: Any = ground_truth.dataset
    elif isinstance(ground_truth, str | PathLike):
        source = str(ground_truth)
        content = read_json(ground_truth)
    else:
        content = ground_truth
    _check_sections(content, source)
    image_ids = _unique_ids(content["images"], "images", source)
    category_ids = _unique_ids(content["categories"], "categories", source)
    annotations = []
    for index, annotation in enumerate(content["annotations"]):
        where = f"{source}: annotations[{index}]"
        _check_annotation(annotation, where, image_ids, category_ids)
        _, _, width, height = annotation["bbox"]
        area = annotation.get("area")
        annotations.append(
            {
                "id": index + 1,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(map(float, annotation["bbox"])),
                "area": width * height if area is None else area,
                "iscrowd": int(annotation.get("iscrowd") or 0),
            }
        )
    coco = index_quietly(
        {
            "info": {},
            "images": [{"id": image["id"]} for image in content["images"]],
            "categories": [dict(category) for category in content["categories"]],
            "annotations": annotations,
        }
    )
    return CocoGroundTruth(coco, source, frozenset(image_ids), _category_names(content["categories"]))


def read_results(results: Results) -> tuple[Any, str]:
    """The content of results, and what error messages call it."""
    if isinstance(results, str | PathLike):
        return read_json(results), f"{results}: results"
    return results, "results"


@collection_paused()
def prepare_results(results: Results, ground_truth: CocoGroundTruth, source: str = "results") -> COCO:
    """Check COCO box results against their ground truth and index them.

    Args:
        results: list of `{"image_id", "category_id", "bbox": [x, y, w, h] in pixels, "score"}`, or the path
            of a JSON file that holds one. An empty list is allowed.
        ground_truth: what the image and category ids refer to.
        source: what error messages call a list.

    Returns:
        The detections, numbered from 1 in the given order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a list, an unknown image or category, or a box or score that is no finite number.
    """
    if isinstance(results, str | PathLike):
        results, source = read_results(results)
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(
            f"{source}: COCO results are a list of detections, not a {type(results).__name__}; "
            "pass the results, not the ground truth"
        )
    if not _surely_good(results, ground_truth):
        for index, result in enumerate(results):
            _check_result(result, f"{source}[{index}]", ground_truth)
    detections = []
    for index, result in enumerate(results, start=1):
        box = list(map(float, result["bbox"]))
        detections.append(
            {
                "id": index,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": float(result["score"]),
            }
        )
    content = ground_truth.coco.dataset
    return index_quietly({"images": content["images"], "categories": content["categories"], "annotations": detections})


@collection_paused()
def read_json(path: str | PathLike[str]) -> Any:
    """Content of a JSON file; a `FileNotFoundError` or `ValueError` that names the file otherwise."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(Path(path).read_bytes())
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "it is not text"
        raise ValueError(f"{path}: not a JSON file ({reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file may be cut short"
        ) from error


def index_quietly(content: dict[str, Any]) -> COCO:
    """A `COCO` over `content`, without pycocotools' prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
    return coco


def _check_sections(content: Any, source: str) -> None:
    if isinstance(content, Sequence):
        raise ValueError(
            f"{source}: this is a list, as COCO results are; ground truth is an object with images, "
            "annotations and categories"
        )
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: COCO ground truth is an object, not a {type(content).__name__}")
    for field in ("images", "annotations", "categories"):
        if not isinstance(content.get(field), list):
            state = "is missing" if field not in content else "is not a list"
            raise ValueError(f"{source}: field '{field}' {state}; COCO ground truth needs it")


def _unique_ids(entries: list[Any], field: str, source: str) -> set[Any]:
    seen: set[Any] = set()
    for index, entry in enumerate(entries):
        where = f"{source}: {field}[{index}].id"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), int | str):
            raise ValueError(f"{where} is missing or not an integer")
        if isinstance(entry["id"], int) and not -(2**63) <= entry["id"] < 2**63:
            raise ValueError(f"{where}: {shown(entry['id'])} does not fit into 64 bits; number the {field} anew")
        if seen and not isinstance(entry["id"], type(next(iter(seen)))):
            raise ValueError(f"{where}: {shown(entry['id'])} is not of the type of the ids before; use integers")
        if entry["id"] in seen:
            raise ValueError(f"{where}: {shown(entry['id'])} occurs twice; ids must be unique")
        seen.add(entry["id"])
    return seen


def _check_annotation(annotation: Any, where: str, image_ids: set[Any], category_ids: set[Any]) -> None:
    if not isinstance(annotation, Mapping):
        raise ValueError(f"{where} is not an object")
    if "id" in annotation:
        where = f"{where} (id {shown(annotation['id'])})"
    _check_member(annotation, "image_id", image_ids, where, "not among the file's images")
    _check_member(annotation, "category_id", category_ids, where, "not among the file's categories")
    _check_box(annotation.get("bbox"), where)
    area = annotation.get("area")
    if area is not None and not (_is_number(area) and area >= 0):
        raise ValueError(f"{where}.area: {shown(area)} is not a number of square pixels; correct or remove it")
    if annotation.get("iscrowd") not in (None, 0, 1):
        raise ValueError(f"{where}.iscrowd: {shown(annotation['iscrowd'])} is not 0 or 1; correct or remove it")


def _check_result(result: Any, where: str, ground_truth: CocoGroundTruth) -> None:
    if not isinstance(result, Mapping):
        raise ValueError(f"{where} is not an object with image_id, category_id, bbox and score")
    of = f"of {ground_truth.source}"
    _check_member(result, "image_id", ground_truth.image_ids, where, f"no image {of}; use the original image ids")
    fix = f"no category {of}; use the original category ids, not the model's labels"
    _check_member(result, "category_id", ground_truth.category_names.keys(), where, fix)
    _check_box(result.get("bbox"), where)
    if not _is_number(result.get("score")):
        raise ValueError(f"{where}.score: {shown(result.get('score'))} is not a finite number")


def _surely_good(results: Sequence[Any], ground_truth: CocoGroundTruth) -> bool:
    """Whether all rows are as they should be, found out all at once; False also where a closer look is needed."""
    try:
        boxes = [result["bbox"] for result in results]
        scores = [result["score"] for result in results]
        known = ground_truth.image_ids.issuperset(result["image_id"] for result in results)
        known &= ground_truth.category_names.keys() >= {result["category_id"] for result in results}
        sizes = np.array(boxes, dtype=float).reshape(-1, 4)[:, 2:]
        types = set(map(type, itertools.chain(itertools.chain.from_iterable(boxes), scores)))
        fours = set(map(len, boxes)) <= {4}
        sums = math.fsum(map(sum, boxes)), math.fsum(scores)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return False
    finite = np.isfinite(sizes).all() and all(map(math.isfinite, sums))
    return known and fours and types <= {int, float} and finite and bool((sizes >= 0).all())


def _check_member(entry: Mapping[str, Any], field: str, known: Any, where: str, problem: str) -> None:
    if field not in entry:
        raise ValueError(f"{where}.{field} is missing")
    value = entry[field]
    if isinstance(value, list | dict) or value not in known:
        raise ValueError(f"{where}.{field}: {shown(value)} is {problem}")


def _check_box(box: Any, where: str) -> None:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise ValueError(f"{where}.bbox: {shown(box)} is not four finite numbers [x, y, width, height]")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}.bbox: {shown(box)} has a negative size; COCO boxes are [x, y, width, height]")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and -_LARGEST < value < _LARGEST
    except TypeError:
        return False


def _category_names(categories: list[Mapping[str, Any]]) -> dict[int, str]:
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{name} ({key})" if name in repeated else name for key, name in names.items()}
