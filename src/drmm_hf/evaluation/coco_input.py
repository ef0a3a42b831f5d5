"""Reads and checks what COCO evaluation needs: ground truth and results, from files or memory.

Everything is checked here, once, with messages that name file, entry and field, because pycocotools answers bad input
with assertions, `KeyError` or, worse, a plausible wrong number. Nothing that the caller passes in is modified.
"""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from pycocotools.coco import COCO

from ..configuration_drmm import shown
from ..files import collection_paused, read_json

# Pixels and scores beyond it are mistakes, and their products would not be finite.
_LARGEST = 1e30


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """Checked ground truth of m annotations; `prepare_ground_truth` makes it.

    Attributes:
        coco: indexed copy of the boxes, without segmentations; annotation ids are renumbered from 1.
        source: what error messages call it: the file's path, or "ground truth".
        image_ids: every image of the file, with or without annotations, sorted.
        category_names: original category id -> unique name, in the order of the file.
        category_ids: the C original category ids, sorted.
        images, classes: (m,) index of each annotation's image in `image_ids` and of its class in `category_ids`.
        boxes: (m, 4) [x, y, width, height] in pixels.
        crowd: (m,) whether it is a crowd region, on which detections are neither right nor wrong.
    """

    coco: COCO
    source: str
    image_ids: tuple[Any, ...]
    category_names: dict[Any, str]
    category_ids: tuple[Any, ...]
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray

    @property
    def class_names(self) -> list[str]:
        """The C names in the order of `category_ids`."""
        return [self.category_names[category_id] for category_id in self.category_ids]

    def chosen_images(self, image_ids: Sequence[Any] | None) -> list[Any]:
        """These images, or all of them for None, sorted; a `ValueError` if one is not in the file."""
        if image_ids is None:
            return list(self.image_ids)
        unknown = sorted(set(image_ids).difference(self.image_ids), key=str)
        if unknown:
            raise ValueError(f"image_ids: {unknown[0]} is no image of {self.source}")
        return sorted(set(image_ids))


@dataclass(frozen=True, eq=False)
class CocoResults:
    """Checked results, n detections; `prepare_results` makes it.

    Attributes:
        truth: what the image and category ids refer to.
        source: what error messages call it.
        rows: the results as they were given.
        images, classes: (n,) index of each detection's image in `truth.image_ids` and class in `truth.category_ids`.
        boxes: (n, 4) [x, y, width, height] in pixels.
        scores: (n,).
    """

    truth: CocoGroundTruth
    source: str
    rows: Sequence[Mapping[str, Any]]
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def select(self, kept: np.ndarray) -> "CocoResults":
        """The detections where `kept` (n,) is true."""
        rows = [self.rows[row] for row in np.flatnonzero(kept).tolist()]
        arrays = {name: getattr(self, name)[kept] for name in ("images", "classes", "boxes", "scores")}
        return replace(self, rows=rows, **arrays)

    def have(self, field: str) -> bool:
        """Whether there are results, and all have this field."""
        return bool(self.rows) and all(field in row for row in self.rows)

    @cached_property
    def objectness(self) -> np.ndarray:
        """(n,) the factor o of each score p·o; a `ValueError` that names the first without one, or with a wrong one."""
        rows = _Entries(self.rows, self.source)
        problem = "is not a number in [0, 1]; predict with predict_dataset(..., with_parts=True)"
        values = rows.numbers("objectness", problem)
        rows.require((values >= 0.0) & (values <= 1.0), "objectness", problem)
        possible = (self.scores <= values + 1e-4) | np.isclose(self.scores, values, rtol=1e-3)
        problem = "is below the score, which is a product of it; keep both as they were predicted"
        rows.require(possible, "objectness", problem)
        return values

    @cached_property
    def scales(self) -> np.ndarray:
        """(n, 4) γ of the left, top, right and bottom edge in pixels; a `ValueError` that names the first without."""
        rows, numbers = _Entries(self.rows, self.source), "four numbers of pixels [l, t, r, b], none negative"
        problem = f"is not {numbers}; predict with predict_dataset(..., with_scales=True)"
        values = rows.numbers("scales", problem, (4,))
        rows.require((values >= 0.0).all(axis=1), "scales", problem)
        return values

    @cached_property
    def coco(self) -> COCO:
        """The detections for pycocotools, numbered from 1 in the given order."""
        content, areas = self.truth.coco.dataset, self.boxes[:, 2:].prod(axis=1)
        ids = (self.truth.image_ids, self.truth.category_ids)
        columns = {"iscrowd": np.zeros(len(areas), dtype=int), "score": self.scores}
        return _index(content, ids, (self.images, self.classes), {"bbox": self.boxes, "area": areas, **columns})


