"""Duplicates counted, suppressed and merged, on cases small enough to check by hand."""

import copy

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms
from torchvision.ops import box_iou as torchvision_iou

from drmm_hf.evaluation import count_duplicates, evaluate_coco, nms_sweep, suppress
from drmm_hf.evaluation.matches import box_iou
from evaluation_fixtures import ON_CROWD, found, make_truth

TRUTH = make_truth((7, 0), (7, 50), crowd=True)
TRUTH["images"].append({"id": 2})
RESULTS = [
    found(0.6, 0), found(0.3, 1), found(0.2, 0, height=8), found(0.5, 50),
    found(0.05, 50),  # below the score threshold
    found(0.9, 0, category_id=9),  # another class
    found(0.9, 300),  # on nothing
    ON_CROWD, {**ON_CROWD, "score": 0.8},
]  # fmt: skip


def test_duplicates_are_the_detections_beyond_the_first_of_an_object() -> None:
    count = count_duplicates(TRUTH, RESULTS)
    assert (count.duplicates_per_image, count.duplicates_per_object) == (2 / 2, 2 / 2)
    assert (count.num_images, count.score_threshold, count.iou_threshold) == (2, 0.1, 0.5)
    assert count_duplicates(TRUTH, RESULTS, score_threshold=0.0).duplicates_per_image == 3 / 2
    assert count_duplicates(TRUTH, RESULTS, iou_threshold=0.95).duplicates_per_image == 0
    assert np.isnan(count_duplicates(TRUTH, []).duplicates_per_object)


def test_suppression_keeps_the_best_and_winner_takes_all_the_scores_of_the_rest() -> None:
    given = copy.deepcopy(RESULTS)
    kept = suppress(given, 0.5)
    assert given == RESULTS, "the caller's results are unchanged"
    assert sorted(d["score"] for d in kept) == [0.5, 0.6, 0.9, 0.9, 0.99]
    merged = suppress(RESULTS, 0.5, merge_scores=True)
    # 1.1 and 1.79 are cut
    assert sorted(d["score"] for d in merged) == pytest.approx([0.55, 0.9, 0.9, 1.0, 1.0])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6])
def test_suppression_is_torchvisions(threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    low, size = torch.rand(80, 2, generator=generator) * 60, torch.rand(80, 2, generator=generator) * 40 + 5
    scores, labels = torch.rand(80, generator=generator), torch.randint(0, 6, (80,), generator=generator)
    columns = (torch.cat((low, size), dim=1).tolist(), scores.tolist(), labels.tolist())
    results = [
        {"image_id": label % 2, "category_id": label // 2, "bbox": box, "score": score}
        for box, score, label in zip(*columns, strict=True)
    ]
    expected = scores[batched_nms(torch.cat((low, low + size), dim=1), scores, labels, threshold)].tolist()
    assert sorted(d["score"] for d in suppress(results, threshold)) == pytest.approx(sorted(expected))
    assert 0 < len(expected) < 80


def test_iou_is_torchvisions_and_empty_boxes_overlap_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 10, 10], [3, 3, 0, 0]], dtype=float)
    corners = torch.tensor(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1))
    expected = torchvision_iou(corners, corners)
    expected[2] = 0
    assert box_iou(boxes, boxes) == pytest.approx(expected.nan_to_num().numpy())


def test_the_sweep_finds_what_duplicates_cost() -> None:
    results = [found(0.6, 0), found(0.55, 1), found(0.5, 50)]  # a duplicate before the second object
    sweep = nms_sweep(TRUTH, results, (0.5, 0.95))
    assert set(sweep) == {"none", "0.5", "0.95"}
    assert sweep["none"] == evaluate_coco(TRUTH, results)
    assert sweep["0.5"]["AP50"] == pytest.approx(1.0)
    # precision 1 up to half of the objects, 2/3 above: 51 and 50 of COCO's 101 recall points
    assert sweep["0.95"]["AP50"] == sweep["none"]["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
