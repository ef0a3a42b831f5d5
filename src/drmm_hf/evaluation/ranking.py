"""What the order of the detections costs: AP with that order put right, boxes and classes as they are."""

from dataclasses import dataclass

from pycocotools.coco import COCO

from .calibration_parts import with_score
from .coco import evaluate_coco
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth, prepare_results, read_results
from .duplicates import object_overlaps
from .matches import Matches, Report, check_overlap, match_detections


@dataclass(frozen=True)
class RankingReport(Report):
    """COCO's AP as it is, and what it would be if the ground truth had corrected the order.

    The step from `ap` to `true_first` is what wrong detections in front of right ones cost, of which
    `without_duplicates` shows the part of duplicates. The next step, to `best_first`, is what scores cost that do not
    know how good a box is. What is still missing to 1 are objects not found and boxes not exact.

    Attributes:
        ap: as it is.
        without_duplicates: with the detections removed that lie on an object of their class, but were not given one.
        true_first: with every true positive before every other detection, otherwise in the order of the scores.
        best_first: the same, true positives in the order of their IoU.
        iou_threshold, max_detections: of the matching that decides what is a true positive.
    """

    ap: float
    without_duplicates: float
    true_first: float
    best_first: float
    iou_threshold: float
    max_detections: int


def ranking_report(
    ground_truth: GroundTruth,
    results: Results,
    *,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
) -> RankingReport:
    """How much AP the order of the detections costs. Not in the paper.

    Args:
        ground_truth, results: as in `evaluate_coco`.
        iou_threshold: in (0, 1], a detection is a true positive if COCO's matching gives it an object there.
        max_detections: per image and class, in the matching and in AP.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_coco`; also a score that is no probability, or a threshold outside
            (0, 1].
    """
    check_overlap("iou_threshold", iou_threshold)
    truth = prepare_ground_truth(ground_truth)
    rows, source = read_results(results)
    found = prepare_results(rows, truth, source)
    matches = match_detections(truth.coco, found, iou_threshold=iou_threshold, max_detections=max_detections)
    return ranking_from_matches(matches, truth, found, _ap(truth, rows, max_detections))


def ranking_from_matches(matches: Matches, truth: CocoGroundTruth, found: COCO, ap: float) -> RankingReport:
    """`ranking_report` from the matches of the prepared results `found`, and their AP at `matches.max_detections`."""
    matches = matches.above(0.0)
    right = dict(zip(matches.rows[matches.correct].tolist(), matches.ious[matches.correct].tolist(), strict=True))
    wrong = set(matches.rows[~matches.correct].tolist())
    duplicates = wrong & {
        detection["id"] - 1
        for detections, overlap in object_overlaps(truth, found)
        for detection, largest in zip(detections, overlap.max(axis=1).tolist(), strict=True)
        if largest >= matches.iou_threshold
    }
    rows = list(found.anns.values())
    # added to a probability, 1 puts a detection before all others
    orders = {
        "without_duplicates": [one for row, one in enumerate(rows) if row not in duplicates],
        "true_first": [with_score(one, one["score"] + 1) if row in right else one for row, one in enumerate(rows)],
        "best_first": [with_score(one, right[row] + 1) if row in right else one for row, one in enumerate(rows)],
    }
    return RankingReport(
        ap=ap,
        **{name: _ap(truth, order, matches.max_detections) for name, order in orders.items()},
        iou_threshold=matches.iou_threshold,
        max_detections=matches.max_detections,
    )


def _ap(truth: CocoGroundTruth, results: Results, max_detections: int) -> float:
    return evaluate_coco(truth.coco, results, max_detections=(max_detections,))["AP"]