GroundTruth: TypeAlias = str | PathLike[str] | Mapping[str, Any] | COCO | CocoGroundTruth
Results: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, Any]] | CocoResults


@collection_paused()
def prepare_ground_truth(ground_truth: GroundTruth) -> CocoGroundTruth:
    """Check COCO ground truth and index it for box evaluation.

    A missing `iscrowd` counts as 0, a missing `area` as width·height of the box, and `info` may be absent.

    Args:
        ground_truth: path of a COCO instances file, its content as a dict, a `pycocotools.coco.COCO`, or what this
            function returned.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, not COCO ground truth, or an annotation that cannot be evaluated.
    """
    if isinstance(ground_truth, CocoGroundTruth):
        return ground_truth
    source, content = "ground truth", ground_truth.dataset if isinstance(ground_truth, COCO) else ground_truth
    if isinstance(content, str | PathLike):
        source, content = str(content), read_json(content)
    if not isinstance(content, Mapping):
        kind = "a list, as COCO results are" if isinstance(content, list) else f"a {type(content).__name__}"
        raise ValueError(f"{source}: this is {kind}; ground truth has images, annotations and categories")
    for field in ("images", "annotations", "categories"):
        if not isinstance(content.get(field), list):
            raise ValueError(f"{source}: field '{field}' is missing or not a list; COCO ground truth needs it")
    sections = {name: _Entries(content[name], f"{source}: {name}") for name in ("images", "categories", "annotations")}
    image_ids, category_ids = sections["images"].sorted_ids(), sections["categories"].sorted_ids()
    entries = sections["annotations"]
    images = entries.indices("image_id", image_ids, "is not among the file's images")
    classes = entries.indices("category_id", category_ids, "is not among the file's categories")
    boxes = entries.boxes()
    flags = entries.values("iscrowd")
    entries.require([flag in (None, 0, 1) for flag in flags], "iscrowd", "is not 0 or 1; correct or remove it")
    crowd = np.array([bool(flag) for flag in flags], dtype=bool)
    problem = "is not a number of square pixels; correct or remove it"
    areas = entries.numbers("area", problem, missing=boxes[:, 2:].prod(axis=1).tolist())
    entries.require(areas >= 0.0, "area", problem)
    columns = {"bbox": boxes, "area": areas, "iscrowd": crowd.astype(int)}
    coco = _index(
        {name: section.entries for name, section in sections.items()},
        (image_ids, category_ids),
        (images, classes),
        columns,
    )
    names = {one["id"]: str(one.get("name", one["id"])) for one in sections["categories"].entries}
    count = Counter(names.values())
    names = {key: f"{name} ({key})" if count[name] > 1 else name for key, name in names.items()}
    return CocoGroundTruth(coco, source, image_ids, names, category_ids, images, classes, boxes, crowd)


@collection_paused()
def prepare_results(results: Results, ground_truth: CocoGroundTruth) -> CocoResults:
    """Check COCO box results against their ground truth.

    Args:
        results: list of `{"image_id", "category_id", "bbox": [x, y, w, h] in pixels, "score"}`, the path of a JSON file
            that holds one, or what this function returned for the same ground truth. An empty list is allowed.
        ground_truth: what the image and category ids refer to.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a list, an unknown image or category, or a box or score that is no finite number.
    """
    if isinstance(results, CocoResults):
        return results if results.truth is ground_truth else prepare_results(results.rows, ground_truth)
    source = "results"
    if isinstance(results, str | PathLike):
        source, results = f"{results}: results", read_json(results)
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise ValueError(
            f"{source}: COCO results are a list of detections, not a {type(results).__name__}; "
            "pass the results, not the ground truth"
        )
    rows, of, ids = _Entries(results, source), f"of {ground_truth.source}", "use the original"
    problem = f"is no category {of}; {ids} category ids, not the model's labels"
    return CocoResults(
        truth=ground_truth,
        source=source,
        rows=results,
        images=rows.indices("image_id", ground_truth.image_ids, f"is no image {of}; {ids} image ids"),
        classes=rows.indices("category_id", ground_truth.category_ids, problem),
        boxes=rows.boxes(),
        scores=rows.numbers("score", "is not a finite number"),
    )


