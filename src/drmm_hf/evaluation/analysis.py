"""Gathers every number of the analysis report as plain values, ready for JSON and for the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..files import to_plain
from .calibration import calibration_measures, object_calibration_report, part_calibration_report
from .coco import METRICS, mean_of_valid, run_coco_eval, summarize
from .coco_input import CocoGroundTruth, CocoResults, Results, prepare_results
from .duplicates import DUPLICATE_SCORES, count_duplicates, nms_sweep
from .matches import Matches, match_detections
from .recalibration import split_half_report
from .thresholds import LrpReport, RankingReport, lrp_report, ranking_report
from .uncertainty import LEVELS, fit_scale_factor, interval_report

# What a class without objects is cut at where an operating point is needed: it has no optimum of its own.
FALLBACK_THRESHOLD = 0.5


def describe_data(truth: CocoGroundTruth, data: str, split: str) -> dict[str, Any]:
    """Counts of a data set: images, objects that are no crowd, crowd regions, and objects of each class."""
    per_class = np.bincount(truth.classes[~truth.crowd], minlength=len(truth.category_ids)).tolist()
    count_of = dict(zip(truth.category_ids, per_class, strict=True))
    return {
        "data": data,
        "split": split,
        "annotations": Path(truth.source).name,
        "images": len(truth.image_ids),
        "objects": int((~truth.crowd).sum()),
        "crowd": int(truth.crowd.sum()),
        "objects_per_class": {name: count_of[category_id] for category_id, name in truth.category_names.items()},
    }


def analyze_results(truth: CocoGroundTruth, results: Results) -> dict[str, Any]:
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
    found = prepare_results(results, truth)
    evaluation = run_coco_eval(found)
    metrics = summarize(evaluation, truth)
    matches = match_detections(truth, found)
    lrp = lrp_report(matches)
    thresholds = {category: lrp.thresholds.get(category, FALLBACK_THRESHOLD) for category in truth.category_names}
    parts = {
        "detections": len(found.rows),
        "accuracy": {
            "settings": "IoU 0.50:0.05:0.95, maxDets 100",
            "metrics": {name: _known(metrics[name]) for name in METRICS},
            "per_class": _per_class_accuracy(evaluation, truth),
        },
        "calibration": _calibration(matches, thresholds),
        "thresholds": _thresholds(lrp),
        "recalibration": _recalibration(found),
        "duplicates": _duplicates(found),
        "ranking": _ranking(ranking_report(matches)),
        "images": image_errors(matches, thresholds),
    }
    return to_plain(parts)


def analyze_intervals(
    truth: CocoGroundTruth,
    results: Results,
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
    copied = (
        "levels", "coverage", "median_width", "rank_correlation", "relative_rank_correlation", "quintile_scales",
        "quintile_errors", "floor_share", "settings",
    )  # fmt: skip
    part: dict[str, Any] = {**dict.fromkeys(copied), "coverage_after": None, "factor": None, "detections": None}
    part |= {name: [] for name in ("levels", "coverage", "median_width", "quintile_scales", "quintile_errors")}
    if density is None:
        return {**part, "note": "Not measured: the detections have no known density of their edges."}
    found = prepare_results(results, truth)
    if found.rows and not found.have("scales"):
        return {**part, "note": "Not measured: the results have no scales; leave out --reuse to predict again."}
    matches = match_detections(truth, found)
    options: dict[str, Any] = {"density": density, "student_t_dof": student_t_dof}
    report = interval_report(matches, levels=LEVELS, min_scale_ratio=min_scale_ratio, **options)
    part |= {name: getattr(report, name) for name in copied}
    part |= {"detections": report.num_detections, "note": None}
    if report.num_detections:
        try:
            fit = fit_scale_factor(matches, **options)
            part |= {"factor": fit.factor, "coverage_after": fit.coverage_after}
        except ValueError:
            # Too few images or true positives for two halves.
            pass
    return to_plain(part)


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


def image_errors(matches: Matches, thresholds: Mapping[Any, float]) -> dict[str, dict[str, float]]:
    """What goes into the LRP error, for each image by itself.

    Args:
        matches: of all images, at an IoU threshold τ below 1.
        thresholds: category id -> smallest score of a detection that counts.

    Returns:
        Image id as text -> `error`, which is `missed` + `false` + Σ (1 - IoU) / (1 - τ) over the `right`, and these
        three counts. Not divided by the number of objects, so that an image with many faults comes first.
    """
    kept, truth = matches.above_each(thresholds), matches.truth
    count = len(truth.image_ids)
    misfits = np.where(kept.correct, 1.0 - kept.ious, 0.0) / (1.0 - matches.iou_threshold)
    columns = (
        np.bincount(truth.images[~truth.crowd], minlength=count),
        np.bincount(kept.images[kept.correct], minlength=count),
        np.bincount(kept.images[~kept.correct], minlength=count),
        np.bincount(kept.images, misfits, minlength=count),
    )
    errors = {}
    for image_id, objects, right, false, misfit in zip(
        truth.image_ids, *(column.tolist() for column in columns), strict=True
    ):
        missed = objects - right
        errors[str(image_id)] = {"error": missed + false + misfit, "missed": missed, "false": false, "right": right}
    return errors


def rank_images(errors: Sequence[Mapping[str, Mapping[str, float]]], count: int) -> list[str]:
    """Ids, as text, of the images with the most error summed over the models, the worst first; none without error."""
    totals: dict[str, float] = {}
    for one in errors:
        for image_id, entry in one.items():
            totals[image_id] = totals.get(image_id, 0.0) + entry["error"]
    return sorted((image_id for image_id in totals if totals[image_id] > 0), key=lambda i: -totals[i])[:count]


def result_names(checkpoints: Sequence[str]) -> list[str]:
    """A short name for each checkpoint, unique whatever the case of its letters, and fit for a file name.

    The folder's own name, or its parent's where it is called just `model` or `results`; where two would be the same,
    more of the path.
    """
    paths = [[part for part in Path(checkpoint).parts if part not in ("/", ".", "..")] for checkpoint in checkpoints]
    stems = [parts[:-1] if len(parts) > 1 and parts[-1] in ("model", "results") else parts for parts in paths]
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


def _known(value: float) -> float | None:
    """None for the -1 of pycocotools."""
    return None if value < 0 else value


def _ranking(report: RankingReport) -> dict[str, Any]:
    values = {name: _known(getattr(report, name)) for name in ("ap", "without_duplicates", "true_first", "best_first")}
    return {**values, "settings": f"right at IoU {report.iou_threshold:g}, maxDets {report.max_detections}"}


def _per_class_accuracy(evaluation: COCOeval, truth: CocoGroundTruth) -> dict[str, dict[str, float | None]]:
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    return {
        name: {
            "AP": _known(mean_of_valid(precision[:, :, index])),
            "AP50": _known(mean_of_valid(precision[0, :, index])),
            "AP75": _known(mean_of_valid(precision[5, :, index])),
            "AR100": _known(mean_of_valid(recall[:, index])),
        }
        for index, name in enumerate(truth.class_names)
    }


def _calibration(matches: Matches, thresholds: Mapping[Any, float]) -> dict[str, Any]:
    measures = calibration_measures(matches, thresholds=thresholds)
    ece = measures["ECE"][1]
    settings = {name: report.settings for name, (_, report) in measures.items()}
    above, no_bins = "score >= LRP-optimal threshold of the class", f"maxDets {matches.max_detections}"
    for name in ("LaECE", "LaECE_0"):
        settings[name] = settings[name].replace("score >= 0", above)
    settings["LaACE_0"] = f"IoU > 0, no bins, {above}, {no_bins}"
    settings["Brier"] = f"IoU {ece.iou_threshold:g}, score >= 0, {no_bins}"
    oce = object_calibration_report(matches.truth, matches.results)
    parts = part_calibration_report(matches) if matches.results.have("objectness") else {}
    return {
        "measures": {
            **{
                name.replace("_", ""): {"value": value, "settings": settings[name], "detections": report.num_detections}
                for name, (value, report) in measures.items()
            },
            "OCE": {"value": oce.oce, "settings": oce.settings, "detections": None},
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


def _recalibration(found: CocoResults) -> dict[str, Any]:
    try:
        report = split_half_report(found.truth, found)
    except ValueError as error:
        # The results are known to be good by now: what is missing are images or detections to fit to.
        return {"note": f"Not measured: {error}.", "values": {}, "metric_settings": {}, "settings": None}
    images = f"halves of {report.num_images[0]} and {report.num_images[1]} images, seed {report.seed}"
    return {
        "note": None,
        "values": report.values,
        "metric_settings": report.metric_settings,
        "settings": f"{report.fit_settings}; {images}",
    }


def _duplicates(found: CocoResults) -> dict[str, Any]:
    truth = found.truth
    counts = [count_duplicates(truth, found, score_threshold=score) for score in DUPLICATE_SCORES]
    merged = nms_sweep(truth, found, merge_scores=True)
    del merged["none"]

    def shown(sweep: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
        kept = ("AP", "AP50", "AR100")
        return {name: {metric: _known(metrics[metric]) for metric in kept} for name, metrics in sweep.items()}

    return {
        "settings": "a detection belongs to the object of its class it overlaps most, IoU 0.5 or more",
        "counts": [
            {
                "score_threshold": count.score_threshold,
                "per_image": count.duplicates_per_image,
                "per_object": count.duplicates_per_object,
            }
            for count in counts
        ],
        "nms": shown(nms_sweep(truth, found)),
        "winner_takes_all": shown(merged),
    }
