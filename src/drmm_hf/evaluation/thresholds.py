"""What thresholds and the order of scores decide: LRP error, operating points, and what a better order would give."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np

from .coco import run_coco_eval, summarize
from .coco_input import CocoResults, Results
from .matches import (
    Matchable,
    Matches,
    MatchOptions,
    MatchReport,
    check_probability,
    match_detections,
    mean_or_nan,
    nearest_objects,
)


@dataclass(frozen=True)
class ClassLrp:
    """LRP error of one class; nan and no counts without ground truth."""

    category_id: Any  # as in the file
    lrp: float  # [Σ_TP (1 - IoU) / (1 - τ) + FP + FN] / (TP + FP + FN), in [0, 1]
    localization: float  # mean 1 - IoU of the true positives; nan if there are none
    false_positive: float  # 1 - precision; nan if nothing is kept
    false_negative: float  # 1 - recall
    score_threshold: float  # kept from here on; infinity where no threshold brings the error below 1
    num_objects: int
    num_true_positives: int
    num_false_positives: int


@dataclass(frozen=True, kw_only=True)
class LrpReport(MatchReport):
    """LRP error and its components, means over the classes that have them, and of each class by its name."""

    lrp: float  # moLRP (mean optimal LRP)
    localization: float
    false_positive: float
    false_negative: float
    per_class: dict[str, ClassLrp]
    num_ignored: int  # detections left out because they lie on a crowd region
    score_threshold: None  # type: ignore[assignment]  # each class has its own optimum

    @property
    def thresholds(self) -> dict[Any, float]:
        """Original category id -> score threshold, for the classes with ground truth; see `keep_above`."""
        return {entry.category_id: entry.score_threshold for entry in self.per_class.values() if entry.num_objects}


def lrp_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> LrpReport:
    """LRP error of each class, at its best threshold, and their mean.

    Oksuz et al., One metric to measure them all: localisation recall precision (LRP) for evaluating visual
    detection tasks, TPAMI 2021. Detections are matched once, as COCO does; a threshold keeps the best of them,
    which changes no match above it. Every score of a class is tried, and among equally good thresholds the
    highest is reported. A threshold chosen on the images it is reported on is optimistic: choose it on others.

    Args:
        ground_truth, results, iou_threshold, max_detections: of `match_detections`, τ = `iou_threshold` below 1. Scores
            need not be probabilities.
    """
    matches = match_detections(ground_truth, results, iou_threshold=iou_threshold, max_detections=max_detections)
    if matches.iou_threshold >= 1.0:
        raise ValueError("iou_threshold must be below 1: LRP divides by 1 - iou_threshold")
    entries = [
        _class_lrp(category_id, matches.select(matches.classes == index))
        for index, category_id in enumerate(matches.truth.category_ids)
    ]
    known = [entry for entry in entries if entry.num_objects]
    names = ("lrp", "localization", "false_positive", "false_negative")
    means: dict[str, Any] = {name: mean_or_nan([getattr(entry, name) for entry in known]) for name in names}
    return LrpReport(
        **means,
        per_class=dict(zip(matches.truth.class_names, entries, strict=True)),
        num_ignored=len(matches.ignored_scores),
        **{**matches.settings, "score_threshold": None},
    )


def keep_above(results: Sequence[Mapping[str, Any]], thresholds: Mapping[Any, float]) -> list[dict[str, Any]]:
    """COCO results with at least the score threshold of their class; new dicts, in the same order.

    `thresholds` has them by original category id, as `LrpReport.thresholds`; a class without one keeps everything.
    """
    return [dict(result) for result in results if result["score"] >= thresholds.get(result["category_id"], -math.inf)]


def _class_lrp(category_id: Any, matches: Matches) -> ClassLrp:
    """`matches` holds the detections of this class alone."""
    num_objects = int(matches.num_objects[matches.truth.category_ids.index(category_id)])
    order = np.argsort(-matches.scores, kind="stable")
    scores, correct = matches.scores[order], matches.correct[order]
    if not num_objects:
        return ClassLrp(category_id, *(math.nan,) * 5, 0, 0, len(scores))
    # Entry k of these is for the k best detections, from none to all.
    true = np.append(0, np.cumsum(correct))
    false = np.arange(scores.size + 1) - true
    misfit = np.append(0.0, np.cumsum(np.where(correct, 1.0 - matches.ious[order], 0.0)))
    missed = num_objects - true
    errors = (misfit / (1.0 - matches.iou_threshold) + false + missed) / (num_objects + false)
    # No threshold lies between equal scores.
    cuts = np.append(np.flatnonzero(np.append(True, scores[:-1] != scores[1:])[: scores.size]), scores.size)
    kept = int(cuts[np.argmin(errors[cuts])])
    return ClassLrp(
        category_id=category_id,
        lrp=float(errors[kept]),
        localization=float(misfit[kept] / true[kept]) if true[kept] else math.nan,
        false_positive=float(false[kept] / kept) if kept else math.nan,
        false_negative=float(missed[kept] / num_objects),
        score_threshold=float(scores[kept - 1]) if kept else math.inf,
        num_objects=num_objects,
        num_true_positives=int(true[kept]),
        num_false_positives=int(false[kept]),
    )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(MatchReport):
    """The detections with at least one score, all classes together; nan where there is nothing to divide by."""

    num_detections: int  # kept; those on a crowd region do not count
    expected_precision: float  # their mean score: the precision if scores are probabilities; needs no ground truth
    precision: float
    recall: float


def operating_points(
    ground_truth: Matchable,
    results: Results | None = None,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    **options: Unpack[MatchOptions],
) -> tuple[OperatingPoint, ...]:
    """Expected precision, precision and recall at each score threshold.

    Args:
        ground_truth, results, options: of `match_detections`; scores must lie in [0, 1].
        thresholds: scores in [0, 1]. `expected_precision` at one is what annotations would show if the scores are
            calibrated, so it can be had for images that nobody has annotated.
    """
    for threshold in thresholds:
        check_probability("thresholds", threshold)
    matches = match_detections(ground_truth, results, **options)
    objects = int(matches.num_objects.sum())
    return tuple(
        OperatingPoint(
            num_detections=len(kept),
            expected_precision=mean_or_nan(kept.scores),
            precision=mean_or_nan(kept.correct),
            recall=float(kept.correct.sum() / (objects or math.nan)),
            **kept.settings,
        )
        for kept in map(matches.above, thresholds)
    )


@dataclass(frozen=True, kw_only=True)
class RankingReport(MatchReport):
    """COCO's AP as it is, and what it would be if the ground truth had corrected the order.

    The step from `ap` to `true_first` is what wrong detections in front of right ones cost, of which
    `without_duplicates` shows the part of duplicates. The next step, to `best_first`, is what scores cost that do not
    know how good a box is. What is still missing to 1 are objects not found and boxes not exact.
    """

    ap: float
    without_duplicates: float  # without detections that lie on an object of their class, but were not given one
    true_first: float  # every true positive before every other detection, otherwise in the order of the scores
    best_first: float  # the same, true positives in the order of their IoU


def ranking_report(
    ground_truth: Matchable, results: Results | None = None, **options: Unpack[MatchOptions]
) -> RankingReport:
    """How much AP the order of the detections costs. Not in the paper.

    Args:
        ground_truth, results, options: of `match_detections`; `iou_threshold` decides what is a true positive,
            `max_detections` counts for AP, too, and AP is that of all images. Scores must lie in [0, 1].
    """
    matches = match_detections(ground_truth, results, **options).above(0.0)
    found, rows = matches.results, matches.rows
    _, overlaps = nearest_objects(found, rows)
    right = rows[matches.correct]
    # Added to a probability, 1 puts a detection before all others.
    true_first, best_first = found.scores.copy(), found.scores.copy()
    true_first[right] += 1.0
    best_first[right] = matches.ious[matches.correct] + 1.0
    unique = np.ones(len(found.scores), dtype=bool)
    unique[rows[~matches.correct & (overlaps > 0.0) & (overlaps >= matches.iou_threshold)]] = False

    def ap(changed: CocoResults) -> float:
        return summarize(run_coco_eval(changed, (matches.max_detections,)), matches.truth)["AP"]

    return RankingReport(
        ap=ap(found),
        without_duplicates=ap(found.select(unique)),
        true_first=ap(replace(found, scores=true_first)),
        best_first=ap(replace(found, scores=best_first)),
        **matches.settings,
    )
