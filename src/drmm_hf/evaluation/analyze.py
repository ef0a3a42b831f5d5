"""Gathers every number of the analysis report as plain values, ready for JSON and for the HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import to_plain
from .calibration import report_from_matches
from .calibration_parts import has_objectness, parts_from_matches, read_objectness
from .coco import MatchedEvaluation, evaluate_coco, run_coco_eval, summarize
from .coco_input import CocoGroundTruth
from .duplicates import DUPLICATE_SCORES, NMS_THRESHOLDS, count_duplicates, nms_sweep, suppress
from .localization_calibration import localization_report_from_matches
from .lrp import LrpReport, lrp_report_from_matches
from .matches import ANY_OVERLAP, matches_at
from .ranking import RankingReport, ranking_from_matches
from .recalibration import Method, split_half_report
from .scoring_rules import brier_report_from_matches, object_calibration_report
from .uncertainty import LEVELS, fit_scale_factor, interval_report
from .worst_images import at_thresholds, image_errors

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU = 0.5
NUM_BINS = 10
# What a class without objects is cut at where an operating point is needed: it has no optimum of its own.
FALLBACK_THRESHOLD = 0.5


def describe_data(truth: CocoGroundTruth, data: str, split: str) -> dict[str, Any]:
    """Counts of a data set: images, objects that are no crowd, crowd regions, and objects of each class."""
    annotations = truth.coco.dataset["annotations"]
    objects = [annotation for annotation in annotations if not annotation["iscrowd"]]
    per_class = dict.fromkeys(truth.category_names.values(), 0)
    for annotation in objects:
        per_class[truth.category_names[annotation["category_id"]]] += 1
    return {
        "data": data,
        "split": split,
        "annotations": Path(truth.source).name,
        "images": len(truth.image_ids),
        "objects": len(objects),
        "crowd": len(annotations) - len(objects),
        "objects_per_class": per_class,
    }


def analyze_results(truth: CocoGroundTruth, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that detections and ground truth alone can tell of one model.

    Args:
        truth: checked ground truth.
        results: COCO results, with scores in [0, 1]; may be empty.

    Returns:
        `detections` (their number), and the parts `accuracy`, `calibration`, `thresholds`, `recalibration`,
        `duplicates`, `ranking` and `images` (the error of each image, by its id as text). None stands for a number that
        does not exist, such as the AP of a class without objects.

    Raises:
        ValueError: the results do not fit the ground truth, or a score is no probability.
    """
    evaluation = run_coco_eval(truth, results)
    metrics = summarize(evaluation, truth, per_class=True)
    # All that needs no more than one area, matched once at every IoU it asks for.
    matched = run_coco_eval(
        truth, results, max_detections=(100,), iou_thresholds=[ANY_OVERLAP, 0.1, IOU], areas=("all",)
    )
    at_iou = matches_at(matched, truth, IOU)
    lrp = lrp_report_from_matches(at_iou)
    thresholds = {category: lrp.thresholds.get(category, FALLBACK_THRESHOLD) for category in truth.category_names}
    parts = {
        "detections": len(results),
        "accuracy": {
            "settings": "IoU 0.50:0.05:0.95, maxDets 100",
            "metrics": {name: _known(metrics[name]) for name in METRICS},
            "per_class": _per_class_accuracy(evaluation, truth),
        },
        "calibration": _calibration(matched, truth, results, thresholds),
        "thresholds": _thresholds(lrp),
        "recalibration": _recalibration(truth, results),
        "duplicates": _duplicates(truth, results),
        "ranking": _ranking(ranking_from_matches(at_iou, truth, matched.cocoDt, metrics["AP"])),
        "images": image_errors(matched, truth, thresholds, IOU),
    }
    return to_plain(parts)


