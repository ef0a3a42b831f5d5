"""Every number of the analysis report as plain values, ready for JSON and for the page; and read from that JSON."""

import contextlib
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from ..files import numbered, read_json, to_plain
from .calibration import calibration_measures, object_calibration_report, part_calibration_report
from .coco import mean_of_valid, run_coco_eval, summarize
from .coco_input import CocoGroundTruth, CocoResults, Results, prepare_results
from .duplicates import DUPLICATE_SCORES, count_duplicates, nms_sweep
from .matches import SPLIT_SEED, Matches, match_detections
from .recalibration import split_half_report
from .thresholds import LrpReport, lrp_report, ranking_report
from .uncertainty import LEVELS, fit_scale_factor, interval_report

logger = logging.getLogger(__name__)

# What a class without objects is cut at where an operating point is needed: it has no optimum of its own.
FALLBACK_THRESHOLD = 0.5


@contextlib.contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """What goes wrong with an analysis.json that has been edited becomes a ValueError that names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is not as drmm analyze writes it ({error}); run it again") from error


def read_analysis(path: str | PathLike[str], checkpoint: str | PathLike[str], parts: Sequence[str]) -> dict[str, Any]:
    """Parts of an `analysis.json`: what it says of one checkpoint, and of the data.

    Args:
        path: written by `drmm analyze`.
        checkpoint: as it was given to the analysis; one of a single checkpoint may be about any folder or Hub id, since
            checkpoints are moved and published.
        parts: names of those that are needed.

    Raises:
        FileNotFoundError, ValueError: the file is no such analysis, or one of other checkpoints.
    """
    content = read_json(path)
    content = content if isinstance(content, Mapping) else {}
    entries = content.get("checkpoints", [{}])
    with reading(path):
        if len(entries) > 1:
            wanted = {Path(checkpoint).resolve(), Path(checkpoint).resolve() / "model"}
            entries = [entry for entry in entries if Path(entry["checkpoint"]).resolve() in wanted]
        found = {**content, **(entries[0] if entries else {})}
    if missing := [part for part in parts if part not in found]:
        raise ValueError(
            f"{path}: has no {missing[0]} of {checkpoint}; give the analysis.json of drmm analyze on this checkpoint"
        )
    return {part: found[part] for part in parts}


def read_thresholds(path: str | PathLike[str], checkpoint: str | PathLike[str], classes: Sequence[str]) -> list[float]:
    """The smallest score of each class, as in the report: infinity where it is best to keep none.

    A class that the analyzed data do not have, as one that no image of them shows, has `FALLBACK_THRESHOLD`.

    Args:
        path, checkpoint: as in `read_analysis`, with its errors.
        classes: names of the model's classes; a ValueError if the analysis has none of them.
    """
    thresholds = read_analysis(path, checkpoint, ("thresholds",))["thresholds"]
    with reading(path):
        known = thresholds["per_class"]
        check_classes(path, known, classes)
        found = [known.get(name, {"score_threshold": None, "objects": 0}) for name in classes]
        limits = [(one["score_threshold"], one["objects"]) for one in found]
        # divided, so that a text, which float() would take, is refused here
        return [
            (math.inf if objects else FALLBACK_THRESHOLD) if limit is None else limit / 1.0 for limit, objects in limits
        ]


def check_classes(path: str | PathLike[str], known: Collection[str], classes: Sequence[str]) -> None:
    """Refuse an analysis of other classes than the model's, and tell of those that it has no number of."""
    missing = [name for name in classes if name not in known]
    if len(missing) == len(classes):
        raise ValueError(
            f"{path}: is about the classes {', '.join(known)}, none of them the model's; give its analysis"
        )
    if missing:
        logger.warning("%s: says nothing of the classes %s, which its data did not have", path, ", ".join(missing))


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


def analyze_results(truth: CocoGroundTruth, results: Results) -> tuple[dict[str, Any], dict[Any, float]]:
    """Everything that COCO results, which may be empty, and ground truth alone can tell of one model.

    Returns:
        `detections` (their number), and the parts `accuracy`, `calibration`, `thresholds`, `recalibration`,
        `duplicates`, `ranking` and `images` (the error of each image, by its id as text), where None stands for a
        number that does not exist, such as the AP of a class without objects; and the score from which to keep the
        detections of each category id, infinity where it is best to keep none.

    Raises:
        ValueError: the results do not fit the ground truth, or a score is no probability.
    """
    found = prepare_results(results, truth)
    evaluation = run_coco_eval(found)
    matches = match_detections(truth, found)
    lrp, ranking = lrp_report(matches), ranking_report(matches)
    thresholds = {category: lrp.thresholds.get(category, FALLBACK_THRESHOLD) for category in truth.category_names}
    orders = ("ap", "without_duplicates", "true_first", "best_first")
    parts = {
        "detections": len(found.rows),
        "accuracy": {
            "settings": "IoU 0.50:0.05:0.95, maxDets 100",
            "metrics": _known(summarize(evaluation, truth)),
            "per_class": _per_class_accuracy(evaluation, truth),
        },
        "calibration": _calibration(matches, thresholds),
        "thresholds": _thresholds(lrp),
        "recalibration": _recalibration(matches),
        "duplicates": _duplicates(found),
        "ranking": {
            **_known({name: getattr(ranking, name) for name in orders}),
            "settings": f"right at IoU {ranking.iou_threshold:g}, maxDets {ranking.max_detections}",
        },
        "images": image_errors(matches, thresholds),
    }
    return to_plain(parts), thresholds


