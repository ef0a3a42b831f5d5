"""What thresholds and the order of scores decide: LRP error, operating points, and what a better order would give."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np

from .coco import run_coco_eval, summarize
from .coco_input import CocoResults, Results
from .duplicates import nearest_objects
from .matching import (
    Matchable,
    Matches,
    MatchOptions,
    MatchReport,
    check_probability,
    iou_text,
    match_detections,
    mean_of_known,
)


@dataclass(frozen=True)
class ClassLrp:
    """LRP error of one class.

    Attributes:
        category_id: original id of the class.
        lrp: [Σ_TP (1 - IoU) / (1 - τ) + FP + FN] / (TP + FP + FN), in [0, 1]; nan without ground truth.
        localization: mean 1 - IoU of the true positives; nan if there are none.
        false_positive: 1 - precision; nan if nothing is kept.
        false_negative: 1 - recall; nan without ground truth.
        score_threshold: detections with at least this score are kept. Infinity where the optimum is to keep
            none, because no threshold brings the error below 1; nan without ground truth.
        num_objects, num_true_positives, num_false_positives: counts at that threshold.
    """

    category_id: Any
    lrp: float
    localization: float
    false_positive: float
    false_negative: float
    score_threshold: float
    num_objects: int
    num_true_positives: int
    num_false_positives: int


@dataclass(frozen=True, kw_only=True)
class LrpReport(MatchReport):
    """LRP error together with everything it depends on.

    Attributes:
        lrp: mean over the classes with ground truth; moLRP (mean optimal LRP) if `score_threshold` is None.
        localization, false_positive, false_negative: means of the components over the classes that have them.
        per_class: category name -> the same for each class.
        num_ignored: detections left out because they lie on a crowd region.
        score_threshold: None where each class has its own optimum.
    """

    lrp: float
    localization: float
    false_positive: float
    false_negative: float
    per_class: dict[str, ClassLrp]
    num_ignored: int
    score_threshold: float | None  # type: ignore[assignment]

    @property
    def thresholds(self) -> dict[Any, float]:
        """Original category id -> score threshold, for the classes with ground truth; see `keep_above`."""
        return {entry.category_id: entry.score_threshold for entry in self.per_class.values() if entry.num_objects}

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        if self.score_threshold is not None:
            return super().settings
        return f"{iou_text(self.iou_threshold)}, LRP-optimal score thresholds, maxDets {self.max_detections}"


def lrp_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    score_threshold: float | None = None,
    **options: Unpack[MatchOptions],
) -> LrpReport:
    """LRP error of each class and its mean, at the best threshold of each class or at a given one.

    Oksuz et al., One metric to measure them all: localisation recall precision (LRP) for evaluating visual
    detection tasks, TPAMI 2021. Detections are matched once, as COCO does; a threshold keeps the best of them,
    which changes no match above it. Every score of a class is tried, and among equally good thresholds the
    highest is reported. A threshold chosen on the images it is reported on is optimistic: choose it on others.

    Args:
        ground_truth, results, options: of `match_detections`, τ = `iou_threshold` below 1. Scores need not be
            probabilities.
        score_threshold: keep detections with at least this score; None finds the optimum of each class.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    matches = match_detections(ground_truth, results, **options)
    if matches.iou_threshold >= 1.0:
        raise ValueError("iou_threshold must be below 1: LRP divides by 1 - iou_threshold")
    truth = matches.truth
    classes = zip(truth.category_ids, matches.num_objects.tolist(), strict=True)
    entries = [
        _class_lrp(category_id, matches.select(matches.classes == index), num_objects, score_threshold)
        for index, (category_id, num_objects) in enumerate(classes)
    ]
    known = [entry for entry in entries if entry.num_objects]
    names = ("lrp", "localization", "false_positive", "false_negative")
    means: dict[str, Any] = {name: mean_of_known([getattr(entry, name) for entry in known]) for name in names}
    settings = {**matches.settings, "score_threshold": None if score_threshold is None else float(score_threshold)}
    return LrpReport(
        **means,
        per_class=dict(zip(truth.class_names, entries, strict=True)),
        num_ignored=len(matches.ignored_scores),
        **settings,
    )


def keep_above(results: Sequence[Mapping[str, Any]], thresholds: Mapping[Any, float]) -> list[dict[str, Any]]:
    """COCO results with at least the score threshold of their class; new dicts, in the same order.

    Args:
        results: COCO results.
        thresholds: original category id -> score threshold, as `LrpReport.thresholds` has them. A class that is
            not in it keeps everything.
    """
    return [dict(result) for result in results if result["score"] >= thresholds.get(result["category_id"], -math.inf)]


