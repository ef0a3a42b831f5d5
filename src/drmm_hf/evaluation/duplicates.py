"""Duplicates: several detections of one object, and what removing or merging them changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from .coco import evaluate_coco, rescored
from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results
from .matches import box_iou, nearest_objects, ranked_rows

NMS_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DUPLICATE_SCORES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class DuplicateCount:
    """Detections that lie on an object which a higher-scored detection of the same class has already."""

    duplicates_per_image: float
    duplicates_per_object: float  # divided by the number of objects that have a detection; nan if none has
    num_images: int
    score_threshold: float
    iou_threshold: float


def count_duplicates(
    ground_truth: GroundTruth, results: Results, *, score_threshold: float = 0.1, iou_threshold: float = 0.5
) -> DuplicateCount:
    """Count the detections beyond the first of each object.

    Every detection with a score of at least `score_threshold` belongs to the ground-truth box of its class that it
    overlaps most, if by at least `iou_threshold`; crowd regions are no objects. `ground_truth` and `results` are as in
    `evaluate_coco`.
    """
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    rows = ranked_rows(found)
    rows = rows[found.scores[rows] >= score_threshold]
    objects, overlaps = nearest_objects(found, rows)
    owners = objects[(objects >= 0) & (overlaps >= iou_threshold)]
    detected = np.unique(owners).size
    return DuplicateCount(
        duplicates_per_image=(owners.size - detected) / max(len(truth.image_ids), 1),
        duplicates_per_object=(owners.size - detected) / (detected or math.nan),
        num_images=len(truth.image_ids),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )


def suppress(
    results: Sequence[Mapping[str, Any]], iou_threshold: float, *, merge_scores: bool = False
) -> list[dict[str, Any]]:
    """Greedy non-maximum suppression of COCO results, per image and class.

    Args:
        results: COCO results.
        iou_threshold: a detection that overlaps a kept one of higher score by more than this is removed.
        merge_scores: winner takes all (paper, Table 3): the scores of the removed are added to the one that removed
            them, to at most 1.

    Returns:
        New results, ordered by the text of image and category id, and by score.
    """

    def group(result: Mapping[str, Any]) -> tuple[str, str]:
        return str(result["image_id"]), str(result["category_id"])

    kept: list[dict[str, Any]] = []
    for _, entries in groupby(sorted(results, key=lambda result: (group(result), -result["score"])), key=group):
        order = list(entries)
        boxes = np.array([entry["bbox"] for entry in order], dtype=float)
        overlap = box_iou(boxes, boxes)
        winner_of = np.full(len(order), -1)
        for i in range(len(order)):
            if winner_of[i] == -1:
                winner_of[i:][(winner_of[i:] == -1) & (overlap[i, i:] > iou_threshold)] = i
                winner_of[i] = i
        totals = np.bincount(winner_of, weights=[entry["score"] for entry in order], minlength=len(order))
        for i in np.flatnonzero(winner_of == np.arange(len(order))).tolist():
            kept.append(rescored(order[i], min(1.0, float(totals[i]))) if merge_scores else dict(order[i]))
    return kept


def nms_sweep(
    ground_truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float] = NMS_THRESHOLDS,
    *,
    merge_scores: bool = False,
) -> dict[str, dict[str, float]]:
    """COCO numbers without and with NMS at several thresholds (paper, Fig. 7); arguments as in `suppress`.

    Returns:
        "none" and each threshold as text -> the dict of `evaluate_coco`. A model without duplicates gains nothing.
    """
    truth = prepare_ground_truth(ground_truth)
    sweep = {"none": evaluate_coco(truth, results)}
    for threshold in thresholds:
        sweep[f"{threshold:g}"] = evaluate_coco(truth, suppress(results, threshold, merge_scores=merge_scores))
    return sweep