def analyze_intervals(
    truth: CocoGroundTruth,
    results: Sequence[Mapping[str, Any]],
    density: str | None,
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
) -> dict[str, Any]:
    """The part `uncertainty`: coverage and width of the intervals of the edges, and the factor that corrects them.

    Args:
        truth: checked ground truth.
        results: COCO results with `scales`; without, there is a note and nothing else.
        density, student_t_dof, min_scale_ratio: of the model; density None if it predicts none.

    Raises:
        ValueError: scales that are no scales.
    """
    empty: dict[str, Any] = {
        "levels": [], "coverage": [], "coverage_after": None, "median_width": [], "factor": None,
        "rank_correlation": None, "relative_rank_correlation": None, "quintile_scales": [], "quintile_errors": [],
        "floor_share": None, "detections": None, "settings": None,
    }  # fmt: skip
    if density is None:
        return {**empty, "note": "Not measured: the detections have no known density of their edges."}
    if not all("scales" in result for result in results):
        return {**empty, "note": "Not measured: the results have no scales; leave out --reuse to predict again."}
    report = interval_report(
        truth.coco,
        results,
        LEVELS,
        density=density,
        student_t_dof=student_t_dof,
        min_scale_ratio=min_scale_ratio,
    )
    factor, after = None, None
    if report.num_detections:
        try:
            fit = fit_scale_factor(truth.coco, results, density=density, student_t_dof=student_t_dof)
            factor, after = fit.factor, fit.coverage_after
        except ValueError:
            # Too few images or true positives for two halves.
            pass
    return to_plain(
        {
            "levels": report.levels,
            "coverage": report.coverage,
            "coverage_after": after,
            "median_width": report.median_width,
            "factor": factor,
            "rank_correlation": report.rank_correlation,
            "relative_rank_correlation": report.relative_rank_correlation,
            "quintile_scales": report.quintile_scales,
            "quintile_errors": report.quintile_errors,
            "floor_share": report.floor_share,
            "detections": report.num_detections,
            "settings": report.settings,
            "note": None,
        }
    )


def operating_thresholds(part: Mapping[str, Any], truth: CocoGroundTruth) -> dict[Any, float]:
    """Category id -> score from which to keep a detection, out of what `analyze_results` returned.

    Above 1, so that nothing is kept, for a class whose best is to keep nothing.
    """
    chosen = {}
    for category_id, name in truth.category_names.items():
        entry = part["thresholds"]["per_class"][name]
        threshold = entry["score_threshold"]
        chosen[category_id] = threshold if threshold is not None else 2.0 if entry["objects"] else FALLBACK_THRESHOLD
    return chosen


def _known(value: float) -> float | None:
    """None for the -1 of pycocotools."""
    return None if value < 0 else value


def _ranking(report: RankingReport) -> dict[str, Any]:
    values = {name: _known(getattr(report, name)) for name in ("ap", "without_duplicates", "true_first", "best_first")}
    return {**values, "settings": f"right at IoU {report.iou_threshold:g}, maxDets {report.max_detections}"}


def _per_class_accuracy(evaluation: MatchedEvaluation, truth: CocoGroundTruth) -> dict[str, dict[str, float | None]]:
    def mean(values: np.ndarray) -> float | None:
        valid = values[values > -1]
        return float(valid.mean()) if valid.size else None

    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return {
        truth.category_names[category_id]: {
            "AP": mean(precision[:, :, index, 0, -1]),
            "AP50": mean(precision[0, :, index, 0, -1]),
            "AP75": mean(precision[5, :, index, 0, -1]),
            "AR100": mean(recall[:, index, 0, -1]),
        }
        for index, category_id in enumerate(evaluation.params.catIds)
    }


def _calibration(
    matched: MatchedEvaluation,
    truth: CocoGroundTruth,
    results: Sequence[Mapping[str, Any]],
    thresholds: Mapping[Any, float],
) -> dict[str, Any]:
    at_iou = matches_at(matched, truth, IOU)
    ece = report_from_matches(at_iou, num_bins=NUM_BINS)
    d_ece = report_from_matches(at_iou, num_bins=NUM_BINS, score_threshold=0.3)
    laece = localization_report_from_matches(at_thresholds(matches_at(matched, truth, 0.1), thresholds))
    any_overlap = localization_report_from_matches(at_thresholds(matches_at(matched, truth, 0.0), thresholds))
    parts = {}
    if has_objectness(results):
        parts = parts_from_matches(at_iou, read_objectness(results), NUM_BINS)
    brier = brier_report_from_matches(at_iou, num_bins=NUM_BINS)
    oce = object_calibration_report(truth.coco, results)
    above = "score >= LRP-optimal threshold of the class"
    rows = [
        ("ECE", ece.ece, ece.settings, ece.num_detections),
        ("D-ECE", d_ece.ece, d_ece.settings, d_ece.num_detections),
        ("LaECE", laece.laece, laece.settings.replace("score >= 0", above), laece.num_detections),
        ("LaECE0", any_overlap.laece, any_overlap.settings.replace("score >= 0", above), any_overlap.num_detections),
        (
            "LaACE0",
            any_overlap.laace,
            f"IoU > 0, no bins, {above}, maxDets {any_overlap.max_detections}",
            any_overlap.num_detections,
        ),
        (
            "Brier",
            brier.brier,
            f"IoU {IOU:g}, score >= 0, maxDets {brier.max_detections}",
            brier.num_detections,
        ),
        ("OCE", oce.oce, oce.settings, None),
    ]
    return {
        "measures": {
            name: {"value": value, "settings": settings, "detections": detections}
            for name, value, settings, detections in rows
        },
        "reliability": ece.to_dict(),
        "reliability_settings": ece.settings,
        "parts": {name: report.to_dict() for name, report in parts.items()},
    }


