"""Detections matched to ground truth once, for all measures of their scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from .coco import run_coco_eval
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth

# COCO matches at IoU >= threshold, so that 0 would give a box to a detection that does not touch it.
ANY_OVERLAP = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Matches:
    """Detections after COCO's greedy matching at one IoU threshold, without those on a crowd region.

    Attributes:
        classes: (n,) index of each detection's class in `category_ids`.
        scores: (n,) score.
        correct: (n,) whether it is a true positive.
        ious: (n,) IoU with the ground-truth box it was given; 0 for a false positive.
        category_ids, category_names: of the C classes.
        num_objects: (C,) ground-truth boxes that are no crowd.
        num_ignored: detections on a crowd region.
        iou_threshold, max_detections: the settings; 0 stands for any overlap.
    """

    classes: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    ious: np.ndarray
    category_ids: tuple[Any, ...]
    category_names: tuple[str, ...]
    num_objects: np.ndarray
    num_ignored: int
    iou_threshold: float
    max_detections: int

    def above(self, score_threshold: float) -> "Matches":
        """Those with at least this score; a `ValueError` if scores or threshold are no probabilities."""
        check_probability("score_threshold", score_threshold)
        outside = self.scores[(self.scores < 0) | (self.scores > 1)]
        if outside.size:
            raise ValueError(f"results: score {outside[0]:g} is outside [0, 1]; calibration needs probabilities")
        return self.select(self.scores >= score_threshold)

    def select(self, kept: np.ndarray) -> "Matches":
        """The detections where `kept` (n,) is true."""
        return replace(
            self,
            classes=self.classes[kept],
            scores=self.scores[kept],
            correct=self.correct[kept],
            ious=self.ious[kept],
        )


def match_detections(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float,
    max_detections: int,
    image_ids: Sequence[int] | None = None,
) -> Matches:
    """Match results to ground truth as COCO does, at one IoU threshold in [0, 1]; 0 stands for any overlap.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    check_probability("iou_threshold", iou_threshold)
    truth = prepare_ground_truth(ground_truth)
    evaluation = run_coco_eval(
        truth,
        results,
        max_detections=(max_detections,),
        image_ids=image_ids,
        iou_thresholds=[max(iou_threshold, ANY_OVERLAP)],
        areas=("all",),
    )
    return matches_at(evaluation, truth, iou_threshold)


def matches_at(evaluation: COCOeval, ground_truth: CocoGroundTruth, iou_threshold: float) -> Matches:
    """The matches at one IoU threshold of what `run_coco_eval` returned, with "all" as its first area.

    For `iou_threshold` 0 it has to be matched at `ANY_OVERLAP`.

    Raises:
        ValueError: `evaluation` was not matched at `iou_threshold`.
    """
    parameters = evaluation.params
    (at,) = np.nonzero(np.isclose(parameters.iouThrs, iou_threshold))
    if not at.size:
        matched = ", ".join(f"{value:.2f}" for value in parameters.iouThrs)
        raise ValueError(f"iou_threshold {iou_threshold:g} was not matched; choose one of {matched}")
    category_ids = np.asarray(parameters.catIds).tolist()
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    num_objects = np.zeros(len(category_ids), dtype=int)
    num_ignored = 0
    # One entry for each image and class; the first lets concatenate work where there is no other.
    parts = [(np.zeros(0, dtype=int), np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0))]
    for image in evaluation.evalImgs:
        if image is None or image["aRng"] != parameters.areaRng[0]:
            continue
        index = index_of[image["category_id"]]
        num_objects[index] += np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
        matched_ids = np.asarray(image["dtMatches"][at[0]], dtype=int)
        counted = np.asarray(image["dtIgnore"][at[0]]) == 0
        num_ignored += int((~counted).sum())
        correct = (matched_ids > 0) & counted
        ious = np.zeros(len(matched_ids))
        if correct.any():
            # COCOeval keeps IoUs with the ground truths in the order of the file, which is that of their ids.
            objects = np.searchsorted(np.sort(image["gtIds"]), matched_ids[correct])
            ious[correct] = evaluation.ious[image["image_id"], image["category_id"]][np.flatnonzero(correct), objects]
        scores = np.asarray(image["dtScores"], dtype=float)[counted]
        parts.append((np.full(scores.size, index), scores, correct[counted], ious[counted]))
    all_classes, all_scores, all_correct, all_ious = map(np.concatenate, zip(*parts, strict=True))
    return Matches(
        classes=all_classes,
        scores=all_scores,
        correct=all_correct,
        ious=all_ious,
        category_ids=tuple(category_ids),
        category_names=tuple(ground_truth.category_names[category_id] for category_id in category_ids),
        num_objects=num_objects,
        num_ignored=num_ignored,
        iou_threshold=float(iou_threshold),
        max_detections=int(parameters.maxDets[-1]),
    )


class Report:
    """Base of the dataclasses that carry a measured value together with its settings."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with None for nan."""
        return to_plain(asdict(self))  # type: ignore[call-overload]


class BinnedReport(Report):
    """A report of score bins, with the settings that all of those have."""

    iou_threshold: float
    num_bins: int
    score_threshold: float
    max_detections: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        return (
            f"{iou_text(self.iou_threshold)}, {self.num_bins} bins, score >= {self.score_threshold:g}, "
            f"maxDets {self.max_detections}"
        )


def score_bins(scores: np.ndarray, num_bins: int) -> np.ndarray:
    """(n,) scores in [0, 1] to the (n,) equal-width bin of each, as `calibration_report` has them."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    edges = np.arange(num_bins + 1) / num_bins
    return np.minimum(np.searchsorted(edges, scores, side="right") - 1, num_bins - 1)


def check_probability(name: str, value: float) -> None:
    """A `ValueError` that names the setting unless it lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")


def mean_of_known(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are not nan; nan if none is."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan


def iou_text(iou_threshold: float) -> str:
    """The IoU threshold in words."""
    return f"IoU {iou_threshold:g}" if iou_threshold > 0 else "IoU > 0"


def to_plain(value: Any) -> Any:
    """Plain values for JSON: lists for tuples, None for nan and infinity, text for keys."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
