"""What keeping the detections from a score on gives: the precision that the scores promise, and the one there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .coco_input import GroundTruth, Results
from .matches import Report, check_overlap, check_probability, iou_text, match_detections


@dataclass(frozen=True)
class OperatingPoint(Report):
    """The detections with at least one score, all classes together.

    Attributes:
        score_threshold: the smallest score that is kept.
        num_detections: how many are kept; those on a crowd region do not count.
        expected_precision: their mean score, which is the share of right ones if the scores are probabilities; nan
            without detections. It needs no ground truth, so it can be had for images that nobody has annotated.
        precision: the share of right ones; nan without detections.
        recall: share of the objects that are found; nan without objects.
        iou_threshold, max_detections: the settings.
    """

    score_threshold: float
    num_detections: int
    expected_precision: float
    precision: float
    recall: float
    iou_threshold: float
    max_detections: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the values."""
        return f"{iou_text(self.iou_threshold)}, maxDets {self.max_detections}, classes together"


def operating_points(
    ground_truth: GroundTruth,
    results: Results,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> tuple[OperatingPoint, ...]:
    """Expected precision, precision and recall at each score threshold.

    Args:
        ground_truth, results, image_ids: as in `evaluate_coco`; scores must lie in [0, 1].
        thresholds: scores in [0, 1].
        iou_threshold: smallest IoU of a right detection, in (0, 1].
        max_detections: highest-scored detections counted per image and class, as in COCO.

    Raises:
        FileNotFoundError, ValueError: bad input; the message names file and field, or the setting.
    """
    check_overlap("iou_threshold", iou_threshold)
    for threshold in thresholds:
        check_probability("thresholds", threshold)
    matches = match_detections(
        ground_truth, results, iou_threshold=iou_threshold, max_detections=max_detections, image_ids=image_ids
    )
    objects = int(matches.num_objects.sum())
    points = []
    for threshold in thresholds:
        kept = matches.above(threshold)
        count = len(kept.scores)
        points.append(
            OperatingPoint(
                score_threshold=float(threshold),
                num_detections=count,
                expected_precision=float(kept.scores.mean()) if count else math.nan,
                precision=float(kept.correct.mean()) if count else math.nan,
                recall=float(kept.correct.sum() / objects) if objects else math.nan,
                iou_threshold=float(iou_threshold),
                max_detections=int(max_detections),
            )
        )
    return tuple(points)
