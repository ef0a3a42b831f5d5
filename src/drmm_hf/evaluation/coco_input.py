"""Reads and checks what COCO evaluation needs: a ground-truth file and a results list.

Everything is checked here, once, with messages that name file and field, because pycocotools answers bad
input with assertions, `KeyError` or, worse, a plausible wrong number. Nothing that the caller passes in is
modified.
"""

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from pycocotools.coco import COCO

GroundTruth: TypeAlias = str | PathLike[str] | Mapping[str, Any] | COCO
Results: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, Any]]


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
                "bbox": list(annotation["bbox"]),
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


def prepare_results(results: Results, ground_truth: CocoGroundTruth) -> COCO:
    """Check COCO box results against their ground truth and index them.

    Args:
        results: list of `{"image_id", "category_id", "bbox": [x, y, w, h] in pixels, "score"}`, or the path
            of a JSON file that holds one. An empty list is allowed.
        ground_truth: what the image and category ids refer to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a list, an unknown image or category, or a box or score that is no finite number.
    """
    source = "results"
    if isinstance(results, str | PathLike):
        source, results = f"{results}: results", read_json(results)
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(
            f"{source}: COCO results are a list of detections, not a {type(results).__name__}; "
            "pass the results, not the ground truth"
        )
    detections = []
    for index, result in enumerate(results):
        where = f"{source}[{index}]"
        _check_result(result, where, ground_truth)
        x, y, width, height = (float(value) for value in result["bbox"])
        detections.append(
            {
                "id": index + 1,
                "image_id": result["image_id"],
                "category_id": result["category_id"],
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": float(result["score"]),
            }
        )
    content = ground_truth.coco.dataset
    return index_quietly({"images": content["images"], "categories": content["categories"], "annotations": detections})


def read_json(path: str | PathLike[str]) -> Any:
    """Content of a JSON file; a `FileNotFoundError` or `ValueError` that names the file otherwise."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(Path(path).read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a JSON file (it is not text)") from error
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
        if entry["id"] in seen:
            raise ValueError(f"{where}: {entry['id']!r} occurs twice; ids must be unique")
        seen.add(entry["id"])
    return seen


def _check_annotation(annotation: Any, where: str, image_ids: set[Any], category_ids: set[Any]) -> None:
    if not isinstance(annotation, Mapping):
        raise ValueError(f"{where} is not an object")
    if "id" in annotation:
        where = f"{where} (id {annotation['id']})"
    _check_member(annotation, "image_id", image_ids, where, "not among the file's images")
    _check_member(annotation, "category_id", category_ids, where, "not among the file's categories")
    _check_box(annotation.get("bbox"), where)
    area = annotation.get("area")
    if area is not None and not (_is_number(area) and area >= 0):
        raise ValueError(f"{where}.area: {area!r} is not a number of square pixels; correct or remove it")


def _check_result(result: Any, where: str, ground_truth: CocoGroundTruth) -> None:
    if not isinstance(result, Mapping):
        raise ValueError(f"{where} is not an object with image_id, category_id, bbox and score")
    of = f"of {ground_truth.source}"
    _check_member(result, "image_id", ground_truth.image_ids, where, f"no image {of}; use the original image ids")
    fix = f"no category {of}; use the original category ids, not the model's labels"
    _check_member(result, "category_id", ground_truth.category_names.keys(), where, fix)
    _check_box(result.get("bbox"), where)
    if not _is_number(result.get("score")):
        raise ValueError(f"{where}.score: {result.get('score')!r} is not a finite number")


def _check_member(entry: Mapping[str, Any], field: str, known: Any, where: str, problem: str) -> None:
    if field not in entry:
        raise ValueError(f"{where}.{field} is missing")
    value = entry[field]
    if isinstance(value, list | dict) or value not in known:
        raise ValueError(f"{where}.{field}: {value!r} is {problem}")


def _check_box(box: Any, where: str) -> None:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise ValueError(f"{where}.bbox: {box!r} is not four finite numbers [x, y, width, height]")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}.bbox: {box!r} has a negative size; COCO boxes are [x, y, width, height]")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and math.isfinite(value)
    except TypeError:
        return False


def _category_names(categories: list[Mapping[str, Any]]) -> dict[int, str]:
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{name} ({key})" if name in repeated else name for key, name in names.items()}
