"""Calibration of the two factors of a score, the class probability p and the objectness o, each by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .calibration import CalibrationReport, report_from_matches
from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results, read_results
from .matches import Matches, check_overlap, match_detections

PARTS = ("score", "class_probability", "objectness")


def part_calibration_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.5,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> dict[str, CalibrationReport]:
    """ECE of the score p·o, of p alone and of o alone (Fig. 9 of the D-RMM paper).

    The detections are the same in all three, and so is which of them are right: those of `calibration_report`, matched
    in the order of the score p·o. Only the confidence that is compared with the precision differs.

    Args:
        ground_truth, iou_threshold, num_bins, max_detections, image_ids: as in `calibration_report`.
        results: COCO results with `objectness`, as `predict_dataset(..., with_parts=True)` returns them, or the path of
            a JSON file of them.
        score_threshold: count detections whose score p·o is at least this.

    Returns:
        "score", "class_probability" and "objectness" -> the report.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    check_overlap("iou_threshold", iou_threshold)
    truth, (rows, source) = prepare_ground_truth(ground_truth), read_results(results)
    found = prepare_results(rows, truth, source)
    matches = match_detections(
        truth.coco, found, iou_threshold=iou_threshold, max_detections=max_detections, image_ids=image_ids
    )
    return parts_from_matches(matches, read_objectness(rows, source), num_bins, score_threshold)


def parts_from_matches(
    matches: Matches, objectness: np.ndarray, num_bins: int = 10, score_threshold: float = 0.0
) -> dict[str, CalibrationReport]:
    """The reports of `part_calibration_report` from its matches and the (n,) objectness of all results."""
    kept = matches.above(score_threshold)
    own = objectness[kept.rows]
    # Rounding can put p just above 1; where o has underflowed, so has the score.
    share = np.divide(kept.scores, own, out=np.zeros_like(kept.scores), where=own > 0.0).clip(max=1.0)
    ignored = kept.ignored_scores[kept.ignored_scores >= score_threshold]
    reports = {}
    for name, values in zip(PARTS, (kept.scores, share, own), strict=True):
        part = replace(kept, scores=values, ignored_scores=ignored)
        report = report_from_matches(part, num_bins=num_bins)
        reports[name] = replace(report, score_threshold=float(score_threshold), num_ignored=len(ignored))
    return reports


def with_score(result: Mapping[str, Any], score: float) -> dict[str, Any]:
    """A result with another score, of which its objectness is no longer a factor."""
    return {**{name: value for name, value in result.items() if name != "objectness"}, "score": score}


def has_objectness(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are results, and all carry their objectness."""
    return bool(results) and all("objectness" in result for result in results)


def read_objectness(results: Sequence[Mapping[str, Any]], source: str = "results") -> np.ndarray:
    """(n,) objectness of the results; a `ValueError` that names the first that has none."""
    values = np.zeros(len(results))
    for index, result in enumerate(results):
        value = result.get("objectness")
        if value is None:
            raise ValueError(
                f"{source}[{index}].objectness is missing; predict with predict_dataset(..., with_parts=True)"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise ValueError(f"{source}[{index}].objectness: {value!r} is not a number in [0, 1]")
        if result["score"] > value + 1e-4 and not math.isclose(result["score"], value, rel_tol=1e-3):
            raise ValueError(
                f"{source}[{index}].objectness: {value:g} is below the score {result['score']:g}, which is a product "
                "of it; keep both as they were predicted"
            )
        values[index] = value
    return values
