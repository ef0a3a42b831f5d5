"""Evaluation: COCO AP, calibration, prediction over a data set."""

from .calibration import CalibrationReport, calibration_report
from .coco import detections_to_coco, evaluate_coco
from .duplicates import DuplicateCount, count_duplicates, nms_sweep, suppress
from .predict import predict_dataset, predict_images
from .report import DetectionReport, evaluate_detections

__all__ = [
    "CalibrationReport",
    "DetectionReport",
    "DuplicateCount",
    "calibration_report",
    "count_duplicates",
    "detections_to_coco",
    "evaluate_coco",
    "evaluate_detections",
    "nms_sweep",
    "predict_dataset",
    "predict_images",
    "suppress",
]
