"""Two things as the released code computes them, written out in plain PyTorch to measure ours against.

The loss goes image by image in linear space, and underflows where `drmm_hf.mixture` does not. Regions are read level by
level of the pyramid by torchvision's RoIAlign, on the boxes of that level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from drmm_hf.mixture import MixtureParameters

_EPSILON = 1e-12
_MIN_SCALE_RATIO = 0.04
_MCM_WEIGHT = 0.5
_CANONICAL_SIZE = 56.0


def linear_mixture_loss(
    stages: Sequence[MixtureParameters],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    lookup: bool = False,
) -> Tensor:
    """Sum of NLL + 0.5 * MCM over all ground truths, images and stages.

    Args:
        stages: what each stage predicts.
        boxes, labels: of each image, (n, 4) xyxy in pixels of the network input and (n,).
        lookup: index the probability of a label. As released it is the product of p_c ** [c is the label] over all
            classes c, which is most of the time; the numbers are the same.
    """
    losses = []
    for stage in stages:
        locations, scales, class_logits = stage.locations, stage.scales, stage.class_logits
        objectness = stage.objectness_logits.sigmoid()
        mixing = objectness / objectness.sum(dim=1, keepdim=True)
        probability = class_logits.softmax(dim=-1)
        for i, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            weight = 1.0
            if len(image_labels) == 0:  # a pseudo ground truth that only keeps the graph alive
                best = objectness[i].argmax()
                image_boxes = locations[i, best].detach().unsqueeze(0)
                image_labels = torch.randint(class_logits.shape[-1], (1,), device=locations.device)
                weight = _EPSILON
            if lookup:
                category = probability[i][:, image_labels].t()
            else:
                chosen = F.one_hot(image_labels, probability.shape[-1]).to(probability.dtype)
                category = probability[i].pow(chosen[:, None]).prod(dim=-1)  # (n, K, C) to (n, K)
            losses.append(_image_loss(image_boxes, locations[i], scales[i], mixing[i], category) * weight)
    return torch.stack(losses).sum()


def _image_loss(boxes: Tensor, locations: Tensor, scales: Tensor, mixing: Tensor, category: Tensor) -> Tensor:
    size = locations[:, 2:] - locations[:, :2]
    scales = torch.max(scales, torch.cat((size, size), dim=-1) * _MIN_SCALE_RATIO)
    normalized = (boxes.unsqueeze(1) - locations.unsqueeze(0)) / scales.unsqueeze(0)
    density = (1.0 / (torch.pi * scales.unsqueeze(0) * (1.0 + normalized**2))).prod(dim=-1)
    weights = (mixing * len(boxes)).unsqueeze(0)
    nll = -torch.log((weights * density * category).sum(dim=1) + _EPSILON)
    joint = weights * density.detach() * category
    share = joint.max(dim=1).values / (joint.sum(dim=1) + _EPSILON)
    return (nll - _MCM_WEIGHT * torch.log(share + _EPSILON)).sum()


def released_regions(features: Sequence[Tensor], boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """RoIAlign of boxes (B, K, 4) xyxy in pixels from maps (B, D, H, W): (B * K, D, 7, 7)."""
    batch, num_boxes, _ = boxes.shape
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).repeat_interleave(num_boxes).unsqueeze(-1)
    regions = torch.cat((image, boxes.reshape(-1, 4)), dim=-1)
    size = torch.sqrt((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2]))
    level = torch.floor(torch.log2(size / _CANONICAL_SIZE + 1e-6)).clamp(0, len(features) - 1).long()
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], 7, 7)
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        own = (level == i).nonzero(as_tuple=True)[0]
        if len(own):
            pooled[own] = roi_align(feature, regions[own], 7, 1.0 / stride, 2, aligned=True)
    return pooled
