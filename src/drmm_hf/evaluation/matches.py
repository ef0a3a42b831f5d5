"""Detections matched to ground truth once, for all measures of their scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from .coco import MatchedEvaluation, run_coco_eval
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth

# COCO matches at IoU >= threshold, so that 0 would give a box to a detection that does not touch it.
ANY_OVERLAP = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Matches:
    """Detections after COCO's greedy matching at one IoU threshold, without those on a crowd region.

    Attributes:
        rows: (n,) index of each detection in the results.
        images: (n,) index of its image in `image_ids`.
        classes: (n,) index of its class in `category_ids`.
        scores: (n,) score.
        correct: (n,) whether it is a true positive.
        objects: (n,) id of the annotation it was given, in the checked ground truth; 0 for a false positive.
        ious: (n,) IoU with the ground-truth box it was given; 0 for a false positive.
        category_ids, category_names: of the C classes.
        num_objects: (C,) ground-truth boxes that are no crowd.
        image_ids: of the images.
        ignored_scores: scores of the detections on a crowd region.
        iou_threshold, max_detections: the settings; 0 stands for any overlap.
    """

    rows: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    category_ids: tuple[Any, ...]
    category_names: tuple[str, ...]
    num_objects: np.ndarray
    image_ids: tuple[Any, ...]
    ignored_scores: np.ndarray
    iou_threshold: float
    max_detections: int

    @property
    def num_ignored(self) -> int:
        """Detections on a crowd region."""
        return len(self.ignored_scores)

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
            **{
                name: getattr(self, name)[kept]
                for name in ("rows", "images", "classes", "scores", "correct", "objects", "ious")
            },
        )


def match_detections(
    ground_truth: GroundTruth,
    results: Results | COCO,
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


def matches_at(evaluation: MatchedEvaluation, ground_truth: CocoGroundTruth, iou_threshold: float) -> Matches:
    """The matches at one IoU threshold of what `run_coco_eval` returned, with "all" as its first area.

    For `iou_threshold` 0 it has to be matched at `ANY_OVERLAP`.

    Raises:
        ValueError: `evaluation` was not matched at `iou_threshold`.
    """
    parameters, table = evaluation.params, evaluation.table
    (at,) = np.nonzero(np.isclose(parameters.iouThrs, iou_threshold))
    if not at.size:
        matched = ", ".join(f"{value:.2f}" for value in parameters.iouThrs)
        raise ValueError(f"iou_threshold {iou_threshold:g} was not matched; choose one of {matched}")
    counted = ~table.ignored[at[0]]
    rows, objects = table.rows[counted], table.objects[at[0], counted]
    correct = objects > 0
    ious = np.zeros(len(rows))
    ious[correct] = _paired_ious(evaluation, rows[correct], objects[correct])
    category_ids = np.asarray(parameters.catIds).tolist()
    return Matches(
        rows=rows,
        images=table.images[counted],
        classes=table.classes[counted],
        scores=table.scores[counted],
        correct=correct,
        objects=objects,
        ious=ious,
        category_ids=tuple(category_ids),
        category_names=tuple(ground_truth.category_names[category_id] for category_id in category_ids),
        num_objects=table.num_objects,
        image_ids=tuple(np.asarray(parameters.imgIds).tolist()),
        ignored_scores=table.scores[~counted],
        iou_threshold=float(iou_threshold),
        max_detections=int(parameters.maxDets[-1]),
    )


def _paired_ious(evaluation: MatchedEvaluation, rows: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(n,) IoU of each detection, by its row, with one annotation, by its id; they overlap."""
    found = np.array([evaluation.cocoDt.anns[row + 1]["bbox"] for row in rows.tolist()]).reshape(-1, 4)
    true = np.array([evaluation.cocoGt.anns[one]["bbox"] for one in objects.tolist()]).reshape(-1, 4)
    high = np.minimum(found[:, :2] + found[:, 2:], true[:, :2] + true[:, 2:])
    inside = (high - np.maximum(found[:, :2], true[:, :2])).prod(axis=1)
    return inside / (found[:, 2:].prod(axis=1) + true[:, 2:].prod(axis=1) - inside)


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


def check_overlap(name: str, value: float) -> float:
    """The value; ValueError that names it unless it is an IoU above 0, since 0 would match what does not touch."""
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], not {value}")
    return value


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
