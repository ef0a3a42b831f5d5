"""How far confidences are from precision: the expected calibration error of detections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coco_input import GroundTruth, Results
from .matches import BinnedReport, Matches, check_overlap, match_detections, score_bins


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
    check_overlap("iou_threshold", iou_threshold)
    matches = match_detections(
        ground_truth, results, iou_threshold=iou_threshold, max_detections=max_detections, image_ids=image_ids
    )
    return report_from_matches(matches, num_bins=num_bins, score_threshold=score_threshold)


def report_from_matches(matches: Matches, *, num_bins: int = 10, score_threshold: float = 0.0) -> CalibrationReport:
    """The report of `calibration_report` from its matches."""
    above = matches.above(score_threshold)
    scores, correct = above.scores, above.correct
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
        num_ignored=int((matches.ignored_scores >= score_threshold).sum()),
        bin_edges=tuple(edges.tolist()),
        bin_counts=tuple(counts.tolist()),
        bin_confidences=tuple((score_sums / divisor).tolist()),
        bin_accuracies=tuple((correct_sums / divisor).tolist()),
        iou_threshold=matches.iou_threshold,
        num_bins=num_bins,
        score_threshold=float(score_threshold),
        max_detections=matches.max_detections,
    )
