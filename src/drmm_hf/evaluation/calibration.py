"""How far confidences are from precision: the expected calibration error of detections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from .coco import run_coco_eval
from .coco_input import GroundTruth, Results, prepare_ground_truth
from .matches import BinnedReport, check_probability, score_bins


@dataclass(frozen=True)
class CalibrationReport(BinnedReport):
    """Expected calibration error together with everything it depends on.

    Attributes:
        ece: Σ_m |B_m|/n · |acc(B_m) - conf(B_m)|, in [0, 1]; nan if there are no detections, since 0 would
            read as perfectly calibrated.
        num_detections: n, the detections that were counted.
        num_ignored: detections left out because they lie on a crowd region.
        bin_edges: the `num_bins` + 1 edges of equal-width bins over [0, 1]; a bin holds its lower edge, the
            last bin also 1.
        bin_counts: detections per bin.
        bin_confidences: mean score per bin; nan if empty.
        bin_accuracies: precision per bin; nan if empty.
        iou_threshold, num_bins, score_threshold, max_detections: the settings; the value means nothing
            without them.
    """

    ece: float
    num_detections: int
    num_ignored: int
    bin_edges: tuple[float, ...]
    bin_counts: tuple[int, ...]
    bin_confidences: tuple[float, ...]
    bin_accuracies: tuple[float, ...]
    iou_threshold: float
    num_bins: int
    score_threshold: float
    max_detections: int


def calibration_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.5,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> CalibrationReport:
    """Expected calibration error of detections (Eq. 9 of the D-RMM paper).

    A detection is right if COCO's greedy matching, per image and class from the highest score down, gives it
    a ground-truth box at `iou_threshold`; a second detection of the same object is wrong. Classes are pooled.
    Detections matched to a crowd region are left out.

    The paper gives neither the number of bins nor a score threshold. The defaults are ten equal-width bins
    over all detections; nearly all of 100 detections an image have tiny scores, so the lowest bin then
    carries most of the weight. `score_threshold=0.3` gives D-ECE as Küppers et al. (CVPRW 2020) report it.

    Args:
        ground_truth, results, image_ids: as in `evaluate_coco`; scores must lie in [0, 1].
        iou_threshold: smallest IoU of a right detection, in (0, 1].
        num_bins: number of equal-width score bins.
        score_threshold: count detections with at least this score.
        max_detections: highest-scored detections counted per image and class, as in COCO.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    if not 0.0 < iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold must lie in (0, 1], not {iou_threshold}")
    evaluation = run_coco_eval(
        prepare_ground_truth(ground_truth),
        results,
        max_detections=(max_detections,),
        image_ids=image_ids,
        iou_thresholds=[iou_threshold],
        areas=("all",),
    )
    return report_from_matches(
        evaluation, iou_threshold=iou_threshold, num_bins=num_bins, score_threshold=score_threshold
    )


def report_from_matches(
    evaluation: COCOeval, *, iou_threshold: float, num_bins: int, score_threshold: float
) -> CalibrationReport:
    """The report from a matched `COCOeval` that has `iou_threshold`, and "all" as its first area."""
    check_probability("score_threshold", score_threshold)
    scores, correct, ignored = matched_scores(evaluation, iou_threshold)
    outside = scores[(scores < 0) | (scores > 1)]
    if outside.size:
        raise ValueError(f"results: score {outside[0]:g} is outside [0, 1]; calibration needs probabilities")
    above = scores >= score_threshold
    counted = above & ~ignored
    scores, correct = scores[counted], correct[counted]
    bins = score_bins(scores, num_bins)
    edges = np.arange(num_bins + 1) / num_bins
    counts = np.bincount(bins, minlength=num_bins)
    score_sums = np.bincount(bins, weights=scores, minlength=num_bins)
    correct_sums = np.bincount(bins, weights=correct, minlength=num_bins)
    # |B|/n · |acc - conf| = |Σ correct - Σ score| / n: no division by an empty bin.
    ece = float(np.abs(correct_sums - score_sums).sum() / scores.size) if scores.size else math.nan
    divisor = np.where(counts > 0, counts, np.nan)
    return CalibrationReport(
        ece=ece,
        num_detections=int(scores.size),
        num_ignored=int((above & ignored).sum()),
        bin_edges=tuple(edges.tolist()),
        bin_counts=tuple(counts.tolist()),
        bin_confidences=tuple((score_sums / divisor).tolist()),
        bin_accuracies=tuple((correct_sums / divisor).tolist()),
        iou_threshold=float(iou_threshold),
        num_bins=num_bins,
        score_threshold=float(score_threshold),
        max_detections=int(evaluation.params.maxDets[-1]),
    )


def matched_scores(evaluation: COCOeval, iou_threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score (n,), whether it is a true positive (n,) and whether COCO ignores it (n,), of every detection.

    Raises:
        ValueError: `evaluation` was not matched at `iou_threshold`.
    """
    (at,) = np.nonzero(np.isclose(evaluation.params.iouThrs, iou_threshold))
    if not at.size:
        matched = ", ".join(f"{value:.2f}" for value in evaluation.params.iouThrs)
        raise ValueError(f"iou_threshold {iou_threshold:g} was not matched; choose one of {matched}")
    everything = evaluation.params.areaRng[0]
    images = [image for image in evaluation.evalImgs if image is not None and image["aRng"] == everything]
    scores = [np.asarray(image["dtScores"], dtype=float) for image in images]
    correct = [np.asarray(image["dtMatches"][at[0]]) > 0 for image in images]
    ignored = [np.asarray(image["dtIgnore"][at[0]]).astype(bool) for image in images]
    if not images:
        return np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    return np.concatenate(scores), np.concatenate(correct), np.concatenate(ignored)