def _index(
    content: Mapping[str, Any],
    ids: tuple[Sequence[Any], Sequence[Any]],
    indices: tuple[np.ndarray, np.ndarray],
    columns: Mapping[str, np.ndarray],
) -> COCO:
    """A `COCO` of the images and categories of `content` and of n boxes, without pycocotools' prints."""
    names = ("image_id", "category_id", *columns)
    known = [[of[place] for place in places.tolist()] for of, places in zip(ids, indices, strict=True)]
    rows: Iterable[Any] = zip(*known, *(column.tolist() for column in columns.values()), strict=True)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image["id"]} for image in content["images"]],
            "categories": [dict(category) for category in content["categories"]],
            # Numbered from 1: pycocotools takes a match with annotation id 0 for no match.
            "annotations": [{"id": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(rows, start=1)],
        }
        coco.createIndex()
    return coco


class _Entries:
    """A list of JSON objects, read one field at a time; a `ValueError` names the first entry that is wrong."""

    def __init__(self, entries: Sequence[Any], where: str) -> None:
        self.entries, self.where = entries, where
        bad = next((index for index, entry in enumerate(entries) if not isinstance(entry, Mapping)), None)
        if bad is not None:
            raise ValueError(f"{where}[{bad}]: {shown(entries[bad])} is not an object with fields")
        # 7.0 and "7" as ids are 7: the reader of data sets takes them so, too
        fields = ("id", "image_id", "category_id")
        if not all(type(entry.get(field, 0)) is int for entry in entries for field in fields):
            plain = [{field: _plain_id(entry[field]) for field in fields if field in entry} for entry in entries]
            self.entries = [{**entry, **ids} for entry, ids in zip(entries, plain, strict=True)]

    def values(self, field: str) -> list[Any]:
        return [entry.get(field) for entry in self.entries]

    def require(self, good: Any, field: str, problem: str) -> None:
        """`good` has a truth value for each entry."""
        (bad,) = np.nonzero(~np.asarray(good, dtype=bool))
        if bad.size:
            value = self.entries[bad[0]].get(field)
            value = "nothing" if value is None else shown(value)
            raise ValueError(f"{self.where}[{bad[0]}].{field}: {value} {problem}")

    def numbers(
        self, field: str, problem: str, shape: tuple[int, ...] = (), missing: Sequence[float] | None = None
    ) -> np.ndarray:
        """(n, *shape) finite numbers; `missing` has what to take where there is none."""
        values = self.values(field)
        if missing is not None:
            values = [other if value is None else value for value, other in zip(values, missing, strict=True)]
        if values and not _are_numbers(values, (len(values), *shape)):
            self.require([_are_numbers(value, shape) for value in values], field, problem)
        return np.array(values, dtype=float).reshape(-1, *shape)

    def boxes(self) -> np.ndarray:
        boxes = self.numbers("bbox", "is not four finite numbers [x, y, width, height]", (4,))
        problem = "has a negative size; COCO boxes are [x, y, width, height]"
        self.require((boxes[:, 2:] >= 0.0).all(axis=1), "bbox", problem)
        return boxes

    def indices(self, field: str, known: Sequence[Any], problem: str) -> np.ndarray:
        """(n,) index of a field's value among the known ones."""
        index_of = {value: index for index, value in enumerate(known)}
        kinds = int | str | float | np.integer
        found = [index_of.get(one, -1) if isinstance(one, kinds) else -1 for one in self.values(field)]
        indices = np.array(found, dtype=int)
        self.require(indices >= 0, field, problem)
        return indices

    def sorted_ids(self) -> tuple[Any, ...]:
        """The ids of images or categories, all integers of 64 bits or all texts, and each once."""
        ids = self.values("id")
        texts = bool(ids) and isinstance(ids[0], str)
        good = [isinstance(one, str) if texts else isinstance(one, int) and -(2**63) <= one < 2**63 for one in ids]
        self.require(good, "id", "is not an integer, or not of the type of the ids before")
        first = {one: index for index, one in reversed(list(enumerate(ids)))}
        self.require([first[one] == i for i, one in enumerate(ids)], "id", "occurs twice; ids must be unique")
        return tuple(sorted(ids))


def _plain_id(value: Any) -> Any:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _are_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return array.shape == shape and array.dtype.kind in "iuf" and bool((np.abs(array) < _LARGEST).all())
