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

    A detection that overlaps a kept one of higher score by more than `iou_threshold` is removed. With `merge_scores`
    the winner takes all (paper, Table 3): its score becomes the sum of its own and theirs, at most 1. The new results
    are ordered by the text of image and category id, and by score.
    """
    keys = [(str(result["image_id"]), str(result["category_id"])) for result in results]
    boxes = np.array([result["bbox"] for result in results], dtype=float).reshape(-1, 4)
    scores = np.array([result["score"] for result in results], dtype=float)
    order = sorted(np.argsort(-scores, kind="stable").tolist(), key=keys.__getitem__)
    winner_of = np.arange(len(results))
    for _, group in groupby(order, key=keys.__getitem__):
        rows = np.array(list(group))
        overlaps = np.triu(box_iou(boxes[rows], boxes[rows]), k=1) if len(rows) > 1 else np.zeros((1, 1))
        for better, worse in rows[np.argwhere(overlaps > iou_threshold)].tolist():
            if winner_of[better] == better and winner_of[worse] == worse:
                winner_of[worse] = better
    totals = np.bincount(winner_of[order], scores[order], len(results)).clip(max=1.0).tolist()
    return [
        rescored(results[row], totals[row]) if merge_scores else dict(results[row])
        for row in order
        if winner_of[row] == row
    ]


def nms_sweep(
    ground_truth: GroundTruth,
    results: Results,
    thresholds: Sequence[float] = NMS_THRESHOLDS,
    *,
    merge_scores: bool = False,
) -> dict[str, dict[str, float]]:
    """COCO numbers without and with NMS at several thresholds (paper, Fig. 7); arguments as in `suppress`.

    Returns:
        "none" and each threshold as text -> the dict of `evaluate_coco`. A model without duplicates gains nothing.
    """
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    sweep = {"none": evaluate_coco(truth, found)}
    # without names, about which a warning has been given
    rows = [{name: row[name] for name in ("image_id", "category_id", "bbox", "score")} for row in found.rows]
    for threshold in thresholds:
        sweep[f"{threshold:g}"] = evaluate_coco(truth, suppress(rows, threshold, merge_scores=merge_scores))
    return sweep
