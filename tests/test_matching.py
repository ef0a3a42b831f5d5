"""Bipartite matching: the assignments, the baselines' loss, copies of ground truths."""

import itertools
import math
import sys

import pytest
import torch
from torchvision.ops import generalized_box_iou

from drmm_hf.matching import SetPrediction, assign, generalized_iou, set_prediction_loss

SIZES = torch.tensor([[100.0, 80.0], [100.0, 80.0]])


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat((low, low + 5 + torch.rand(*shape, 2, generator=generator) * 30), dim=-1)


def prediction(num: int = 6, seed: int = 0) -> SetPrediction:
    generator = torch.Generator().manual_seed(seed)
    return SetPrediction(random_boxes(2, num, seed=seed), torch.randn(2, num, 3, generator=generator))


def test_the_assignment_is_the_cheapest() -> None:
    cost = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assigned = assign(cost, mask)
    for i in range(2):
        rows = mask[i].nonzero().squeeze(-1).tolist()
        best = min(
            itertools.permutations(range(5), len(rows)),
            key=lambda columns: sum(cost[i, r, c].item() for r, c in zip(rows, columns, strict=True)),
        )
        assert tuple(assigned[i, rows].tolist()) == best
    assert assigned[1, 1] == -1


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ([[1.0, 9.0], [0.0, 9.0], [9.0, 0.0]], [-1, 0, 1]),  # more ground truths than components: the dearest is left
        ([[math.nan, 5.0], [1.0, math.inf]], [1, 0]),  # what is no number is avoided
    ],
)
def test_assignments_by_hand(cost, expected) -> None:
    assert assign(torch.tensor([cost]), torch.ones(1, len(cost), dtype=torch.bool)).tolist() == [expected]


def test_without_scipy_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="baselines"):
        assign(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


def test_generalized_iou_equals_torchvisions_and_is_finite_without_area() -> None:
    first, second = random_boxes(7), random_boxes(5, seed=1)
    torch.testing.assert_close(generalized_iou(first[:, None], second[None]), generalized_box_iou(first, second))
    point = torch.full((4,), 3.0, requires_grad=True)
    value = generalized_iou(point, point)
    value.backward()
    assert torch.cat((value[None], point.grad)).isfinite().all()


def test_a_perfect_prediction_has_no_box_loss() -> None:
    boxes, labels = random_boxes(2, 2), torch.tensor([[0, 2], [1, 1]])
    logits = torch.full((2, 4, 3), -9.0)
    locations = torch.cat((boxes, random_boxes(2, 2, seed=5)), dim=1)
    for i in range(2):
        for j in range(2):
            logits[i, j, labels[i, j]] = 9.0
    terms = set_prediction_loss(
        [SetPrediction(locations, logits)], boxes, labels, torch.ones(2, 2, dtype=torch.bool), SIZES
    )
    assert terms.focal < 1e-6
    torch.testing.assert_close(torch.cat((terms.l1, terms.giou)), torch.zeros(2), atol=1e-5, rtol=0)


def test_an_image_without_boxes_adds_background_only() -> None:
    boxes, labels = random_boxes(2, 2), torch.zeros(2, 2, dtype=torch.long)
    stage = prediction()
    terms = set_prediction_loss([stage], boxes, labels, torch.zeros(2, 2, dtype=torch.bool), SIZES)
    p = stage.class_logits.sigmoid()
    expected = 2 * (0.75 * p**2 * -torch.log(1 - p)).sum()  # focal, all negatives, divided by 1
    torch.testing.assert_close(terms.focal, expected[None])
    assert terms.l1 == 0
    assert terms.giou == 0


def test_padding_of_ground_truths_changes_nothing() -> None:
    boxes, labels, mask = random_boxes(2, 2), torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True] * 2, [True, False]])
    plain = set_prediction_loss([prediction()], boxes, labels, mask, SIZES)
    padding = (torch.full((2, 3, 4), 7.0), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))
    padded = [torch.cat(pair, dim=1) for pair in zip((boxes, labels, mask), padding, strict=True)]
    torch.testing.assert_close(set_prediction_loss([prediction()], *padded, SIZES), plain)


def test_copies_give_each_ground_truth_several_predictions() -> None:
    """With two copies of one object, its two nearest predictions are positive (Table 10)."""
    box = torch.tensor([[[10.0, 10.0, 40.0, 40.0]]])
    near = torch.tensor([[[10.0, 10.0, 41.0, 40.0], [11.0, 10.0, 40.0, 40.0], [60.0, 60.0, 90.0, 79.0]]])
    logits = torch.zeros(1, 3, 1, requires_grad=True)
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    for copies, positives in ((1, 1), (2, 2)):
        terms = set_prediction_loss([SetPrediction(near, logits)], box, labels, mask, SIZES[:1], num_copies=copies)
        (gradient,) = torch.autograd.grad(terms.focal, logits)
        assert (gradient < 0).sum() == positives
        assert gradient[0, 2, 0] > 0


def test_groups_are_matched_on_their_own() -> None:
    stage, boxes = prediction(4), random_boxes(2, 2)
    labels, mask = torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2, dtype=torch.bool)
    doubled = SetPrediction(*(torch.cat((t, t), dim=1) for t in stage))
    single = set_prediction_loss([stage], boxes, labels, mask, SIZES)
    grouped = set_prediction_loss([doubled], boxes, labels, mask, SIZES, num_groups=2)
    for ours, theirs in zip(single, grouped, strict=True):  # both groups alike: the mean over them is the same
        torch.testing.assert_close(ours, theirs)
