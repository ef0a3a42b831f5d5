"""Detections matched to ground truth once, by COCO's greedy rule, for all measures of their scores and boxes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, TypedDict

import numpy as np

from ..files import to_plain
from .coco_input import CocoGroundTruth, CocoResults, GroundTruth, Results, prepare_ground_truth, prepare_results


@dataclass(frozen=True, eq=False)
class Matches:
    """n detections after the matching at one IoU threshold, without those on a crowd region.

    They are ordered by class, within it by image, and within that from the highest score down.

    Attributes:
        results: what was matched; `results.truth` is what it was matched to.
        rows: (n,) index of each detection in the results.
        images, classes: (n,) index of its image in `truth.image_ids` and of its class in `truth.category_ids`.
        scores: (n,).
        correct: (n,) whether it is a true positive.
        objects: (n,) index of the annotation it was given in `truth.boxes`; -1 for a false positive.
        ious: (n,) IoU with that annotation; 0 for a false positive.
        num_objects: (C,) annotations of each class that are no crowd.
        ignored_scores: scores of the detections on a crowd region.
        image_ids: the images that were matched, sorted.
        iou_threshold, score_threshold, max_detections: the settings.
    """

    results: CocoResults
    rows: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    num_objects: np.ndarray
    ignored_scores: np.ndarray
    image_ids: tuple[Any, ...]
    iou_threshold: float
    max_detections: int
    score_threshold: float = 0.0

    @property
    def truth(self) -> CocoGroundTruth:
        """The ground truth."""
        return self.results.truth

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as `MatchReport` has them."""
        return {name: getattr(self, name) for name in ("iou_threshold", "score_threshold", "max_detections")}

    def above(self, score_threshold: float) -> "Matches":
        """Those with at least this score; a `ValueError` if scores or threshold are no probabilities."""
        check_probability("score_threshold", score_threshold)
        check_scores(self.scores)
        kept = self.select(self.scores >= score_threshold)
        ignored = self.ignored_scores[self.ignored_scores >= score_threshold]
        return replace(kept, ignored_scores=ignored, score_threshold=max(self.score_threshold, float(score_threshold)))

    def above_each(self, thresholds: Mapping[Any, float]) -> "Matches":
        """Those with at least the score threshold of their class; `thresholds` has one for each category id."""
        limits = np.array([thresholds[category_id] for category_id in self.truth.category_ids], dtype=float)
        return self.select(self.scores >= limits[self.classes])

    def select(self, kept: np.ndarray) -> "Matches":
        """The detections where `kept` (n,) is true."""
        names = ("rows", "images", "classes", "scores", "correct", "objects", "ious")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


Matchable: TypeAlias = GroundTruth | Matches
"""What every measure takes first: ground truth, with results after it, or matches, which have both."""


class MatchOptions(TypedDict, total=False):
    """The keywords of `match_detections`, which every measure takes."""

    iou_threshold: float
    max_detections: int
    image_ids: Sequence[int] | None


