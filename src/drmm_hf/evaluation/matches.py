"""Detections matched to ground truth once, by COCO's greedy rule, for all measures of their scores and boxes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, TypedDict

import numpy as np
from pycocotools import mask

from ..files import to_plain
from .coco_input import CocoGroundTruth, CocoResults, GroundTruth, Results, prepare_ground_truth, prepare_results

SPLIT_SEED = 0  # of halves of the images


@dataclass(frozen=True, eq=False)
class Matches:
    """n detections after the matching at one IoU threshold, without those on a crowd region.

    They are ordered by class, within it by image, and within that from the highest score down.
    """

    results: CocoResults  # what was matched
    rows: np.ndarray  # (n,) index of each detection in the results
    images: np.ndarray  # (n,) index of its image in `truth.image_ids`
    classes: np.ndarray  # (n,) index of its class in `truth.category_ids`
    scores: np.ndarray  # (n,)
    objects: np.ndarray  # (n,) index of the annotation it was given in `truth.boxes`; -1 for a false positive
    ious: np.ndarray  # (n,) IoU with that annotation; 0 for a false positive
    num_objects: np.ndarray  # (C,) annotations of each class that are no crowd
    ignored_scores: np.ndarray  # scores of the detections on a crowd region
    iou_threshold: float
    max_detections: int
    score_threshold: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def truth(self) -> CocoGroundTruth:
        """What the results were matched to."""
        return self.results.truth

    @property
    def correct(self) -> np.ndarray:
        """(n,) whether it is a true positive."""
        return self.objects >= 0

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of `MatchReport`."""
        return {name: getattr(self, name) for name in ("iou_threshold", "score_threshold", "max_detections")}

    def above(self, score_threshold: float) -> "Matches":
        """Those with at least this score; a `ValueError` if scores or threshold are no probabilities."""
        check_probability("score_threshold", score_threshold)
        check_scores(self.scores, self.results.source)
        kept = self.select(self.scores >= score_threshold)
        ignored = self.ignored_scores[self.ignored_scores >= score_threshold]
        return replace(kept, ignored_scores=ignored, score_threshold=max(self.score_threshold, float(score_threshold)))

    def above_each(self, thresholds: Mapping[Any, float]) -> "Matches":
        """Those with at least the score threshold of their class; `thresholds` has one for each category id."""
        limits = np.array([thresholds[category_id] for category_id in self.truth.category_ids], dtype=float)
        return self.select(self.scores >= limits[self.classes])

    def select(self, kept: np.ndarray) -> "Matches":
        """The detections where `kept` (n,) is true."""
        names = ("rows", "images", "classes", "scores", "objects", "ious")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def at(self, iou_threshold: float) -> "Matches":
        """All of the results matched anew at another IoU threshold."""
        limit = self.max_detections
        return match_detections(self.truth, self.results, iou_threshold=iou_threshold, max_detections=limit)

    @cached_property
    def loose(self) -> "tuple[Matches, Matches]":
        """All of the results matched anew at IoU 0.1 and at any overlap, for the measures of how well boxes fit."""
        return self.at(0.1), self.at(0.0)


Matchable: TypeAlias = GroundTruth | Matches
"""What every measure takes first: ground truth, with results after it, or matches, which have both."""


class MatchOptions(TypedDict, total=False):
    """The keywords of `match_detections`, which every measure takes."""

    iou_threshold: float
    max_detections: int
    score_threshold: float | None


def match_detections(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    score_threshold: float | None = None,
) -> Matches:
    """Match results to ground truth as COCO does, without a limit on the size of the objects.

    Per image and class and from the highest score down, a detection is given the object that it overlaps most among
    those that no other has yet, if by at least `iou_threshold`. Without one it is wrong, so a second detection of an
    object is, unless it overlaps a crowd region by as much, of its own area.

    Args:
        ground_truth, results: as in `evaluate_coco`. Matches, without results, stay what they are whatever
            the other arguments but `score_threshold`; so one matching serves many measures.
        iou_threshold: smallest IoU of a true positive, in [0, 1]; 0 stands for any overlap.
        max_detections: highest-scored detections that count per image and class.
        score_threshold: keep detections with at least this score, all of which must lie in [0, 1] then.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    if isinstance(ground_truth, Matches):
        return ground_truth if score_threshold is None else ground_truth.above(score_threshold)
    check_probability("iou_threshold", iou_threshold)
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(() if results is None else results, truth)
    rows = ranked_rows(found, max_detections)
    count = len(found.scores)
    objects, ious, ignored = np.full(count, -1), np.zeros(count), np.zeros(count, dtype=bool)
    # COCO's own: 0 would give a box to a detection that does not touch it, and rounding can take 1 from an exact one.
    smallest = min(max(iou_threshold, np.finfo(float).tiny), 1.0 - 1e-10)
    for detections, present in pairs(found, rows):
        crowd = truth.crowd[present]
        overlaps = box_iou(found.boxes[detections], truth.boxes[present], crowd)
        near, free = overlaps >= smallest, ~crowd
        for place in np.flatnonzero(near.any(axis=1)).tolist():
            row, overlap = detections[place], overlaps[place]
            candidates = np.where(near[place] & free, overlap, -1.0)
            # Of equal ones COCO takes the last.
            best = len(candidates) - 1 - candidates[::-1].argmax()
            if candidates[best] >= 0.0:
                objects[row], ious[row], free[best] = present[best], overlap[best], False
            else:
                ignored[row] = near[place, crowd].any()
    counted = rows[~ignored[rows]]
    matches = Matches(
        results=found,
        rows=counted,
        images=found.images[counted],
        classes=found.classes[counted],
        scores=found.scores[counted],
        objects=objects[counted],
        ious=ious[counted],
        num_objects=np.bincount(truth.classes[~truth.crowd], minlength=len(truth.category_ids)),
        ignored_scores=found.scores[rows[ignored[rows]]],
        iou_threshold=float(iou_threshold),
        max_detections=int(max_detections),
    )
    return matches if score_threshold is None else matches.above(score_threshold)


def ranked_rows(results: CocoResults, max_detections: int | None = None) -> np.ndarray:
    """Indices of the detections by class, within it by image, and within that from the highest score down.

    `max_detections` are kept per image and class; None keeps all.
    """
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    rows = np.lexsort((-results.scores, results.images, results.classes))
    if max_detections is not None:
        keys = _keys(results)[rows]
        rows = rows[np.arange(len(rows)) - np.searchsorted(keys, keys) < max_detections]
    return rows


def pairs(results: CocoResults, rows: np.ndarray, by_class: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of every image and class with annotations: the indices of its detections, and of its annotations with the crowd.

    The detections are those of `rows`, in the order of `ranked_rows`; with `by_class=False` an image has one group.
    """
    found_keys, object_keys = (_keys(of, by_class) for of in (results, results.truth))
    rows = rows[np.argsort(found_keys[rows], kind="stable")]
    objects = np.argsort(object_keys, kind="stable")
    groups = np.unique(object_keys)
    sorted_keys = (found_keys[rows], object_keys[objects])
    sides = [np.searchsorted(keys, groups, side).tolist() for keys in sorted_keys for side in ("left", "right")]
    for first, last, first_object, last_object in zip(*sides, strict=True):
        yield rows[first:last], objects[first_object:last_object]