def _thresholds(lrp: LrpReport) -> dict[str, Any]:
    return {
        "settings": lrp.settings,
        "moLRP": lrp.lrp,
        "per_class": {
            name: {
                "score_threshold": entry.score_threshold,
                "precision": 1.0 - entry.false_positive,
                "recall": 1.0 - entry.false_negative,
                "mean_iou": 1.0 - entry.localization,
                "LRP": entry.lrp,
                "objects": entry.num_objects,
                "true_positives": entry.num_true_positives,
                "false_positives": entry.num_false_positives,
            }
            for name, entry in lrp.per_class.items()
        },
    }


def _recalibration(truth: CocoGroundTruth, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    methods: tuple[Method, ...] = ("isotonic", "temperature")
    note = None
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        methods = ("temperature",)
        note = "Isotonic regression is left out: it needs scipy (pip install 'drmm-hf[baselines]')."
    try:
        report = split_half_report(truth.coco, results, methods=methods, num_bins=NUM_BINS)
    except ValueError as error:
        # The results are known to be good by now: what is missing are images or detections to fit to.
        return {"note": f"Not measured: {error}.", "values": {}, "metric_settings": {}, "settings": None}
    images = f"halves of {report.num_images[0]} and {report.num_images[1]} images, seed {report.seed}"
    return {
        "note": note,
        "values": report.values,
        "metric_settings": report.metric_settings,
        "settings": f"{report.fit_settings}; {images}",
    }


def _duplicates(truth: CocoGroundTruth, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [count_duplicates(truth.coco, results, score_threshold=score) for score in DUPLICATE_SCORES]
    kept = ("AP", "AP50", "AR100")
    sweep = nms_sweep(truth.coco, results)
    merged = {
        f"{threshold:g}": evaluate_coco(truth.coco, suppress(results, threshold, merge_scores=True))
        for threshold in NMS_THRESHOLDS
    }
    return {
        "settings": f"a detection belongs to the object of its class it overlaps most, IoU {IOU:g} or more",
        "counts": [
            {
                "score_threshold": count.score_threshold,
                "per_image": count.duplicates_per_image,
                "per_object": count.duplicates_per_object,
            }
            for count in counts
        ],
        "nms": {name: {metric: _known(metrics[metric]) for metric in kept} for name, metrics in sweep.items()},
        "winner_takes_all": {
            name: {metric: _known(metrics[metric]) for metric in kept} for name, metrics in merged.items()
        },
    }


def result_names(checkpoints: Sequence[str]) -> list[str]:
    """A short name for each checkpoint, unique whatever the case of its letters, and fit for a file name.

    The folder's own name, or its parent's where it is called just `model`; where two would be the same, more of
    the path.
    """
    paths = [[part for part in Path(checkpoint).parts if part not in ("/", ".", "..")] for checkpoint in checkpoints]
    stems = [parts[:-1] if len(parts) > 1 and parts[-1] == "model" else parts for parts in paths]
    names: list[str] = []
    for index, parts in enumerate(stems):
        others = [other for place, other in enumerate(stems) if place != index]
        length = 1
        while length < len(parts) and any(_tail(parts, length) == _tail(other, length) for other in others):
            length += 1
        base = name = _tail(parts, length) or "checkpoint"
        number = 1
        while name.lower() in {taken.lower() for taken in names}:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def _tail(parts: Sequence[str], length: int) -> str:
    text = "-".join(parts[-length:])
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text).strip(".-")
