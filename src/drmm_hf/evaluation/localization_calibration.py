"""How far confidences are from localisation quality, class by class: LaECE, LaECE_0 and LaACE_0."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coco_input import GroundTruth, Results
from .matches import BinnedReport, Matches, match_detections, mean_of_known, score_bins


@dataclass(frozen=True)
class ClassLocalizationCalibration:
    """LaECE and LaACE of one class; nan without detections."""

    laece: float
    laace: float
    num_detections: int


@dataclass(frozen=True)
class LocalizationCalibrationReport(BinnedReport):
    """Localisation-aware calibration errors together with everything they depend on.

    Attributes:
        laece: mean over the classes with detections of Σ_b n_b/N · |conf_b - Σ_TP IoU / n_b|, in [0, 1];
            nan if there are no detections. At `iou_threshold` 0 it is LaECE_0.
        laace: mean over the same classes of the mean of |score - IoU|, a false positive having IoU 0. At
            `iou_threshold` 0 it is LaACE_0; it has no bins, and is never below `laece`.
        per_class: category name -> the same for each class.
        num_detections, num_ignored: detections counted, and those left out because they lie on a crowd region.
        iou_threshold, num_bins, score_threshold, max_detections: the settings.
    """

    laece: float
    laace: float
    per_class: dict[str, ClassLocalizationCalibration]
    num_detections: int
    num_ignored: int
    iou_threshold: float
    num_bins: int
    score_threshold: float
    max_detections: int


def localization_calibration_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.1,
    num_bins: int = 25,
    score_threshold: float = 0.0,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> LocalizationCalibrationReport:
    """Localisation-aware calibration errors: a score should say how well the box fits, not only that it is right.

    The default is LaECE (Oksuz et al., Towards building self-aware object detectors, CVPR 2023: IoU 0.10, 25
    bins). `iou_threshold=0` gives LaECE_0 and LaACE_0 (Kuzucu et al., On calibration of object detectors, ECCV
    2024), where any overlap with a box that is still free makes a true positive. Matching is COCO's, per image
    and class from the highest score down; a second detection of an object counts with IoU 0, and detections
    matched to a crowd region are left out.

    Both papers keep only detections above an operating threshold: `score_threshold`, or the LRP-optimal one of
    each class (`keep_above(results, lrp_report(...).thresholds)`).

    Args:
        ground_truth, results, image_ids: as in `evaluate_coco`; scores must lie in [0, 1].
        iou_threshold: smallest IoU of a true positive, in [0, 1].
        num_bins: equal-width score bins over [0, 1]; a bin holds its lower edge, the last bin also 1.
        score_threshold: count detections with at least this score.
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
    return localization_report_from_matches(matches, num_bins=num_bins, score_threshold=score_threshold)


def localization_report_from_matches(
    matches: Matches, *, num_bins: int = 25, score_threshold: float = 0.0
) -> LocalizationCalibrationReport:
    """The report of `localization_calibration_report` from detections that are matched already."""
    matches = matches.above(score_threshold)
    num_classes = len(matches.category_ids)
    cells = matches.classes * num_bins + score_bins(matches.scores, num_bins)
    gaps = matches.scores - matches.ious
    counts = np.bincount(matches.classes, minlength=num_classes)
    divisor = np.where(counts > 0, counts, np.nan)
    # n_b/N · |conf_b - ΣIoU/n_b| = |Σ (score - IoU)| / N: no division by an empty bin.
    bin_gaps = np.bincount(cells, weights=gaps, minlength=num_classes * num_bins).reshape(num_classes, num_bins)
    laece = np.abs(bin_gaps).sum(axis=1) / divisor
    laace = np.bincount(matches.classes, weights=np.abs(gaps), minlength=num_classes) / divisor
    rows = zip(matches.category_names, laece.tolist(), laace.tolist(), counts.tolist(), strict=True)
    return LocalizationCalibrationReport(
        laece=mean_of_known(laece),
        laace=mean_of_known(laace),
        per_class={name: ClassLocalizationCalibration(*values) for name, *values in rows},
        num_detections=int(counts.sum()),
        num_ignored=matches.num_ignored,
        iou_threshold=matches.iou_threshold,
        num_bins=num_bins,
        score_threshold=float(score_threshold),
        max_detections=matches.max_detections,
    )
