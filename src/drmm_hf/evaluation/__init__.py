"""Evaluation: COCO AP, calibration, prediction over a data set."""

from .calibration import CalibrationReport, calibration_report
from .calibration_parts import part_calibration_report
from .coco import detections_to_coco, evaluate_coco
from .duplicates import DuplicateCount, count_duplicates, nms_sweep, suppress
from .likelihood import LikelihoodReport, likelihood_report
from .localization_calibration import LocalizationCalibrationReport, localization_calibration_report
from .lrp import LrpReport, lrp_report
from .operating_points import OperatingPoint, operating_points
from .predict import predict_dataset, predict_images
from .ranking import RankingReport, ranking_report
from .recalibration import ScoreCalibration, split_half_report
from .reliability import save_reliability_diagram
from .report import DetectionReport, evaluate_detections
from .scoring_rules import BrierReport, ObjectCalibrationReport, brier_report, object_calibration_report
from .uncertainty import IntervalReport, ScaleFactorReport, box_intervals, fit_scale_factor, interval_report

__all__ = [
    "BrierReport",
    "CalibrationReport",
    "DetectionReport",
    "DuplicateCount",
    "IntervalReport",
    "LikelihoodReport",
    "LocalizationCalibrationReport",
    "LrpReport",
    "ObjectCalibrationReport",
    "OperatingPoint",
    "RankingReport",
    "ScaleFactorReport",
    "ScoreCalibration",
    "box_intervals",
    "brier_report",
    "calibration_report",
    "count_duplicates",
    "detections_to_coco",
    "evaluate_coco",
    "evaluate_detections",
    "fit_scale_factor",
    "interval_report",
    "likelihood_report",
    "localization_calibration_report",
    "lrp_report",
    "nms_sweep",
    "object_calibration_report",
    "operating_points",
    "part_calibration_report",
    "predict_dataset",
    "predict_images",
    "ranking_report",
    "save_reliability_diagram",
    "split_half_report",
    "suppress",
]