def match_detections(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> Matches:
    """Match results to ground truth as COCO does, without a limit on the size of the objects.

    Per image and class and from the highest score down, a detection is given the object that it overlaps most among
    those that no other has yet, if by at least `iou_threshold`. Without one it is wrong, so a second detection of an
    object is, unless it overlaps a crowd region by as much, of its own area.

    Args:
        ground_truth, results, image_ids: as in `evaluate_coco`. Matches, without results, are returned as they are,
            whatever the other arguments; so one matching serves many measures.
        iou_threshold: smallest IoU of a true positive, in [0, 1]; 0 stands for any overlap.
        max_detections: highest-scored detections that count per image and class.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    if isinstance(ground_truth, Matches):
        return ground_truth
    check_probability("iou_threshold", iou_threshold)
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(() if results is None else results, truth)
    rows = ranked_rows(found, max_detections, image_ids)
    count = len(found.scores)
    objects, ious, ignored = np.full(count, -1), np.zeros(count), np.zeros(count, dtype=bool)
    # COCO's own: 0 would give a box to a detection that does not touch it, and rounding can take 1 from an exact one.
    smallest = min(max(iou_threshold, np.finfo(float).tiny), 1.0 - 1e-10)
    for detections, present in pairs_by_image_and_class(found, rows):
        crowd = truth.crowd[present]
        overlaps = box_iou(found.boxes[detections], truth.boxes[present], crowd)
        free = ~crowd
        for row, overlap in zip(detections, overlaps, strict=True):
            near = overlap >= smallest
            if not near.any():
                continue
            candidates = np.where(near & free, overlap, -1.0)
            # Of equal ones COCO takes the last.
            best = len(candidates) - 1 - candidates[::-1].argmax()
            if candidates[best] >= 0.0:
                objects[row], ious[row], free[best] = present[best], overlap[best], False
            else:
                ignored[row] = near[crowd].any()
    counted = rows[~ignored[rows]]
    chosen = np.isin(truth.images, _positions(truth, image_ids)) & ~truth.crowd
    return Matches(
        results=found,
        rows=counted,
        images=found.images[counted],
        classes=found.classes[counted],
        scores=found.scores[counted],
        correct=objects[counted] >= 0,
        objects=objects[counted],
        ious=ious[counted],
        num_objects=np.bincount(truth.classes[chosen], minlength=len(truth.category_ids)),
        ignored_scores=found.scores[rows[ignored[rows]]],
        image_ids=tuple(truth.chosen_images(image_ids)),
        iou_threshold=float(iou_threshold),
        max_detections=int(max_detections),
    )


def ranked_rows(
    results: CocoResults, max_detections: int | None = None, image_ids: Sequence[int] | None = None
) -> np.ndarray:
    """Indices of the detections by class, within it by image, and within that from the highest score down.

    Args:
        results: n detections.
        max_detections: keep as many per image and class; None keeps all.
        image_ids: keep these images only.
    """
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    rows = np.lexsort((-results.scores, results.images, results.classes))
    if image_ids is not None:
        rows = rows[np.isin(results.images[rows], _positions(results.truth, image_ids))]
    if max_detections is not None:
        keys = _keys(results.truth, results.classes[rows], results.images[rows])
        rows = rows[np.arange(len(rows)) - np.searchsorted(keys, keys) < max_detections]
    return rows


def pairs_by_image_and_class(results: CocoResults, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of every image and class that has both: the indices of its detections, and of its annotations with the crowd.

    Args:
        results: the detections.
        rows: which of them, in the order of `ranked_rows`.
    """
    truth = results.truth
    found_keys = _keys(truth, results.classes[rows], results.images[rows])
    object_keys = _keys(truth, truth.classes, truth.images)
    order = np.argsort(object_keys, kind="stable")
    object_keys = object_keys[order]
    both = np.intersect1d(found_keys, object_keys)
    sides = [np.searchsorted(keys, both, side) for keys in (found_keys, object_keys) for side in ("left", "right")]
    for first, last, first_object, last_object in zip(*(side.tolist() for side in sides), strict=True):
        yield rows[first:last], order[first_object:last_object]


def by_image(indices: np.ndarray, images: np.ndarray, count: int) -> list[np.ndarray]:
    """The indices of each of `count` images, in their order, where `images` (n,) has the image of each of n entries."""
    order = indices[np.argsort(images[indices], kind="stable")]
    return np.split(order, np.searchsorted(images[order], np.arange(1, count)))


def box_iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """(n, 4) and (m, 4) boxes [x, y, width, height] to (n, m) intersection over union; 0 where both are empty.

    Where `crowd` (m,) is true it is the share of the first box that lies in the second, as COCO has it.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    intersection = (high - low).clip(min=0).prod(axis=-1)
    areas = boxes[:, None, 2:].prod(axis=-1)
    union = areas + others[None, :, 2:].prod(axis=-1) - intersection
    if crowd is not None:
        union = np.where(crowd, areas, union)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def halve_images(
    truth: CocoGroundTruth, image_ids: Sequence[int] | None, seed: int
) -> tuple[frozenset[Any], frozenset[Any]]:
    """The images in two random halves; a `ValueError` for fewer than two."""
    images = sorted(truth.chosen_images(image_ids), key=str)
    if len(images) < 2:
        raise ValueError(f"image_ids: {len(images)} images cannot be halved; give at least two")
    order = np.random.default_rng(seed).permutation(len(images))
    first, second = (frozenset(images[index] for index in part) for part in np.array_split(order, 2))
    return first, second


_SETTINGS = ("num_detections", "num_ignored", "iou_threshold", "num_bins", "score_threshold", "max_detections")


class Report:
    """Base of the dataclasses that carry a measured value together with its settings."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the settings last, with None for nan and infinity."""
        values: dict[str, Any] = to_plain(asdict(self))  # type: ignore[call-overload]
        return values | {name: values.pop(name) for name in _SETTINGS if name in values}


@dataclass(frozen=True, kw_only=True)
class MatchReport(Report):
    """A report on matched detections.

    Attributes:
        iou_threshold: smallest IoU of a true positive; 0 stands for any overlap.
        score_threshold: smallest score of a detection that was counted.
        max_detections: highest-scored detections counted per image and class.
    """

    iou_threshold: float
    score_threshold: float
    max_detections: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        return f"{iou_text(self.iou_threshold)}, score >= {self.score_threshold:g}, maxDets {self.max_detections}"


def iou_text(iou_threshold: float) -> str:
    """An IoU threshold in words."""
    return f"IoU {iou_threshold:g}" if iou_threshold > 0 else "IoU > 0"


def check_probability(name: str, value: float) -> None:
    """A `ValueError` that names the setting unless it lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")


def check_scores(scores: np.ndarray) -> None:
    """A `ValueError` unless all scores lie in [0, 1]."""
    outside = scores[(scores < 0) | (scores > 1)]
    if outside.size:
        raise ValueError(f"results: score {outside[0]:g} is outside [0, 1]; calibration needs probabilities")


def mean_of_known(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not nan; nan if none is."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan


def _keys(truth: CocoGroundTruth, classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One number for each pair of class and image."""
    return classes * len(truth.image_ids) + images


def _positions(truth: CocoGroundTruth, image_ids: Sequence[int] | None) -> np.ndarray:
    """Where these images stand in `truth.image_ids`."""
    chosen = set(truth.chosen_images(image_ids))
    return np.array([index for index, image_id in enumerate(truth.image_ids) if image_id in chosen], dtype=int)
