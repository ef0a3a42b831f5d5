"""The numbers of one evaluation, as `metrics.json` has them: COCO AP and AR, calibration errors and more."""

from dataclasses import dataclass, field
from typing import Any

from .calibration import (
    BrierReport,
    CalibrationReport,
    LocalizationCalibrationReport,
    brier_report,
    calibration_report,
    d_ece_report,
    localization_calibration_report,
    part_calibration_report,
)
from .coco import run_coco_eval, summarize
from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results
from .matches import Report, match_detections
from .thresholds import LrpReport, lrp_report


@dataclass(frozen=True)
class DetectionReport(Report):
    """Result of `evaluate_detections`; what is not measured without `details` is empty or None."""

    metrics: dict[str, float]  # of `evaluate_coco`; with `also_at=300` also `AP@300`, `AP50@300` and so on, and `AR300`
    calibration: tuple[CalibrationReport, ...]  # ECE and D-ECE
    num_images: int
    num_detections: int
    localization: tuple[LocalizationCalibrationReport, ...] = ()  # LaECE (IoU 0.1) and LaECE_0 (any overlap)
    lrp: LrpReport | None = None  # at the best threshold of each class
    brier: BrierReport | None = None
    # of the score p·o, p and o by themselves, if the results carry `objectness`
    parts: dict[str, CalibrationReport] = field(default_factory=dict)

    @property
    def named_calibration(self) -> dict[str, CalibrationReport]:
        """`calibration` by the names of its two."""
        return dict(zip(("ECE", "D-ECE"), self.calibration, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the counts; what was not asked for is left out."""
        plain = super().to_dict()
        return {name: plain[name] for name in plain if plain[name] and not name.startswith("num_")}


def evaluate_detections(
    ground_truth: GroundTruth,
    results: Results,
    *,
    per_class: bool = False,
    num_bins: int = 10,
    also_at: int | None = None,
    details: bool = False,
) -> DetectionReport:
    """COCO numbers and calibration errors.

    Args:
        ground_truth, results, per_class: as in `evaluate_coco`.
        num_bins: of the ECEs; the D-ECE has its own, see `d_ece_report`.
        also_at: a number of detections an image and class above 100, to report AP and AR at besides. Everything but
            these two sets of numbers is then counted at the larger one.
        details: also LaECE, LaECE_0, LRP and Brier score, and where the results carry `objectness` the calibration of
            p and o by themselves.
    """
    if also_at is not None and also_at <= 100:
        raise ValueError(f"also_at is {also_at}; it must be above 100, which is reported anyway")
    limits = (1, 10, 100) if also_at is None else (1, 10, 100, also_at)
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    evaluation = run_coco_eval(found, limits)
    metrics = summarize(evaluation, truth, per_class=per_class, max_detections=100)
    if also_at is not None:
        at_more = summarize(evaluation, truth, max_detections=also_at)
        # AR1 to AR300 carry their limit in the name already.
        named = {f"AR{limit}" for limit in limits}
        metrics |= {f"{name}@{also_at}": value for name, value in at_more.items() if name not in named}
    matches = match_detections(truth, found, max_detections=limits[-1])
    more: dict[str, Any] = {}
    if details:
        located = tuple(localization_calibration_report(loose) for loose in matches.loose)
        more |= {"localization": located, "brier": brier_report(matches), "lrp": lrp_report(matches)}
        more["parts"] = part_calibration_report(matches, num_bins=num_bins) if found.have("objectness") else {}
    return DetectionReport(
        metrics=metrics,
        calibration=(calibration_report(matches, num_bins=num_bins), d_ece_report(matches)),
        num_images=len(truth.image_ids),
        num_detections=len(found.rows),
        **more,
    )