def analyze_intervals(
    truth: CocoGroundTruth,
    results: Results,
    density: str | None,
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
) -> dict[str, Any]:
    """The part `uncertainty`: coverage and width of the intervals of the edges, and the factor that corrects them.

    Where the results have no `scales`, or the model predicts no density, there is a note and nothing else.
    """
    names = (
        "levels", "coverage", "median_width", "rank_correlation", "relative_rank_correlation", "quintile_scales",
        "quintile_errors", "floor_share", "settings",
    )  # fmt: skip
    lists = ("levels", "coverage", "median_width", "quintile_scales", "quintile_errors")
    part: dict[str, Any] = {name: [] if name in lists else None for name in names}
    part |= dict.fromkeys(("coverage_after", "factor", "detections", "note"))
    if density is None:
        return {**part, "note": "Not measured: the detections have no known density of their edges."}
    found = prepare_results(results, truth)
    if found.rows and not found.have("scales"):
        return {**part, "note": "Not measured: the results have no scales."}
    matches = match_detections(truth, found)
    options: dict[str, Any] = {"density": density, "student_t_dof": student_t_dof}
    report = interval_report(matches, levels=LEVELS, min_scale_ratio=min_scale_ratio, **options)
    part |= {name: getattr(report, name) for name in names} | {"detections": report.num_detections}
    with contextlib.suppress(ValueError):  # too few images or true positives for two halves
        fit = fit_scale_factor(matches, **options)
        part |= {"factor": fit.factor, "coverage_after": fit.coverage_after}
    return to_plain(part)


def image_errors(matches: Matches, thresholds: Mapping[Any, float]) -> dict[str, dict[str, float]]:
    """What goes into the LRP error, for each image by itself, at the IoU threshold τ < 1 of the matches.

    `thresholds` has for each category id the smallest score of a detection that counts.

    Returns:
        Image id as text -> `error`, which is `missed` + `false` + Σ (1 - IoU) / (1 - τ) over the `right`, and these
        three counts. Not divided by the number of objects, so that an image with many faults comes first.
    """
    kept, truth = matches.above_each(thresholds), matches.truth
    count = len(truth.image_ids)
    misfits = np.where(kept.correct, 1.0 - kept.ious, 0.0) / (1.0 - matches.iou_threshold)
    objects = np.bincount(truth.images[~truth.crowd], minlength=count)
    right = np.bincount(kept.images[kept.correct], minlength=count)
    false = np.bincount(kept.images[~kept.correct], minlength=count)
    errors = objects - right + false + np.bincount(kept.images, misfits, minlength=count)
    columns = {"error": errors, "missed": objects - right, "false": false, "right": right}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {
        str(image_id): dict(zip(columns, row, strict=True)) for image_id, row in zip(truth.image_ids, rows, strict=True)
    }


def rank_images(errors: Sequence[Mapping[str, Mapping[str, float]]], count: int) -> list[str]:
    """Ids, as text, of the images with the most error summed over the models, the worst first; none without error."""
    totals: dict[str, float] = {}
    for one in errors:
        for image_id, entry in one.items():
            totals[image_id] = totals.get(image_id, 0.0) + entry["error"]
    return sorted((image_id for image_id in totals if totals[image_id] > 0), key=lambda i: -totals[i])[:count]


def result_names(checkpoints: Sequence[str]) -> list[str]:
    """A short name for each checkpoint, fit for a file name: that of its folder, or of the one above `model`.

    Those of one name, whatever the case of its letters, are numbered.
    """
    names: list[str] = []
    for checkpoint in checkpoints:
        parts = Path(checkpoint).parts
        stem = parts[-2] if len(parts) > 1 and parts[-1] in ("model", "best", "results") else parts[-1]
        base = re.sub(r"[^\w.-]", "-", stem).strip(".-") or "checkpoint"
        names.append(numbered(base, {name.lower() for name in names}))
    return names


def _known(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers, None for the -1 of pycocotools."""
    return {name: None if value < 0 else value for name, value in numbers.items()}


def _per_class_accuracy(evaluation: COCOeval, truth: CocoGroundTruth) -> dict[str, dict[str, float | None]]:
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    columns = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6], "AR100": recall}
    return {
        name: _known({metric: mean_of_valid(values[..., index]) for metric, values in columns.items()})
        for index, name in enumerate(truth.class_names)
    }


def _calibration(matches: Matches, thresholds: Mapping[Any, float]) -> dict[str, Any]:
    measures = calibration_measures(matches, *(loose.above_each(thresholds) for loose in matches.loose))
    ece = measures["ECE"][1]
    settings = {name: report.settings for name, (_, report) in measures.items()}
    above, no_bins = "score >= LRP-optimal threshold of the class", f"maxDets {matches.max_detections}"
    for name in ("LaECE", "LaECE_0"):
        settings[name] = settings[name].replace("score >= 0", above)
    settings["LaACE_0"] = f"IoU > 0, no bins, {above}, {no_bins}"
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


def _recalibration(matches: Matches) -> dict[str, Any]:
    try:
        report = split_half_report(matches)
    except ValueError as error:
        # The results are known to be good by now: what is missing are images or detections to fit to.
        return {"note": f"Not measured: {error}.", "values": {}, "metric_settings": {}, "settings": None}
    images = f"halves of {report.num_images[0]} and {report.num_images[1]} images, seed {SPLIT_SEED}"
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
        return {name: _known({one: metrics[one] for one in ("AP", "AP50", "AR100")}) for name, metrics in sweep.items()}

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
