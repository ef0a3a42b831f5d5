"""COCO box AP and AR, computed by pycocotools from the raw annotations."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..files import collection_paused
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth, prepare_results

AREAS = ("all", "small", "medium", "large")
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())


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
        category_ids: original category id of each label; -1 for a label that the data set does not have,
            whose detections are left out because nothing can tell whether they are right.
        with_scales: also keep `scales` (n, 4) of each image, γ of the left, top, right and bottom edge in pixels of
            the original image, for `interval_report`. COCO evaluation ignores the key.
        with_parts: also keep `objectness` (n,) of each image, the factor o of the score p·o, for
            `part_calibration_report`. COCO evaluation ignores the key.

    Returns:
        `{"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}` per detection, with
        `with_scales` also `"scales": [l, t, r, b]`, with `with_parts` also `"objectness"`; all plain Python numbers,
        images in the given order.

    Raises:
        ValueError: the lengths differ, a label has no category, or there are no scales or parts to keep.
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
        found: list[dict[str, Any]] = [
            {"image_id": int(image_id), "category_id": int(category_ids[label]), "bbox": box, "score": score}
            for label, box, score in rows
        ]
        for name, wanted, setting in (("scales", with_scales, "scales"), ("objectness", with_parts, "parts")):
            if not wanted:
                continue
            if name not in detection:
                raise ValueError(
                    f"detections of image {image_id} have no {name} (head='set_prediction' predicts none); "
                    f"set with_{setting}=False"
                )
            for one, value in zip(found, detection[name].tolist(), strict=True):
                one[name] = value
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


@dataclass(frozen=True)
class MatchTable:
    """All n detections that were matched, at all T IoU thresholds, over the first area of a `COCOeval`.

    Attributes:
        rows: (n,) index of each detection in the results.
        images, classes: (n,) index of its image and of its class in `params.imgIds` and `params.catIds`.
        scores: (n,).
        objects: (T, n) id of the annotation it was given, 0 for none.
        ignored: (T, n) whether COCO counts it neither as right nor as wrong.
        num_objects: (C,) annotations of each class that are not ignored.
    """

    rows: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray
    num_objects: np.ndarray


class MatchedEvaluation(COCOeval):
    """A `COCOeval` whose matches can be read as arrays."""

    def first_area(self) -> list[dict[str, Any] | None]:
        """What `evalImgs` has for the first area: image by image for the first class, and so on."""
        step = len(self.params.imgIds)
        starts = range(0, len(self.evalImgs), step * len(self.params.areaRng) or 1)
        return [entry for start in starts for entry in self.evalImgs[start : start + step]]

    @cached_property
    def table(self) -> MatchTable:
        """The matches, put together once for all measures."""
        num_images, num_classes, num_thresholds = map(
            len, (self.params.imgIds, self.params.catIds, self.params.iouThrs)
        )
        found = [(place, entry) for place, entry in enumerate(self.first_area()) if entry is not None]
        entries = [entry for _, entry in found]
        classes, images = np.divmod(np.array([place for place, _ in found], dtype=int), max(num_images, 1))
        counts = np.array([len(entry["dtIds"]) for entry in entries], dtype=int)
        ignored_objects = [entry["gtIgnore"] for entry in entries]
        classes_of_objects = np.repeat(classes, np.array(list(map(len, ignored_objects)), dtype=int))
        counted = np.concatenate([np.zeros(0), *ignored_objects]) == 0
        # The first of each lets concatenate work where there is no other.
        nothing = np.zeros((num_thresholds, 0))
        return MatchTable(
            rows=np.array([one - 1 for entry in entries for one in entry["dtIds"]], dtype=int),
            images=np.repeat(images, counts),
            classes=np.repeat(classes, counts),
            scores=np.array([score for entry in entries for score in entry["dtScores"]], dtype=float),
            objects=np.concatenate([nothing, *(entry["dtMatches"] for entry in entries)], axis=1).astype(int),
            ignored=np.concatenate([nothing, *(entry["dtIgnore"] for entry in entries)], axis=1).astype(bool),
            num_objects=np.bincount(classes_of_objects[counted], minlength=num_classes),
        )

    def matched_at(self, iou_thresholds: Sequence[float]) -> "MatchedEvaluation":
        """The same detections matched at other IoU thresholds, for the first area only; IoUs are not computed again."""
        other, table = copy.copy(self), self.table
        other.params = copy.copy(self.params)
        other.params.iouThrs = np.asarray(iou_thresholds, dtype=float)
        other.params.areaRng, other.params.areaRngLbl = self.params.areaRng[:1], self.params.areaRngLbl[:1]
        other.eval, other.evalImgs = {}, []
        # Where an image has no object of a class nothing matches at any threshold, and that is most of them.
        objects = np.zeros((len(iou_thresholds), len(table.rows)), dtype=int)
        ignored = table.ignored[:1].repeat(len(iou_thresholds), axis=0)
        end = 0
        for entry in self.first_area():
            if entry is None:
                continue
            start, end = end, end + len(entry["dtIds"])
            if end > start and entry["gtIds"]:
                area, limit = other.params.areaRng[0], self.params.maxDets[-1]
                again = other.evaluateImg(entry["image_id"], entry["category_id"], area, limit)
                objects[:, start:end], ignored[:, start:end] = again["dtMatches"], again["dtIgnore"]
        other.table = replace(table, objects=objects, ignored=ignored)
        return other


def run_coco_eval(
    ground_truth: CocoGroundTruth,
    results: Results | COCO,
    *,
    max_detections: tuple[int, ...] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
    iou_thresholds: Sequence[float] | None = None,
    areas: Sequence[str] = AREAS,
) -> MatchedEvaluation:
    """Match results to ground truth with `COCOeval`, silently; `evalImgs` is filled, nothing is accumulated.

    Args:
        ground_truth, max_detections, image_ids: as in `evaluate_coco`.
        results: as in `evaluate_coco`, or what `prepare_results` made of them.
        iou_thresholds: COCO's .50:.05:.95 unless given.
        areas: which of all, small, medium, large to match for.
    """
    if not max_detections or list(max_detections) != sorted(set(max_detections)) or max_detections[0] < 1:
        raise ValueError(f"max_detections must be increasing positive numbers, not {max_detections}")
    unknown = sorted(set(image_ids or ()) - ground_truth.image_ids)
    if unknown:
        raise ValueError(f"image_ids: {unknown[0]} is no image of {ground_truth.source}")
    detections = results if isinstance(results, COCO) else prepare_results(results, ground_truth)
    with contextlib.redirect_stdout(io.StringIO()), collection_paused():
        evaluation = MatchedEvaluation(ground_truth.coco, detections, "bbox")
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
        with contextlib.redirect_stdout(io.StringIO()), collection_paused():
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
