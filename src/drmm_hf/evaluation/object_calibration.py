"""Object-level calibration: what all detections around an object say about its class."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco_input import CocoResults, GroundTruth, Results, prepare_ground_truth, prepare_results
from .matching import Report, box_iou, by_image, check_probability, check_scores, ranked_rows


@dataclass(frozen=True)
class ObjectCalibrationReport(Report):
    """Object-level calibration error together with everything it depends on.

    Attributes:
        oce: mean of `per_threshold`; nan if there are no objects.
        per_threshold: mean Brier score of the objects at each of `iou_thresholds`.
        missed: share of the objects that no detection reaches, at each of `iou_thresholds`.
        num_objects: ground-truth boxes that are no crowd.
        iou_thresholds, score_threshold, max_detections: the settings. OCE has no bins.
    """

    oce: float
    per_threshold: tuple[float, ...]
    missed: tuple[float, ...]
    num_objects: int
    iou_thresholds: tuple[float, ...]
    score_threshold: float
    max_detections: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        thresholds = ", ".join(f"{threshold:g}" for threshold in self.iou_thresholds)
        return f"mean over IoU {thresholds}, score >= {self.score_threshold:g}, maxDets {self.max_detections}"


def object_calibration_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_thresholds: Sequence[float] = (0.5, 0.75),
    score_threshold: float = 0.3,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> ObjectCalibrationReport:
    """OCE: the Brier score of what the detections around each object say about its class.

    Park et al., Uncertainty quantification in detection transformers: object-level calibration and image-level
    reliability, TPAMI 2026 (arXiv 2412.01782). The class vectors of all detections with IoU >= τ to an object,
    whatever their class, are averaged; the object scores Σ_c (mean_c - [c is its class])², or 1 if there is no
    such detection; OCE is the mean over objects and over τ. So it penalises misses, which D-ECE does not, and
    duplicates with low scores. Nothing is matched one to one, and crowd regions are no objects.

    COCO results hold one class a row, so the class vector of a detection is put together from the rows of its
    image with the same box; classes without a row count 0. Where a box stands twice with the same class, these
    are two detections. Results of many classes that were cut at 100 rows an image lose the low entries of the
    vectors, which barely count in a square.

    Args:
        ground_truth, results, max_detections, image_ids: as in `match_detections`.
        iou_thresholds: each τ in (0, 1].
        score_threshold: keep detections whose best class has at least this score, with their whole class
            vector. The default is about where the authors find the optimum.
    """
    thresholds = np.array(iou_thresholds, dtype=float)
    if not thresholds.size or not ((thresholds > 0.0) & (thresholds <= 1.0)).all():
        raise ValueError(f"iou_thresholds must be at least one, all in (0, 1], not {iou_thresholds}")
    check_probability("score_threshold", score_threshold)
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    check_scores(found.scores)
    rows = ranked_rows(found, max_detections, image_ids)
    num_classes, num_images = len(truth.category_ids), len(truth.image_ids)
    chosen = set(truth.chosen_images(image_ids))
    objects = by_image(np.flatnonzero(~truth.crowd), truth.images, num_images)
    detections = by_image(rows, found.images, num_images)
    briers = [np.zeros((len(thresholds), 0))]
    missed = [np.zeros((len(thresholds), 0), dtype=bool)]
    for image_id, present, seen in zip(truth.image_ids, objects, detections, strict=False):
        if image_id not in chosen or not present.size:
            continue
        boxes, vectors = _class_vectors(found, seen, num_classes)
        kept = vectors.max(axis=1, initial=0.0) >= score_threshold
        near = box_iou(truth.boxes[present], boxes[kept]) >= thresholds[:, None, None]  # (τ, object, detection)
        count = near.sum(axis=-1)
        mean = near @ vectors[kept] / np.maximum(count, 1)[..., None]
        # A missed object has the vector 0, whose score is the 1 of the definition.
        briers.append(((mean - np.eye(num_classes)[truth.classes[present]]) ** 2).sum(axis=-1))
        missed.append(count == 0)
    brier, none = np.concatenate(briers, axis=1), np.concatenate(missed, axis=1)
    num_objects = brier.shape[1]
    per_threshold = brier.sum(axis=1) / (num_objects or math.nan)
    return ObjectCalibrationReport(
        oce=float(per_threshold.mean()),
        per_threshold=tuple(per_threshold.tolist()),
        missed=tuple((none.sum(axis=1) / (num_objects or math.nan)).tolist()),
        num_objects=num_objects,
        iou_thresholds=tuple(thresholds.tolist()),
        score_threshold=float(score_threshold),
        max_detections=int(max_detections),
    )


def _class_vectors(found: CocoResults, rows: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """One image's detections, from the highest score of each class down, to n boxes (n, 4) and class scores (n, C)."""
    vectors: dict[tuple[Any, ...], np.ndarray] = {}
    times: Counter[Any] = Counter()
    columns = (found.classes[rows], found.boxes[rows], found.scores[rows])
    for label, box, score in zip(*(column.tolist() for column in columns), strict=True):
        times[label, *box] += 1
        vectors.setdefault((times[label, *box], *box), np.zeros(num_classes))[label] = score
    boxes = np.array([key[1:] for key in vectors], dtype=float).reshape(-1, 4)
    return boxes, np.array(list(vectors.values())).reshape(len(vectors), num_classes)
