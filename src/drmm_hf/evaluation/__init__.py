"""Evaluation: COCO AP, calibration, prediction over a data set."""

from .calibration import CalibrationReport, calibration_report
from .coco import detections_to_coco, evaluate_coco
from .predict import predict_dataset, predict_images
from .report import DetectionReport, evaluate_detections

__all__ = [
    "CalibrationReport",
    "DetectionReport",
    "calibration_report",
    "detections_to_coco",
    "evaluate_coco",
    "evaluate_detections",
    "predict_dataset",
    "predict_images",
]
