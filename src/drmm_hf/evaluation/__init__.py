"""Evaluation: COCO AP, calibration, thresholds, duplicates, uncertainty and likelihood, and prediction over a data set.

All measures but the likelihood take COCO results of any detector. Results are matched to ground truth once with
`match_detections`, whose matches every measure takes in the place of ground truth and results.
"""

from ..postprocessing import box_intervals
from .calibration import (
    BrierReport,
    CalibrationReport,
    LocalizationCalibrationReport,
    ObjectCalibrationReport,
    brier_report,
    calibration_report,
    localization_calibration_report,
    object_calibration_report,
    part_calibration_report,
    save_reliability_diagram,
)
from .coco import detections_to_coco, evaluate_coco
from .duplicates import DuplicateCount, count_duplicates, nms_sweep, suppress
from .likelihood import LikelihoodReport, likelihood_report
from .matches import Matches, match_detections
from .metrics import DetectionReport, evaluate_detections
from .predict import predict_dataset, predict_images
from .recalibration import ScoreCalibration, split_half_report
from .thresholds import (
    LrpReport,
    OperatingPoint,
    RankingReport,
    keep_above,
    lrp_report,
    operating_points,
    ranking_report,
)
from .uncertainty import IntervalReport, ScaleFactorReport, fit_scale_factor, interval_report

__all__ = [
    "BrierReport", "CalibrationReport", "DetectionReport", "DuplicateCount", "IntervalReport", "LikelihoodReport",
    "LocalizationCalibrationReport", "LrpReport", "Matches", "ObjectCalibrationReport", "OperatingPoint",
    "RankingReport", "ScaleFactorReport", "ScoreCalibration", "box_intervals", "brier_report", "calibration_report",
    "count_duplicates", "detections_to_coco", "evaluate_coco", "evaluate_detections", "fit_scale_factor",
    "interval_report", "keep_above", "likelihood_report", "localization_calibration_report", "lrp_report",
    "match_detections", "nms_sweep", "object_calibration_report", "operating_points", "part_calibration_report",
    "predict_dataset", "predict_images", "ranking_report", "save_reliability_diagram", "split_half_report", "suppress",
]  # fmt: skip