def nearest_objects(results: CocoResults, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection the object of its class that it overlaps most: (n,) index of the annotation, and (n,) IoU.

    The index is -1 where the image has no object of the class, as crowd regions are none. Arguments as in
    `pairs`.
    """
    objects, overlaps = np.full(len(results.scores), -1), np.zeros(len(results.scores))
    for detections, present in pairs(results, rows):
        present = present[~results.truth.crowd[present]]
        if present.size:
            overlap = box_iou(results.boxes[detections], results.truth.boxes[present])
            objects[detections], overlaps[detections] = present[overlap.argmax(axis=1)], overlap.max(axis=1)
    return objects[rows], overlaps[rows]


def box_iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """(n, 4) and (m, 4) boxes [x, y, width, height] to (n, m) intersection over union; 0 where both are empty.

    Where `crowd` (m,) is true it is the share of the first box that lies in the second, as COCO has it.
    """
    if not len(boxes) or not len(others):  # of which pycocotools makes a list
        return np.zeros((len(boxes), len(others)))
    # pycocotools reads columns as rows without a word
    sides = np.ascontiguousarray(boxes), np.ascontiguousarray(others)
    overlaps: np.ndarray = mask.iou(*sides, np.zeros(len(others)) if crowd is None else crowd)
    return overlaps


def halve_images(truth: CocoGroundTruth) -> list[np.ndarray]:
    """Indices in `truth.image_ids` of two random halves of the images; a `ValueError` for fewer than two."""
    count = len(truth.image_ids)
    if count < 2:
        raise ValueError(f"{truth.source}: images: {count} cannot be halved; give at least two")
    by_text = np.array(sorted(range(count), key=lambda place: str(truth.image_ids[place])))
    return np.array_split(by_text[np.random.default_rng(SPLIT_SEED).permutation(count)], 2)


_IN_WORDS: dict[str, Callable[[Any], str]] = {
    "iou_threshold": lambda iou: f"IoU {iou:g}" if iou > 0 else "IoU > 0",
    "iou_thresholds": lambda several: "mean over IoU " + ", ".join(f"{one:g}" for one in several),
    "num_bins": "{} bins".format,
    "score_threshold": lambda score: "LRP-optimal score thresholds" if score is None else f"score >= {score:g}",
    "max_detections": "maxDets {}".format,
}


class Report:
    """Base of the dataclasses that carry a measured value together with its settings."""

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        return ", ".join(words(getattr(self, name)) for name, words in _IN_WORDS.items() if hasattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with None for nan and infinity."""
        values: dict[str, Any] = to_plain(asdict(self))  # type: ignore[call-overload]
        return values


@dataclass(frozen=True, kw_only=True)
class MatchReport(Report):
    """A report on matched detections."""

    iou_threshold: float  # smallest IoU of a true positive; 0 stands for any overlap
    score_threshold: float  # smallest score of a detection that was counted
    max_detections: int  # highest-scored detections counted per image and class


def check_probability(name: str, value: float) -> None:
    """A `ValueError` that names the setting unless it lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")


def check_scores(scores: np.ndarray, source: str) -> None:
    """A `ValueError` that names the source unless all scores lie in [0, 1]."""
    outside = scores[(scores < 0) | (scores > 1)]
    if outside.size:
        raise ValueError(f"{source}: score {outside[0]:g} is outside [0, 1]; calibration needs probabilities")


def mean_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not nan; nan if none is."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan


def _keys(of: CocoGroundTruth | CocoResults, by_class: bool = True) -> np.ndarray:
    """One number for the image of each entry, or for the pair of class and image."""
    truth = of if isinstance(of, CocoGroundTruth) else of.truth
    return of.classes * len(truth.image_ids) + of.images if by_class else of.images
