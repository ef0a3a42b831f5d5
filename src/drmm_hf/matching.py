"""Bipartite matching and what is trained with it: the baselines' loss, and the assignments of two ablations.

D-RMM needs none of this. It is here for Sparse R-CNN and AdaMixer as published (paper, Table 2, row 1), with copies of
ground truths (Table 10) and query groups (Table 11), and for the objectives of Table 2, rows 2 and 4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

FOCAL_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0


class SetPrediction(NamedTuple):
    """What one stage of a baseline predicts for each image of a batch.

    Attributes:
        locations: (B, K, 4) boxes, xyxy in pixels of the network input.
        class_logits: (B, K, C); the score of each class is its sigmoid.
    """

    locations: Tensor
    class_logits: Tensor


class SetPredictionLoss(NamedTuple):
    """Terms of the baselines' loss, weighted and divided by the number of matched ground truths; (S,) of S stages."""

    focal: Tensor
    l1: Tensor
    giou: Tensor


def assign(cost: Tensor, mask: Tensor) -> Tensor:
    """Cheapest one-to-one assignment of ground truths to components, image by image, by scipy.

    Args:
        cost: (..., N, K) of giving component k to ground truth j. NaN counts as very expensive.
        mask: (..., N) True where there is a ground truth.

    Returns:
        (..., N) component of each ground truth; -1 where there is no ground truth, or no component is left (N > K).

    Raises:
        ImportError: scipy is missing; the message names the extra.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "Bipartite matching needs scipy: pip install 'drmm-hf[baselines]'. The objectives nll_mcm, nll and nll_max "
            "need no matching."
        ) from error
    # one copy to the host for all images and stages
    costs = cost.detach().float().nan_to_num(1e12, 1e12, -1e12).flatten(0, -3).cpu().numpy()
    real = mask.expand(cost.shape[:-1]).flatten(0, -2).cpu()
    assigned = torch.full(real.shape, -1)
    for i, keep in enumerate(real):
        rows, columns = linear_sum_assignment(costs[i][keep.numpy()])
        assigned[i, keep.nonzero().squeeze(-1)[rows]] = torch.from_numpy(columns)
    return assigned.view(cost.shape[:-1]).to(cost.device)


def set_prediction_loss(
    stages: Sequence[SetPrediction],
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor,
    image_sizes: Tensor,
    *,
    num_groups: int = 1,
    num_copies: int = 1,
) -> SetPredictionLoss:
    """Focal, L1 and GIoU loss of the matched predictions of every stage (Sparse R-CNN's released code).

    Each stage is matched anew. The terms are divided by the number of matched ground truths, the mean of it over the
    processes and at least 1: images without boxes give a finite loss, which the released code does not.

    Args:
        stages: K predictions each, of which the first K / num_groups are the first group, and so on.
        boxes: (B, N, 4) ground truths padded to the same N, xyxy in pixels of the network input.
        labels: (B, N) class indices.
        mask: (B, N) True where there is a ground truth.
        image_sizes: (B, 2) width and height of the un-padded images, by which the L1 distance is normalised.
        num_groups: groups of queries that are matched on their own (paper, Table 11).
        num_copies: copies of each ground truth, so that several queries learn it (paper, Table 10).
    """
    batch = len(boxes)
    extent = torch.cat((image_sizes, image_sizes), dim=-1).unsqueeze(1)
    targets = [t.repeat_interleave(num_copies, dim=1) for t in (boxes, labels, mask)]
    boxes, labels, mask, extent = (t.repeat_interleave(num_groups, dim=0) for t in (*targets, extent))
    with torch.autocast(boxes.device.type, enabled=False):
        grouped = [
            SetPrediction(*(t.float().reshape(batch * num_groups, -1, t.shape[-1]) for t in stage)) for stage in stages
        ]
        costs = torch.stack([matching_cost(stage, boxes, labels, extent) for stage in grouped])
        assigned = assign(costs, mask)
        divisor = _mean_over_processes((assigned[0] >= 0).sum().float()).clamp(min=1)
        terms = [_matched_loss(*args, boxes, labels, extent) for args in zip(grouped, assigned, strict=True)]
        return SetPredictionLoss(*(torch.stack(values) / divisor for values in zip(*terms, strict=True)))


@torch.no_grad()
def matching_cost(stage: SetPrediction, boxes: Tensor, labels: Tensor, extent: Tensor) -> Tensor:
    """Focal, L1 and GIoU cost (B, N, K) of giving prediction k to ground truth j; `extent` (B, 1, 4) in pixels."""
    index = labels.unsqueeze(-1).expand(-1, -1, stage.class_logits.shape[1])
    p = stage.class_logits.transpose(1, 2).gather(1, index).sigmoid()
    positive = -(p + 1e-12).log() * _ALPHA * (1 - p) ** _GAMMA
    negative = -(1 - p + 1e-12).log() * (1 - _ALPHA) * p**_GAMMA
    l1 = torch.cdist(boxes / extent, stage.locations / extent, p=1)
    giou = generalized_iou(boxes.unsqueeze(2), stage.locations.unsqueeze(1))
    return FOCAL_WEIGHT * (positive - negative) + L1_WEIGHT * l1 - GIOU_WEIGHT * giou


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of boxes (..., 4) xyxy that broadcast against each other (torchvision's is for two lists)."""
    overlap = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    intersection = overlap.clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (first, second)]
    union = (areas[0] + areas[1] - intersection).clamp(min=1e-6)
    hull_area = hull.clamp(min=0).prod(dim=-1).clamp(min=1e-6)
    return intersection / union - (hull_area - union) / hull_area


def _matched_loss(
    stage: SetPrediction, assigned: Tensor, boxes: Tensor, labels: Tensor, extent: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    matched, index = assigned >= 0, assigned.clamp(min=0)
    # one column more than there are classes takes the ground truths without a match
    target = F.pad(torch.zeros_like(stage.class_logits), (0, 1))
    column = torch.where(matched, labels, target.shape[-1] - 1)
    target[torch.arange(len(target), device=target.device).unsqueeze(-1), index, column] = 1.0
    focal = sigmoid_focal_loss(stage.class_logits, target[..., :-1], _ALPHA, _GAMMA, reduction="sum")
    predicted = stage.locations.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    l1, giou = ((predicted - boxes) / extent).abs().sum(dim=-1), 1 - generalized_iou(predicted, boxes)
    l1, giou = (torch.where(matched, term, 0).sum() for term in (l1, giou))
    return FOCAL_WEIGHT * focal, L1_WEIGHT * l1, GIOU_WEIGHT * giou


def _mean_over_processes(count: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
