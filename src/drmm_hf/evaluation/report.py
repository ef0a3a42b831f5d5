"""Accuracy and calibration of one set of results from a single matching pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files import collection_paused
from .calibration import CalibrationReport, report_from_matches
from .calibration_parts import has_objectness, parts_from_matches, read_objectness
from .coco import run_coco_eval, summarize
from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results, read_results
from .localization_calibration import LocalizationCalibrationReport, localization_report_from_matches
from .lrp import LrpReport, lrp_report_from_matches
from .matches import ANY_OVERLAP, matches_at
from .scoring_rules import BrierReport, brier_report_from_matches


@dataclass(frozen=True)
class DetectionReport:
    """Result of `evaluate_detections`.

    Attributes:
        metrics: the dict of `evaluate_coco`; with `also_at=300` also `AP@300`, `AP50@300` and so on, and `AR300`.
        calibration: one `CalibrationReport` for each score threshold asked for.
        num_images, num_detections: what was evaluated.
        localization: LaECE (IoU 0.1) and LaECE_0 (any overlap); empty unless `details` were asked for.
        lrp: at the best threshold of each class; None unless `details` were asked for.
        brier: at the IoU threshold of `calibration`; None unless `details` were asked for.
        parts: the score p·o, p and o by themselves, see `part_calibration_report`; empty unless `details` were asked
            for and the results carry `objectness`.
    """

    metrics: dict[str, float]
    calibration: tuple[CalibrationReport, ...]
    num_images: int
    num_detections: int
    localization: tuple[LocalizationCalibrationReport, ...] = ()
    lrp: LrpReport | None = None
    brier: BrierReport | None = None
    parts: dict[str, CalibrationReport] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what was not asked for is left out."""
        plain: dict[str, Any] = {
            "metrics": self.metrics,
            "calibration": [report.to_dict() for report in self.calibration],
        }
        if self.localization:
            plain["localization"] = [report.to_dict() for report in self.localization]
        if self.lrp is not None:
            plain["lrp"] = self.lrp.to_dict()
        if self.brier is not None:
            plain["brier"] = self.brier.to_dict()
        if self.parts:
            plain["parts"] = {name: report.to_dict() for name, report in self.parts.items()}
        return plain


@collection_paused()
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
    also_at: int | None = None,
    details: bool = False,
) -> DetectionReport:
    """COCO numbers and calibration errors, matching once.

    Args:
        ground_truth, results, max_detections, image_ids, per_class: as in `evaluate_coco`.
        iou_threshold: IoU of the calibration errors, one of COCO's .50, .55, ..., .95; `calibration_report`
            takes any other.
        num_bins: as in `calibration_report`.
        score_thresholds: one calibration report each.
        also_at: a larger number of detections an image and class, to report AP and AR at besides the last of
            `max_detections`. Everything but these two sets of numbers is then counted at the larger one.
        details: also LaECE, LaECE_0, LRP and Brier score, with the defaults of their modules, and where the results
            carry `objectness` the calibration of p and o by themselves.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    if also_at is not None and also_at <= max_detections[-1]:
        raise ValueError(f"also_at is {also_at}; it must be above {max_detections[-1]}, which is reported anyway")
    truth = prepare_ground_truth(ground_truth)
    rows, source = read_results(results)
    evaluation = run_coco_eval(
        truth,
        prepare_results(rows, truth, source),
        max_detections=max_detections if also_at is None else (*max_detections, also_at),
        image_ids=image_ids,
    )
    matches = matches_at(evaluation, truth, iou_threshold)
    calibration = tuple(
        report_from_matches(matches, num_bins=num_bins, score_threshold=score_threshold)
        for score_threshold in score_thresholds
    )
    metrics = summarize(evaluation, truth, per_class=per_class, max_detections=max_detections[-1])
    if also_at is not None:
        at_more = summarize(evaluation, truth, max_detections=also_at)
        # AR1 to AR300 carry their limit in the name already.
        limits = {f"AR{limit}" for limit in (*max_detections, also_at)}
        metrics |= {f"{name}@{also_at}": value for name, value in at_more.items() if name not in limits}
    counts = (len(evaluation.params.imgIds), len(rows))
    if not details:
        return DetectionReport(metrics, calibration, *counts)
    parts = {}
    if has_objectness(rows):
        parts = parts_from_matches(matches, read_objectness(rows, source), num_bins)
    closer = evaluation.matched_at((ANY_OVERLAP, 0.1))
    return DetectionReport(
        metrics,
        calibration,
        *counts,
        localization=tuple(
            localization_report_from_matches(matches_at(closer, truth, overlap)) for overlap in (0.1, 0.0)
        ),
        lrp=lrp_report_from_matches(matches),
        brier=brier_report_from_matches(matches, num_bins=num_bins),
        parts=parts,
    )
