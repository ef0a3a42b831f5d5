"""Reads and checks what COCO evaluation needs: ground truth and results, from files or memory.

Everything is checked here, once, with messages that name file, entry and field, because pycocotools answers bad input
with assertions, `KeyError` or, worse, a plausible wrong number. Nothing that the caller passes in is modified.
"""

import contextlib
import io
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from pycocotools.coco import COCO

from ..annotations import Records
from ..data.coco import read_sections, real_categories
from ..files import collection_paused, read_json

logger = logging.getLogger(__name__)


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
        image_of_file: name of each image's file, with and without folder and ending -> its id.
        left_out: ids of categories of the file that are no classes; see `real_categories`.
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
    image_of_file: dict[Any, Any]
    left_out: frozenset[Any]

    @property
    def class_names(self) -> list[str]:
        """The C names in the order of `category_ids`."""
        return [self.category_names[category_id] for category_id in self.category_ids]


@dataclass(frozen=True, eq=False)
class CocoResults:
    """Checked results, n detections; `prepare_results` makes it.

    Attributes:
        truth: what the image and category ids refer to.
        source: what error messages call it.
        rows: the results as they were given, but with the ids of the ground truth where they had others.
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
        rows = list(itertools.compress(self.rows, kept))
        arrays = {name: getattr(self, name)[kept] for name in ("images", "classes", "boxes", "scores")}
        return replace(self, rows=rows, **arrays)

    def have(self, field: str) -> bool:
        """Whether there are results, and all have this field."""
        return bool(self.rows) and all(field in row for row in self.rows)

    @cached_property
    def objectness(self) -> np.ndarray:
        """(n,) the factor o of each score p·o; a `ValueError` that names the first without one, or with a wrong one."""
        rows = Records(self.rows, self.source)
        wanted = "a number in [0, 1]; predict with predict_dataset(..., with_parts=True)"
        values = rows.numbers("objectness", wanted, 0.0, 1.0)
        possible = (self.scores <= values + 1e-4) | np.isclose(self.scores, values, rtol=1e-3)
        rows.require(possible, "objectness", "at least the score, which is a product of it; keep both as predicted")
        return values

    @cached_property
    def scales(self) -> np.ndarray:
        """(n, 4) γ of the left, top, right and bottom edge in pixels; a `ValueError` that names the first without."""
        wanted = "four numbers of pixels [l, t, r, b], none negative; predict_dataset(..., with_scales=True) keeps them"
        return Records(self.rows, self.source).numbers("scales", wanted, 0.0, width=4)

    @cached_property
    def coco(self) -> COCO:
        """The detections for pycocotools, numbered from 1 in the given order."""
        areas = self.boxes[:, 2:].prod(axis=1)
        return _index(self.truth.category_names, self.truth.image_ids, self.truth.category_ids, {
            "image": self.images, "class": self.classes, "bbox": self.boxes, "area": areas,
            "iscrowd": np.zeros(len(areas), dtype=int), "score": self.scores,
        })  # fmt: skip


GroundTruth: TypeAlias = str | PathLike[str] | Mapping[str, Any] | COCO | CocoGroundTruth
Results: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, Any]] | CocoResults


@collection_paused()
def prepare_ground_truth(ground_truth: GroundTruth) -> CocoGroundTruth:
    """Check COCO ground truth (or return it, if it is checked) and index it for box evaluation.

    A missing `iscrowd` counts as 0, a missing `area` as width·height of the box.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not JSON, not COCO ground truth, or an annotation that cannot be evaluated.
    """
    if isinstance(ground_truth, CocoGroundTruth):
        return ground_truth
    source, content = "ground truth", ground_truth.dataset if isinstance(ground_truth, COCO) else ground_truth
    if isinstance(content, str | PathLike):
        source, content = str(content), read_json(content)
    sections = read_sections(content, source)
    records, categories = sections["annotations"], real_categories(sections, source)
    image_ids, category_ids = (tuple(sorted(one.ids(texts=True))) for one in (sections["images"], categories))
    pairs = zip(categories.ids(texts=True), categories.values("name"), strict=True)
    names = {key: str(key if name is None else name) for key, name in pairs}
    count = Counter(names.values())
    names = {key: f"{name} ({key})" if count[name] > 1 else name for key, name in names.items()}
    boxes, areas = records.boxes(), records.areas()
    columns = {
        "image": records.positions("image_id", image_ids, "the id of one of `images`"),
        "class": records.positions("category_id", category_ids, "the id of one of `categories`"),
        "bbox": boxes,
        "area": np.where(np.isnan(areas), boxes[:, 2:].prod(axis=1), areas),
        "iscrowd": records.flags("iscrowd").astype(int),
    }
    coco = _index(names, image_ids, category_ids, columns)
    places, crowd = (columns["image"], columns["class"]), columns["iscrowd"].astype(bool)
    called = [_names_of(name) for name in sections["images"].values("file_name")]
    times, ids = Counter(name for several in called for name in several), sections["images"].ids(texts=True)
    files = {name: one for several, one in zip(called, ids, strict=True) for name in several if times[name] == 1}
    left_out = frozenset(sections["categories"].ids(texts=True)) - set(category_ids)
    return CocoGroundTruth(coco, source, image_ids, names, category_ids, *places, boxes, crowd, files, left_out)


@collection_paused()
def prepare_results(results: Results, ground_truth: CocoGroundTruth) -> CocoResults:
    """Check COCO box results against their ground truth.

    Ids that the ground truth does not have are understood as other tools write them if that explains all of them, and
    a warning says so: images by the names of their files (ultralytics), categories by their number in the order of the
    ids, from 0 if there is a 0 (detectron2's instances) and else from 1 (ultralytics). Detections of categories of the
    file that are no classes are left out, with a warning. Another one says so where a file of results has nothing in
    more than a tenth of the images with objects: it may be of other images.

    Args:
        results: list of `{"image_id", "category_id", "bbox": [x, y, w, h] in pixels, "score"}`, with whatever other
            fields, or of an image's `{"instances": [...]}`; the path of a JSON file that holds one, or what this
            function returned for the same ground truth. An empty list is allowed.
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
    if results and all(isinstance(one, Mapping) and isinstance(one.get("instances"), list) for one in results):
        results = [instance for one in results for instance in one["instances"]]
    rows = _with_known_ids(_of_classes(Records(results, source), ground_truth, source), ground_truth, source)
    of, categories = ground_truth.source, zip(ground_truth.category_ids, ground_truth.class_names, strict=True)
    image = f"the id of an image of {of} ({_some(ground_truth.image_ids)}), or for all results the names of the files"
    category = (
        f"a category of {of} ({_some(f'{one} {name}' for one, name in categories)}), or for all results the numbers in "
        f"this order from 0 or 1; here are {_some(sorted(set(rows.references('category_id')), key=str))}"
    )
    images = rows.positions("image_id", ground_truth.image_ids, image)
    filled = np.unique(ground_truth.images[~ground_truth.crowd])
    without = len(np.setdiff1d(filled, images))
    if source != "results" and without > 0.1 * len(filled):
        text = "%s: has no detection in %d of the %d images of %s with objects; their objects count as missed"
        logger.warning(text, source, without, len(filled), of)
    return CocoResults(
        truth=ground_truth,
        source=source,
        rows=rows.records,
        images=images,
        classes=rows.positions("category_id", ground_truth.category_ids, category),
        boxes=rows.boxes(),
        scores=rows.numbers("score", "a finite number"),
    )


def _of_classes(rows: Records, truth: CocoGroundTruth, source: str) -> Records:
    """The results without those of categories of the file that are no classes."""
    ids = rows.references("category_id")
    own = {*truth.category_ids, *truth.left_out}
    # Roboflow's root has id 0, and nobody trains on it: numbers from 0 that end before the last id are another tool's.
    numbered = 0 in truth.left_out and 0 in ids and set(ids) <= set(range(len(truth.category_ids)))
    if numbered or not set(ids) <= own or truth.left_out.isdisjoint(ids):
        return rows
    kept = [row for row, category_id in zip(rows.records, ids, strict=True) if category_id not in truth.left_out]
    count = len(rows) - len(kept)
    logger.warning(
        "%s: %d detections of categories of %s that have no boxes and are no classes left out: %s",
        source,
        count,
        truth.source,
        _some(sorted(truth.left_out.intersection(ids), key=str)),
    )
    return Records(kept, source)


def _with_known_ids(rows: Records, truth: CocoGroundTruth, source: str) -> Records:
    """The results in the ids of the ground truth, if another reading explains all of theirs."""
    records, classes = rows.records, {name: category_id for category_id, name in truth.category_names.items()}
    fields = (
        ("image_id", truth.image_ids, "file_name", truth.image_of_file),
        ("category_id", truth.category_ids, "category_name", classes),
    )
    for field, known, name_field, id_of in fields:
        meant = rows.references(field)
        if records and name_field in records[0]:
            # surer than ids: those of ultralytics are the digits of the name, SAHI's categories a model's
            names = [str(record.get(name_field)) for record in records]
            if field == "image_id":  # with the folders that it had where the detector has read it
                names = [name if name in id_of else name.replace("\\", "/").rsplit("/", 1)[-1] for name in names]
            if others := [name for name in names if name not in id_of]:
                text = "%s: %d detections of %d have a %s that %s does not have, such as %s"
                logger.warning(text, source, len(others), len(names), name_field, truth.source, others[0])
            if len(others) < len(names):
                records = [record for record, name in zip(records, names, strict=True) if name in id_of]
                meant = [id_of[name] for name in names if name in id_of]
                rows = Records(records, source)
        if not set(meant).issubset(known):
            low = 0 if 0 in meant else 1
            reading, ids = f"numbers from {low}", dict(enumerate(truth.category_ids, start=low))
            if field == "image_id":
                reading, ids = "names of files", truth.image_of_file
            if not set(meant) <= ids.keys():
                continue
            logger.warning("%s: %s are no ids of %s; taken as %s", source, field, truth.source, reading)
            meant = [ids[value] for value in meant]
        if meant != rows.values(field):
            records = [{**record, field: value} for record, value in zip(records, meant, strict=True)]
    return Records(records, source)


def _names_of(file_name: Any) -> set[Any]:
    """What tools write for an image's id: its file's name with and without folder and ending, digits as a number."""
    if file_name is None:
        return set()
    name = str(file_name).replace("\\", "/").rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0]
    return {str(file_name), name, int(stem) if stem.isascii() and stem.isdigit() else stem}


def _some(values: Iterable[Any]) -> str:
    """The first of some values, to show."""
    shown = [str(value) for value in itertools.islice(values, 6)]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _index(
    names: Mapping[Any, str], image_ids: Sequence[Any], category_ids: Sequence[Any], columns: Mapping[str, np.ndarray]
) -> COCO:
    """A `COCO` of n boxes without pycocotools' prints; `image` and `class` (n,) are places among the ids."""
    columns = dict(columns)
    ids = [
        [known[place] for place in columns.pop(name).tolist()]
        for name, known in (("image", image_ids), ("class", category_ids))
    ]
    rows = zip(*ids, *(column.tolist() for column in columns.values()), strict=True)
    fields = ("image_id", "category_id", *columns)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image_id} for image_id in image_ids],
            "categories": [{"id": category_id, "name": name} for category_id, name in names.items()],
            # Numbered from 1: pycocotools takes a match with annotation id 0 for no match.
            "annotations": [{"id": n, **dict(zip(fields, row, strict=True))} for n, row in enumerate(rows, start=1)],
        }
        coco.createIndex()
    return coco
