"""Proper scores of confidences: the Brier score of detections, and of objects (OCE)."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results
from .duplicates import box_iou
from .matches import BinnedReport, Matches, Report, check_overlap, check_probability, match_detections, score_bins


@dataclass(frozen=True)
class BrierReport(BinnedReport):
    """Brier score of detections together with everything it depends on.

    Attributes:
        brier: mean of (score - correct)², in [0, 1]; nan if there are no detections.
        reliability: Σ_b n_b/n (conf_b - acc_b)²: lower is better calibrated.
        resolution: Σ_b n_b/n (acc_b - acc)²: higher tells right from wrong better.
        uncertainty: acc (1 - acc) over all detections, which no score can change.
        within_bin: what is left, brier - (reliability - resolution + uncertainty): the spread of scores inside
            the bins; 0 if each bin holds one score.
        num_detections, num_ignored: detections counted, and those left out because they lie on a crowd region.
        iou_threshold, num_bins, score_threshold, max_detections: the settings; `brier` and `uncertainty` do not
            depend on the bins.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float
    num_detections: int
    num_ignored: int
    iou_threshold: float
    num_bins: int
    score_threshold: float
    max_detections: int


def brier_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.5,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> BrierReport:
    """Brier score of detections and Murphy's decomposition of it.

    Brier, Verification of forecasts expressed in terms of probability, 1950; Murphy, A new vector partition of
    the probability score, 1973. A detection is right or wrong as in `calibration_report`; classes are pooled.

    Args:
        ground_truth, results, image_ids, iou_threshold, num_bins, score_threshold, max_detections: as in
            `calibration_report`.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    matches = match_detections(
        ground_truth,
        results,
        iou_threshold=check_overlap("iou_threshold", iou_threshold),
        max_detections=max_detections,
        image_ids=image_ids,
    )
    return brier_report_from_matches(matches, num_bins=num_bins, score_threshold=score_threshold)


def brier_report_from_matches(matches: Matches, *, num_bins: int = 10, score_threshold: float = 0.0) -> BrierReport:
    """The report of `brier_report` from detections that are matched already."""
    matches = matches.above(score_threshold)
    scores, correct = matches.scores, matches.correct.astype(float)
    bins = score_bins(scores, num_bins)
    brier = reliability = resolution = uncertainty = math.nan
    if scores.size:
        counts = np.bincount(bins, minlength=num_bins)
        filled = counts > 0
        weights = counts[filled] / scores.size
        confidence = np.bincount(bins, weights=scores, minlength=num_bins)[filled] / counts[filled]
        accuracy = np.bincount(bins, weights=correct, minlength=num_bins)[filled] / counts[filled]
        precision = float(correct.mean())
        brier = float(np.mean((scores - correct) ** 2))
        reliability = float(weights @ (confidence - accuracy) ** 2)
        resolution = float(weights @ (accuracy - precision) ** 2)
        uncertainty = precision * (1.0 - precision)
    return BrierReport(
        brier=brier,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bin=brier - (reliability - resolution + uncertainty),
        num_detections=int(scores.size),
        num_ignored=matches.num_ignored,
        iou_threshold=matches.iou_threshold,
        num_bins=num_bins,
        score_threshold=float(score_threshold),
        max_detections=matches.max_detections,
    )


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
        ground_truth, results, image_ids: as in `evaluate_coco`; scores must lie in [0, 1].
        iou_thresholds: each τ in (0, 1].
        score_threshold: keep detections whose best class has at least this score, with their whole class
            vector. The default is about where the authors find the optimum.
        max_detections: highest-scored rows counted per image and class, as in COCO.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    thresholds = np.array([check_overlap("iou_thresholds", threshold) for threshold in iou_thresholds])
    if not thresholds.size:
        raise ValueError("iou_thresholds is empty; give at least one")
    check_probability("score_threshold", score_threshold)
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, not {max_detections}")
    truth = prepare_ground_truth(ground_truth)
    unknown = sorted(set(image_ids or ()) - truth.image_ids)
    if unknown:
        raise ValueError(f"image_ids: {unknown[0]} is no image of {truth.source}")
    found = prepare_results(results, truth)
    index_of = {category_id: index for index, category_id in enumerate(truth.category_names)}
    briers = [np.zeros((len(thresholds), 0))]
    missed = [np.zeros((len(thresholds), 0), dtype=bool)]
    for image_id in sorted(truth.image_ids if image_ids is None else set(image_ids), key=str):
        objects = [annotation for annotation in truth.coco.imgToAnns[image_id] if not annotation["iscrowd"]]
        boxes, vectors = _class_vectors(found.imgToAnns[image_id], index_of, max_detections)
        kept = vectors.max(axis=1, initial=0.0) >= score_threshold
        boxes, vectors = boxes[kept], vectors[kept]
        if not objects:
            continue
        target = np.eye(len(index_of))[[index_of[annotation["category_id"]] for annotation in objects]]
        overlaps = box_iou(np.array([annotation["bbox"] for annotation in objects], dtype=float), boxes)
        near = overlaps >= thresholds[:, None, None]  # (τ, object, detection)
        count = near.sum(axis=-1)
        mean = near @ vectors / np.maximum(count, 1)[..., None]
        # A missed object has the vector 0, whose score is the 1 of the definition.
        briers.append(((mean - target) ** 2).sum(axis=-1))
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


def _class_vectors(
    rows: Sequence[dict[str, Any]], index_of: dict[Any, int], max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """One image's results to (n, 4) boxes [x, y, width, height] and their (n, C) class scores."""
    vectors: dict[tuple[Any, ...], np.ndarray] = {}
    rows_of_class: Counter[Any] = Counter()
    rows_of_box: Counter[Any] = Counter()
    for row in sorted(rows, key=lambda row: -row["score"]):
        if not 0.0 <= row["score"] <= 1.0:
            raise ValueError(f"results: score {row['score']:g} is outside [0, 1]; calibration needs probabilities")
        category_id, box = row["category_id"], tuple(row["bbox"])
        rows_of_class[category_id] += 1
        if rows_of_class[category_id] > max_detections:
            continue
        copy = rows_of_box[category_id, box]
        rows_of_box[category_id, box] += 1
        vectors.setdefault((copy, box), np.zeros(len(index_of)))[index_of[category_id]] = row["score"]
    boxes = np.array([box for _, box in vectors], dtype=float).reshape(-1, 4)
    return boxes, np.array(list(vectors.values())).reshape(len(vectors), len(index_of))
