"""COCO box AP and AR, computed by pycocotools from the raw annotations."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth, prepare_results

AREAS = ("all", "small", "medium", "large")
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


def detections_to_coco(
    detections: Sequence[Mapping[str, torch.Tensor]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    with_scales: bool = False,
) -> list[dict[str, Any]]:
    """Turn detections into COCO results in the data set's own ids.

    Args:
        detections: per image `scores` (n,), `labels` (n,) in 0..C-1 and `boxes` (n, 4), absolute xyxy in
            pixels of the original image, as `post_process_object_detection` returns them.
        image_ids: original id of each image, in the same order.
        category_ids: original category id of each label; -1 for a label that the data set does not have,
            whose detections are left out because nothing can tell whether they are right.
        with_scales: also keep `scales` (n, 4) of each image, γ of the left, top, right and bottom edge in pixels of
            the original image, for `interval_report`. COCO evaluation and the test server ignore the key.

    Returns:
        `{"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}` per detection, with
        `with_scales` also `"scales": [l, t, r, b]`; all plain Python numbers, images in the given order.

    Raises:
        ValueError: the lengths differ, a label has no category, or there are no scales to keep.
    """
    if len(detections) != len(image_ids):
        raise ValueError(f"detections of {len(detections)} images but {len(image_ids)} image_ids; give one id each")
    results: list[dict[str, Any]] = []
    for image_id, detection in zip(image_ids, detections, strict=True):
        boxes = detection["boxes"].detach().cpu().double().reshape(-1, 4)
        sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.0)
        labels = detection["labels"].tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(category_ids):
            raise ValueError(
                f"detections of image {image_id}: labels run from {min(labels)} to {max(labels)} but "
                f"category_ids has {len(category_ids)} entries; model and data set need the same classes"
            )
        rows = zip(
            labels,
            torch.cat([boxes[:, :2], sizes], dim=1).tolist(),
            detection["scores"].tolist(),
            strict=True,
        )
        found = [
            {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": box, "score": score}
            for label, box, score in rows
        ]
        if with_scales:
            if "scales" not in detection:
                raise ValueError(
                    f"detections of image {image_id} have no scales (head='set_prediction' predicts none); "
                    "set with_scales=False"
                )
            found = [{**one, "scales": s} for one, s in zip(found, detection["scales"].tolist(), strict=True)]
        results.extend(one for one in found if one["category_id"] != -1)
    return results


def evaluate_coco(
    ground_truth: GroundTruth,
    results: Results,
    *,
    max_detections: tuple[int, ...] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
    per_class: bool = False,
) -> dict[str, float]:
    """The twelve COCO box numbers, as fractions of 1.

    Evaluation reads the raw annotations, so a detection on a crowd region is ignored, neither right nor
    wrong. An image without results counts as one where nothing was found.

    Args:
        ground_truth: path of a COCO instances file, its content, or a `pycocotools.coco.COCO`; left
            unchanged.
        results: COCO results as a list or as the path of a JSON file; may be empty.
        max_detections: increasing numbers of detections for AR, counted per image and class as COCO does; AP
            and the AR of the sizes use the last.
        image_ids: evaluate these images only (default: all of the file).
        per_class: add `AP/<category name>` and `AR/<category name>` (at the last of `max_detections`) for every
            category.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (one AR for each of `max_detections`), ARs, ARm, ARl.
        A number for which there is no ground truth (no small objects, say) is -1, as pycocotools has it.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field.
    """
    truth = prepare_ground_truth(ground_truth)
    evaluation = run_coco_eval(truth, results, max_detections=max_detections, image_ids=image_ids)
    return summarize(evaluation, truth, per_class=per_class)


def run_coco_eval(
    ground_truth: CocoGroundTruth,
    results: Results,
    *,
    max_detections: tuple[int, ...] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
    iou_thresholds: Sequence[float] | None = None,
    areas: Sequence[str] = AREAS,
) -> COCOeval:
    """Match results to ground truth with `COCOeval`, silently; `evalImgs` is filled, nothing is accumulated.

    Args:
        ground_truth, results, max_detections, image_ids: as in `evaluate_coco`.
        iou_thresholds: COCO's .50:.05:.95 unless given.
        areas: which of all, small, medium, large to match for.
    """
    if not max_detections or list(max_detections) != sorted(set(max_detections)) or max_detections[0] < 1:
        raise ValueError(f"max_detections must be increasing positive numbers, not {max_detections}")
    unknown = sorted(set(image_ids or ()) - ground_truth.image_ids)
    if unknown:
        raise ValueError(f"image_ids: {unknown[0]} is no image of {ground_truth.source}")
    detections = prepare_results(results, ground_truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(ground_truth.coco, detections, "bbox")
        parameters = evaluation.params
        parameters.maxDets = list(max_detections)
        if image_ids is not None:
            parameters.imgIds = sorted(set(image_ids))
        if iou_thresholds is not None:
            parameters.iouThrs = np.asarray(iou_thresholds, dtype=float)
        keep = [AREAS.index(area) for area in areas]
        parameters.areaRng = [parameters.areaRng[index] for index in keep]
        parameters.areaRngLbl = [AREAS[index] for index in keep]
        evaluation.evaluate()
    return evaluation


def summarize(
    evaluation: COCOeval, ground_truth: CocoGroundTruth, *, per_class: bool = False, max_detections: int | None = None
) -> dict[str, float]:
    """The numbers of `evaluate_coco` from a `COCOeval` that is matched over the four areas.

    Args:
        evaluation: what `run_coco_eval` returned; thresholds other than COCO's ten are left out.
        ground_truth: what was matched against.
        per_class: as in `evaluate_coco`.
        max_detections: which of the matched limits AP and the AR of the sizes and classes are for (default: the last).
    """
    if not evaluation.eval:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
    parameters = evaluation.params
    ten = [i for i, value in enumerate(parameters.iouThrs) if np.isclose(value, COCO_THRESHOLDS).any()]
    limits = parameters.maxDets
    at = len(limits) - 1 if max_detections is None else list(limits).index(max_detections)
    precision = evaluation.eval["precision"][ten][..., at]  # (IoU, recall, class, area)
    recall = evaluation.eval["recall"][ten]  # (IoU, class, area, max detections)
    metrics = {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[0, ..., 0]),
        "AP75": _mean(precision[5, ..., 0]),
    }
    sizes = dict(zip("sml", (1, 2, 3), strict=True))
    metrics |= {f"AP{size}": _mean(precision[..., index]) for size, index in sizes.items()}
    metrics |= {f"AR{limit}": _mean(recall[..., 0, index]) for index, limit in enumerate(limits)}
    metrics |= {f"AR{size}": _mean(recall[..., index, at]) for size, index in sizes.items()}
    if per_class:
        names = [ground_truth.category_names[category_id] for category_id in parameters.catIds]
        metrics |= {f"AP/{name}": _mean(precision[:, :, index, 0]) for index, name in enumerate(names)}
        metrics |= {f"AR/{name}": _mean(recall[:, index, 0, at]) for index, name in enumerate(names)}
    return metrics


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0
