"""Which images a detector gets most wrong, and pictures of them next to their ground truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import DetectionDataset, decode_image
from ..visualization import draw_detections
from .coco import MatchedEvaluation
from .coco_input import CocoGroundTruth
from .lrp import keep_above
from .matches import Matches, matches_at

# Longest side of a drawing in pixels: sharp on a wide screen, and a report of ten images stays a few megabytes.
LONGEST_SIDE = 900


def image_errors(
    evaluation: MatchedEvaluation, truth: CocoGroundTruth, thresholds: Mapping[Any, float], iou_threshold: float
) -> dict[str, dict[str, float]]:
    """What goes into the LRP error, for each image by itself.

    Args:
        evaluation: matched at `iou_threshold` with `run_coco_eval`.
        truth: its ground truth.
        thresholds: category id -> smallest score of a detection that counts.
        iou_threshold: τ, smallest IoU of a true positive.

    Returns:
        Image id as text -> `error`, which is `missed` + `false` + Σ (1 - IoU) / (1 - τ) over the `right`, and these
        three counts. Not divided by the number of objects, so that an image with many faults comes first.
    """
    matches = matches_at(evaluation, truth, iou_threshold)
    kept = at_thresholds(matches, thresholds)
    count = len(matches.image_ids)
    misfits = np.where(kept.correct, 1.0 - kept.ious, 0.0) / (1.0 - iou_threshold)
    parts = zip(
        matches.image_ids,
        np.bincount(kept.images[kept.correct], minlength=count).tolist(),
        np.bincount(kept.images[~kept.correct], minlength=count).tolist(),
        np.bincount(kept.images, misfits, minlength=count).tolist(),
        strict=True,
    )
    errors = {}
    for image_id, right, false, misfit in parts:
        objects = sum(not one["iscrowd"] for one in truth.coco.imgToAnns[image_id])
        missed = objects - right
        errors[str(image_id)] = {"error": missed + false + misfit, "missed": missed, "false": false, "right": right}
    return errors


def at_thresholds(matches: Matches, thresholds: Mapping[Any, float]) -> Matches:
    """The detections with at least the score threshold of their class, by its category id."""
    limits = np.array([thresholds[category_id] for category_id in matches.category_ids], dtype=float)
    return matches.select(matches.scores >= limits[matches.classes]) if limits.size else matches


def rank_images(errors: Sequence[Mapping[str, Mapping[str, float]]], count: int) -> list[str]:
    """Ids, as text, of the images with the most error summed over the models, the worst first; none without error."""
    totals: dict[str, float] = {}
    for one in errors:
        for image_id, entry in one.items():
            totals[image_id] = totals.get(image_id, 0.0) + entry["error"]
    return sorted((image_id for image_id in totals if totals[image_id] > 0), key=lambda i: -totals[i])[:count]


def draw_image(
    dataset: DetectionDataset,
    image_id: str,
    truth: CocoGroundTruth,
    results: Sequence[tuple[Sequence[Mapping[str, Any]], Mapping[Any, float]]],
) -> tuple[str, list[Image.Image]]:
    """File name of an image, and its ground truth and detections drawn on it.

    Args:
        dataset: where the image is.
        image_id: id as text.
        truth: ground truth.
        results: of each model, its COCO results and the score threshold of each category id.

    Returns:
        The pictures are the ground truth, then one for each model.

    Raises:
        FileNotFoundError, ValueError: the image cannot be read; the message names the file.
    """
    row = dataset.dataset[[str(known) for known in dataset.dataset["image_id"]].index(image_id)]
    image = decode_image(row)
    original = row["image_id"]
    names: Mapping[int, str] = truth.category_names
    pictures = [draw_detections(image, truth.coco.imgToAnns[original], names)]
    for found, thresholds in results:
        kept = keep_above([result for result in found if result["image_id"] == original], thresholds)
        pictures.append(draw_detections(image, kept, names, threshold=0.0))
    for picture in pictures:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    path = (row["image"].get("path") if isinstance(row["image"], Mapping) else None) or f"image {image_id}"
    return str(path).replace("\\", "/").rsplit("/", 1)[-1], pictures
