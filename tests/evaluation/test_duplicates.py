"""Duplicates counted, suppressed and merged, on cases small enough to check by hand."""

import copy

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms
from torchvision.ops import box_iou as torchvision_iou

from drmm_hf.evaluation import evaluate_coco
from drmm_hf.evaluation.duplicates import count_duplicates, nms_sweep, suppress
from drmm_hf.evaluation.matches import box_iou

TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 10, 10], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [50, 0, 10, 10], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 9, "bbox": [0, 0, 40, 40], "iscrowd": 1},
    ],
}


def detection(score: float, bbox: list[float], image_id: int = 1, category_id: int = 7) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


RESULTS = [
    detection(0.6, [0, 0, 10, 10]),
    detection(0.3, [1, 0, 10, 10]),
    detection(0.2, [0, 1, 10, 10]),
    detection(0.5, [50, 0, 10, 10]),
    detection(0.05, [50, 0, 10, 10]),  # below the score threshold
    detection(0.9, [0, 0, 10, 10], category_id=9),  # another class
    detection(0.9, [80, 80, 10, 10]),  # on nothing
    detection(0.9, [0, 0, 20, 20], image_id=2, category_id=9),  # in a crowd
    detection(0.8, [0, 0, 20, 20], image_id=2, category_id=9),
]


def test_duplicates_are_the_detections_beyond_the_first_of_an_object() -> None:
    count = count_duplicates(TRUTH, RESULTS)
    assert count.duplicates_per_image == 2 / 2
    assert count.duplicates_per_object == 2 / 2
    assert (count.num_images, count.score_threshold, count.iou_threshold) == (2, 0.1, 0.5)
    assert count_duplicates(TRUTH, RESULTS, score_threshold=0.0).duplicates_per_image == 3 / 2
    assert count_duplicates(TRUTH, RESULTS, iou_threshold=0.95).duplicates_per_image == 0
    assert np.isnan(count_duplicates(TRUTH, []).duplicates_per_object)


def test_suppression_keeps_the_best_of_each_object() -> None:
    given = copy.deepcopy(RESULTS)
    kept = suppress(given, 0.5)
    assert given == RESULTS, "the caller's results are unchanged"
    assert sorted(d["score"] for d in kept if d["image_id"] == 1) == [0.5, 0.6, 0.9, 0.9]
    assert [d["score"] for d in kept if d["image_id"] == 2] == [0.9]


def test_the_winner_takes_the_scores_of_those_it_removed() -> None:
    kept = suppress(RESULTS, 0.5, merge_scores=True)
    scores = {tuple(d["bbox"]): d["score"] for d in kept if d["image_id"] == 1 and d["category_id"] == 7}
    assert scores[0, 0, 10, 10] == pytest.approx(1.0)  # 1.1, cut
    assert scores[50, 0, 10, 10] == pytest.approx(0.55)
    assert scores[80, 80, 10, 10] == pytest.approx(0.9)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_suppression_is_torchvisions(threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    low, size = torch.rand(80, 2, generator=generator) * 60, torch.rand(80, 2, generator=generator) * 40 + 5
    scores, labels = torch.rand(80, generator=generator), torch.randint(0, 3, (80,), generator=generator)
    results = [
        detection(score.item(), [*a.tolist(), *b.tolist()], image_id=1, category_id=label.item())
        for a, b, score, label in zip(low, size, scores, labels, strict=True)
    ]
    keep = batched_nms(torch.cat((low, low + size), dim=1), scores, labels, threshold)
    expected = sorted(scores[keep].tolist())
    assert sorted(d["score"] for d in suppress(results, threshold)) == pytest.approx(expected)
    assert 0 < len(expected) < 80


def test_iou_is_torchvisions_and_empty_boxes_overlap_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 10, 10], [3, 3, 0, 0]], dtype=float)
    corners = torch.tensor(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1))
    expected = torchvision_iou(corners, corners)
    expected[2] = 0
    assert box_iou(boxes, boxes) == pytest.approx(expected.nan_to_num().numpy())


def test_the_sweep_finds_what_duplicates_cost() -> None:
    results = [
        detection(0.6, [0, 0, 10, 10]),
        detection(0.55, [1, 0, 10, 10]),  # a duplicate before the second object
        detection(0.5, [50, 0, 10, 10]),
    ]
    sweep = nms_sweep(TRUTH, results, (0.5, 0.95))
    assert set(sweep) == {"none", "0.5", "0.95"}
    assert sweep["none"] == evaluate_coco(TRUTH, results)
    assert sweep["0.5"]["AP50"] == pytest.approx(1.0)
    # precision 1 up to half of the objects, 2/3 above: 51 and 50 of COCO's 101 recall points
    assert sweep["none"]["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert sweep["0.95"]["AP50"] == sweep["none"]["AP50"]
