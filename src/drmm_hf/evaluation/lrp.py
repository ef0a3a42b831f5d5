"""Localisation-recall-precision (LRP) error, and the score threshold at which it is smallest for each class."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..files import to_plain
from .coco_input import GroundTruth, Results
from .matches import Matches, iou_text, match_detections, mean_of_known


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


@dataclass(frozen=True)
class LrpReport:
    """LRP error together with everything it depends on.

    Attributes:
        lrp: mean over the classes with ground truth; moLRP (mean optimal LRP) if `score_threshold` is None.
        localization, false_positive, false_negative: means of the components over the classes that have them.
        per_class: category name -> the same for each class.
        num_ignored: detections left out because they lie on a crowd region.
        score_threshold: None where each class has its own optimum.
        iou_threshold, max_detections: the other settings.
    """

    lrp: float
    localization: float
    false_positive: float
    false_negative: float
    per_class: dict[str, ClassLrp]
    num_ignored: int
    iou_threshold: float
    score_threshold: float | None
    max_detections: int

    @property
    def thresholds(self) -> dict[Any, float]:
        """Original category id -> score threshold, for the classes with ground truth; see `keep_above`."""
        return {entry.category_id: entry.score_threshold for entry in self.per_class.values() if entry.num_objects}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with None for nan and for the infinite threshold."""
        return to_plain(asdict(self))

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        scores = (
            "LRP-optimal score thresholds" if self.score_threshold is None else f"score >= {self.score_threshold:g}"
        )
        return f"{iou_text(self.iou_threshold)}, {scores}, maxDets {self.max_detections}"


def lrp_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float | None = None,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> LrpReport:
    """LRP error of each class and its mean, at the best threshold of each class or at a given one.

    Oksuz et al., One metric to measure them all: localisation recall precision (LRP) for evaluating visual
    detection tasks, TPAMI 2021. Detections are matched once, as COCO does; a threshold keeps the best of them,
    which changes no match above it. Every score of a class is tried, and among equally good thresholds the
    highest is reported. A threshold chosen on the images it is reported on is optimistic: choose it on others.

    Args:
        ground_truth, results, image_ids: as in `evaluate_coco`. Scores need not be probabilities.
        iou_threshold: τ, smallest IoU of a true positive, in [0, 1); at 0 any overlap.
        score_threshold: keep detections with at least this score; None finds the optimum of each class.
        max_detections: highest-scored detections counted per image and class, as in COCO.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    matches = match_detections(
        ground_truth,
        results,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        image_ids=image_ids,
    )
    return lrp_report_from_matches(matches, score_threshold=score_threshold)


def lrp_report_from_matches(matches: Matches, *, score_threshold: float | None = None) -> LrpReport:
    """The report of `lrp_report` from detections that are matched already."""
    if matches.iou_threshold >= 1.0:
        raise ValueError("iou_threshold must be below 1: LRP divides by 1 - iou_threshold")
    per_class = {
        name: _class_lrp(category_id, matches.select(matches.classes == index), int(count), score_threshold)
        for index, (name, category_id, count) in enumerate(
            zip(matches.category_names, matches.category_ids, matches.num_objects, strict=True)
        )
    }
    known = [entry for entry in per_class.values() if entry.num_objects]
    return LrpReport(
        lrp=mean_of_known([entry.lrp for entry in known]),
        localization=mean_of_known([entry.localization for entry in known]),
        false_positive=mean_of_known([entry.false_positive for entry in known]),
        false_negative=mean_of_known([entry.false_negative for entry in known]),
        per_class=per_class,
        num_ignored=matches.num_ignored,
        iou_threshold=matches.iou_threshold,
        score_threshold=None if score_threshold is None else float(score_threshold),
        max_detections=matches.max_detections,
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
