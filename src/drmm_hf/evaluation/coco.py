"""COCO results of detections, and COCO's box AP and AR of them by pycocotools, or by hotcoco if it is there."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from ..files import collection_paused
from .coco_input import CocoGroundTruth, CocoResults, GroundTruth, Results, prepare_ground_truth, prepare_results

try:
    import hotcoco

    hotcoco.COCO.from_arrays  # noqa: B018 (older releases have none)
except (ImportError, AttributeError):
    hotcoco = None  # type: ignore[assignment]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def detections_to_coco(
    detections: Sequence[Mapping[str, torch.Tensor]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    with_scales: bool = False,
    with_parts: bool = False,
) -> list[dict[str, Any]]:
    """Turn detections into COCO results in the data set's own ids.

    Args:
        detections: per image `scores` (n,), `labels` (n,) in 0..C-1 and `boxes` (n, 4), absolute xyxy in
            pixels of the original image, as `post_process_object_detection` returns them.
        image_ids: original id of each image, in the same order.
        category_ids: original category id of each label; -1 leaves out one that the data set does not have.
        with_scales: also keep `scales` (n, 4), γ of the left, top, right and bottom edge in pixels of the original
            image, for `interval_report`.
        with_parts: also keep `objectness` (n,), the factor o of the score p·o, for `part_calibration_report`.

    Returns:
        `{"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}` per detection, and what else is
        kept; all plain Python numbers, images in the given order.

    Raises:
        ValueError: the lengths differ, a label has no category, or there are no scales or parts to keep.
    """
    extras = [name for name, wanted in (("scales", with_scales), ("objectness", with_parts)) if wanted]
    results: list[dict[str, Any]] = []
    for image_id, detection in zip(image_ids, detections, strict=True):
        boxes = detection["boxes"].detach().cpu().double().reshape(-1, 4)
        boxes = torch.cat([boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.0)], dim=1)
        labels = detection["labels"].tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(category_ids):
            raise ValueError(
                f"detections of image {image_id}: labels run from {min(labels)} to {max(labels)} but "
                f"category_ids has {len(category_ids)} entries; model and data set need the same classes"
            )
        for name in extras:
            if name not in detection:
                raise ValueError(f"detections of image {image_id} have no {name}: a mixture head alone predicts them")
        columns = [boxes.tolist(), detection["scores"].tolist(), *(detection[name].tolist() for name in extras)]
        for label, *values in zip(labels, *columns, strict=True):
            if category_ids[label] != -1:
                fields = dict(zip(("bbox", "score", *extras), values, strict=True))
                results.append({"image_id": int(image_id), "category_id": int(category_ids[label]), **fields})
    return results


def rescored(result: Mapping[str, Any], score: float) -> dict[str, Any]:
    """A copy of a result with another score, of which its objectness is no longer a factor."""
    return {**{name: value for name, value in result.items() if name != "objectness"}, "score": score}


def evaluate_coco(
    ground_truth: GroundTruth,
    results: Results,
    *,
    max_detections: tuple[int, ...] = (1, 10, 100),
    per_class: bool = False,
) -> dict[str, float]:
    """The twelve COCO box numbers, as fractions of 1; a detection on a crowd region is neither right nor wrong.

    Args:
        ground_truth: path of a COCO instances file, its content, or a `pycocotools.coco.COCO`.
        results: COCO results as a list or as the path of a JSON file; may be empty, as may be those of an image.
        max_detections: increasing numbers of detections for AR, counted per image and class as COCO does; AP
            and the AR of the sizes use the last.
        per_class: add `AP/<category name>` and `AR/<category name>` (at the last of `max_detections`) for every
            category.

    Returns:
        `METRICS`, with one AR for each of `max_detections`. A number for which there is no ground truth (no small
        objects, say) is -1, as pycocotools has it.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field.
    """
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    return summarize(run_coco_eval(found, max_detections), truth, per_class=per_class)


def run_coco_eval(results: CocoResults, max_detections: tuple[int, ...] = (1, 10, 100)) -> Any:
    """A `COCOeval` that has evaluated and accumulated, silently; arguments as in `evaluate_coco`.

    It is hotcoco's where that is installed, and else pycocotools': both give the same, hotcoco many times faster.
    """
    if not max_detections or list(max_detections) != sorted(set(max_detections)) or max_detections[0] < 1:
        raise ValueError(f"max_detections must be increasing positive numbers, not {max_detections}")
    truth = results.truth
    with contextlib.redirect_stdout(io.StringIO()), collection_paused():
        if hotcoco is None:
            evaluation = COCOeval(truth.coco, results.coco, "bbox")
        else:
            # it knows numbers as ids only, so images and classes are their places
            images = [{"id": place} for place, _ in enumerate(truth.image_ids)]
            categories = [{"id": place, "name": name} for place, name in enumerate(truth.class_names)]
            areas = np.array([one["area"] for one in truth.coco.dataset["annotations"]], dtype=float)
            annotated = hotcoco.COCO.from_arrays(
                images, categories, truth.images, truth.classes, truth.boxes, area=areas, iscrowd=truth.crowd
            )
            rows = np.column_stack([results.images, results.boxes, results.scores, results.classes])
            evaluation = hotcoco.COCOeval(annotated, annotated.loadRes(rows), "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def summarize(
    evaluation: Any, ground_truth: CocoGroundTruth, *, per_class: bool = False, max_detections: int | None = None
) -> dict[str, float]:
    """The numbers of `evaluate_coco` from what `run_coco_eval` returned for this ground truth.

    `max_detections` is which of the limits AP and the AR of the sizes and classes are for (default: the last).
    """
    limits = evaluation.params.maxDets
    at = len(limits) - 1 if max_detections is None else list(limits).index(max_detections)
    precision = evaluation.eval["precision"][..., at]  # (IoU, recall, class, area)
    recall = evaluation.eval["recall"]  # (IoU, class, area, max detections)
    parts = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
    parts |= {f"AP{size}": precision[..., area] for area, size in enumerate("sml", start=1)}
    parts |= {f"AR{limit}": recall[..., 0, index] for index, limit in enumerate(limits)}
    parts |= {f"AR{size}": recall[..., area, at] for area, size in enumerate("sml", start=1)}
    if per_class:
        names = list(enumerate(ground_truth.class_names))
        parts |= {f"AP/{name}": precision[:, :, index, 0] for index, name in names}
        parts |= {f"AR/{name}": recall[:, index, 0, at] for index, name in names}
    return {name: mean_of_valid(values) for name, values in parts.items()}


def mean_of_valid(values: np.ndarray) -> float:
    """Mean of the values that are not the -1 that pycocotools has where there is no ground truth; -1 if none is."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
