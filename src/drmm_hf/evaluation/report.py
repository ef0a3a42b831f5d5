"""Accuracy and calibration of one set of results from a single matching pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .calibration import CalibrationReport, report_from_matches
from .coco import run_coco_eval, summarize
from .coco_input import GroundTruth, Results, prepare_ground_truth


@dataclass(frozen=True)
class DetectionReport:
    """Result of `evaluate_detections`.

    Attributes:
        metrics: the dict of `evaluate_coco`.
        calibration: one `CalibrationReport` for each score threshold asked for.
    """

    metrics: dict[str, float]
    calibration: tuple[CalibrationReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"metrics": self.metrics, "calibration": [report.to_dict() for report in self.calibration]}


def evaluate_detections(
    ground_truth: GroundTruth,
    results: Results,
    *,
    max_detections: tuple[int, ...] = (1, 10, 100),
    image_ids: Sequence[int] | None = None,
    per_class: bool = False,
    iou_threshold: float = 0.5,
    num_bins: int = 10,
    score_thresholds: Sequence[float] = (0.0, 0.3),
) -> DetectionReport:
    """COCO numbers and calibration errors, matching once.

    Args:
        ground_truth, results, max_detections, image_ids, per_class: as in `evaluate_coco`.
        iou_threshold: IoU of the calibration errors, one of COCO's .50, .55, ..., .95; `calibration_report`
            takes any other.
        num_bins: as in `calibration_report`.
        score_thresholds: one calibration report each.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    truth = prepare_ground_truth(ground_truth)
    evaluation = run_coco_eval(truth, results, max_detections=max_detections, image_ids=image_ids)
    calibration = tuple(
        report_from_matches(evaluation, iou_threshold=iou_threshold, num_bins=num_bins, score_threshold=score_threshold)
        for score_threshold in score_thresholds
    )
    return DetectionReport(summarize(evaluation, truth, per_class=per_class), calibration)
