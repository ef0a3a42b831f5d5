"""Duplicates: several detections of one object, and what removing or merging them changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from .calibration_parts import with_score
from .coco import evaluate_coco
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth, prepare_results

NMS_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DUPLICATE_SCORES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

Detection = Mapping[str, Any]


@dataclass(frozen=True)
class DuplicateCount:
    """Detections beyond the first of each object.

    Attributes:
        duplicates_per_image: mean over the images of detections that lie on an object which a higher-scored detection
            of the same class has already.
        duplicates_per_object: the same divided by the number of objects that have a detection; nan if none has.
        num_images, score_threshold, iou_threshold: what it was counted with.
    """

    duplicates_per_image: float
    duplicates_per_object: float
    num_images: int
    score_threshold: float
    iou_threshold: float


def count_duplicates(
    ground_truth: GroundTruth, results: Results, *, score_threshold: float = 0.1, iou_threshold: float = 0.5
) -> DuplicateCount:
    """Count the detections beyond the first of each object.

    Every detection with a score of at least `score_threshold` belongs to the ground-truth box of its class that it
    overlaps most, if by at least `iou_threshold`; crowd regions are no objects.

    Args:
        ground_truth, results: as in `evaluate_coco`.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_coco`.
    """
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    claimed = detected = 0
    for detections, overlap in object_overlaps(truth, found):
        overlap = overlap[[detection["score"] >= score_threshold for detection in detections]]
        owner = overlap.argmax(axis=1)[overlap.max(axis=1) >= iou_threshold]
        claimed += owner.size
        detected += np.unique(owner).size
    images = len(truth.image_ids)
    return DuplicateCount(
        duplicates_per_image=(claimed - detected) / max(images, 1),
        duplicates_per_object=(claimed - detected) / detected if detected else float("nan"),
        num_images=images,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )


def object_overlaps(truth: CocoGroundTruth, found: COCO) -> Iterator[tuple[list[Detection], np.ndarray]]:
    """The n detections of each image and class, with their (n, m) IoU with its m objects, where both are; m counts no
    crowd regions."""
    for (image_id, category_id), detections in _by_image_and_class(list(found.anns.values())):
        objects = [a for a in truth.coco.imgToAnns[image_id] if a["category_id"] == category_id and not a["iscrowd"]]
        if objects:
            yield detections, box_iou(_boxes(detections), _boxes(objects))


def suppress(results: Sequence[Detection], iou_threshold: float, *, merge_scores: bool = False) -> list[dict[str, Any]]:
    """Greedy non-maximum suppression of COCO results, per image and class.

    Args:
        results: COCO results.
        iou_threshold: a detection that overlaps a kept one of higher score by more than this is removed.
        merge_scores: winner takes all (paper, Table 3): the scores of the removed are added to the one that removed
            them, to at most 1.

    Returns:
        New results; the order of detections within an image may differ.
    """
    kept: list[dict[str, Any]] = []
    for _, group in _by_image_and_class(results):
        order = sorted(group, key=lambda detection: -detection["score"])
        overlap = box_iou(_boxes(order), _boxes(order))
        winner_of = np.full(len(order), -1)
        for i in range(len(order)):
            if winner_of[i] == -1:
                winner_of[i:][(winner_of[i:] == -1) & (overlap[i, i:] > iou_threshold)] = i
                winner_of[i] = i
        totals = np.bincount(winner_of, weights=[d["score"] for d in order], minlength=len(order))
        for i, detection in enumerate(order):
            if winner_of[i] == i:
                merged = with_score(detection, min(1.0, float(totals[i])))
                kept.append(merged if merge_scores else dict(detection))
    return kept


def nms_sweep(
    ground_truth: GroundTruth,
    results: Sequence[Detection],
    thresholds: Sequence[float] = NMS_THRESHOLDS,
    *,
    merge_scores: bool = False,
) -> dict[str, dict[str, float]]:
    """COCO numbers without and with NMS at several thresholds (paper, Fig. 7).

    Args:
        ground_truth, results: as in `evaluate_coco`.
        thresholds, merge_scores: of `suppress`; winner takes all with `merge_scores=True`.

    Returns:
        "none" and each threshold as text -> the dict of `evaluate_coco`. A model without duplicates gains nothing.
    """
    sweep = {"none": evaluate_coco(ground_truth, results)}
    for threshold in thresholds:
        sweep[f"{threshold:g}"] = evaluate_coco(ground_truth, suppress(results, threshold, merge_scores=merge_scores))
    return sweep


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) boxes [x, y, width, height] to (n, m) intersection over union; 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], others[None, :, :2] + others[None, :, 2:])
    intersection = (high - low).clip(min=0).prod(axis=-1)
    union = boxes[:, None, 2:].prod(axis=-1) + others[None, :, 2:].prod(axis=-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _boxes(entries: Sequence[Detection]) -> np.ndarray:
    return np.array([entry["bbox"] for entry in entries], dtype=float).reshape(-1, 4)


def _by_image_and_class(results: Sequence[Detection]) -> list[tuple[tuple[Any, Any], list[Detection]]]:
    def key(detection: Detection) -> tuple[Any, Any]:
        return detection["image_id"], detection["category_id"]

    # ids of one file are all numbers or all texts, or a mixture that only their text can order
    ordered = sorted(results, key=lambda detection: tuple(str(part) for part in key(detection)))
    return [(pair, list(group)) for pair, group in groupby(ordered, key=key)]