def _class_lrp(category_id: Any, matches: Matches, num_objects: int, score_threshold: float | None) -> ClassLrp:
    """`matches` holds the detections of this class alone."""
    order = np.argsort(-matches.scores, kind="stable")
    scores, correct = matches.scores[order], matches.correct[order]
    # Entry k of these is for the k best detections, from none to all.
    true = np.append(0, np.cumsum(correct))
    false = np.arange(scores.size + 1) - true
    misfit = np.append(0.0, np.cumsum(np.where(correct, 1.0 - matches.ious[order], 0.0)))
    if not num_objects:
        nan = math.nan
        kept = scores.size if score_threshold is None else int((scores >= score_threshold).sum())
        return ClassLrp(category_id, nan, nan, nan, nan, nan, 0, 0, kept)
    missed = num_objects - true
    errors = (misfit / (1.0 - matches.iou_threshold) + false + missed) / (num_objects + false)
    if score_threshold is None:
        # No threshold lies between equal scores.
        cuts = np.flatnonzero(np.append(True, scores[:-1] != scores[1:]))[: scores.size]
        cuts = np.append(cuts, scores.size)
        kept = int(cuts[np.argmin(errors[cuts])])
        threshold = float(scores[kept - 1]) if kept else math.inf
    else:
        kept, threshold = int((scores >= score_threshold).sum()), float(score_threshold)
    return ClassLrp(
        category_id=category_id,
        lrp=float(errors[kept]),
        localization=float(misfit[kept] / true[kept]) if true[kept] else math.nan,
        false_positive=float(false[kept] / kept) if kept else math.nan,
        false_negative=float(missed[kept] / num_objects),
        score_threshold=threshold,
        num_objects=num_objects,
        num_true_positives=int(true[kept]),
        num_false_positives=int(false[kept]),
    )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint(MatchReport):
    """The detections with at least one score, all classes together.

    Attributes:
        num_detections: how many are kept; those on a crowd region do not count.
        expected_precision: their mean score, which is the share of right ones if the scores are probabilities; nan
            without detections. It needs no ground truth, so it can be had for images that nobody has annotated.
        precision: the share of right ones; nan without detections.
        recall: share of the objects that are found; nan without objects.
    """

    num_detections: int
    expected_precision: float
    precision: float
    recall: float

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the values."""
        return f"{iou_text(self.iou_threshold)}, maxDets {self.max_detections}, classes together"


def operating_points(
    ground_truth: Matchable,
    results: Results | None = None,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    **options: Unpack[MatchOptions],
) -> tuple[OperatingPoint, ...]:
    """Expected precision, precision and recall at each score threshold.

    Args:
        ground_truth, results, options: of `match_detections`; scores must lie in [0, 1].
        thresholds: scores in [0, 1].

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    for threshold in thresholds:
        check_probability("thresholds", threshold)
    matches = match_detections(ground_truth, results, **options)
    objects = int(matches.num_objects.sum())
    points = []
    for threshold in thresholds:
        kept = matches.above(threshold)
        count = len(kept.scores)
        point = OperatingPoint(
            num_detections=count,
            expected_precision=float(kept.scores.mean()) if count else math.nan,
            precision=float(kept.correct.mean()) if count else math.nan,
            recall=float(kept.correct.sum() / objects) if objects else math.nan,
            **kept.settings,
        )
        points.append(point)
    return tuple(points)


@dataclass(frozen=True, kw_only=True)
class RankingReport(MatchReport):
    """COCO's AP as it is, and what it would be if the ground truth had corrected the order.

    The step from `ap` to `true_first` is what wrong detections in front of right ones cost, of which
    `without_duplicates` shows the part of duplicates. The next step, to `best_first`, is what scores cost that do not
    know how good a box is. What is still missing to 1 are objects not found and boxes not exact.

    Attributes:
        ap: as it is.
        without_duplicates: with the detections removed that lie on an object of their class, but were not given one.
        true_first: with every true positive before every other detection, otherwise in the order of the scores.
        best_first: the same, true positives in the order of their IoU.
    """

    ap: float
    without_duplicates: float
    true_first: float
    best_first: float


def ranking_report(
    ground_truth: Matchable, results: Results | None = None, **options: Unpack[MatchOptions]
) -> RankingReport:
    """How much AP the order of the detections costs. Not in the paper.

    Args:
        ground_truth, results, options: of `match_detections`; `iou_threshold` decides what is a true positive,
            `max_detections` counts for AP, too, and AP is that of all images. Scores must lie in [0, 1].

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    matches = match_detections(ground_truth, results, **options).above(0.0)
    found, rows = matches.results, matches.rows
    _, overlaps = nearest_objects(found, rows)
    duplicates = rows[~matches.correct & (overlaps > 0.0) & (overlaps >= matches.iou_threshold)]
    right = rows[matches.correct]
    # Added to a probability, 1 puts a detection before all others.
    true_first, best_first = found.scores.copy(), found.scores.copy()
    true_first[right] += 1.0
    best_first[right] = matches.ious[matches.correct] + 1.0
    unique = np.ones(len(found.scores), dtype=bool)
    unique[duplicates] = False

    def ap(changed: CocoResults) -> float:
        return summarize(run_coco_eval(changed, (matches.max_detections,)), matches.truth)["AP"]

    return RankingReport(
        ap=ap(found),
        without_duplicates=ap(found.select(unique)),
        true_first=ap(replace(found, scores=true_first)),
        best_first=ap(replace(found, scores=best_first)),
        **matches.settings,
    )
