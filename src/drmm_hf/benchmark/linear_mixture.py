"""The loss the way that the released code computes it: image by image, in linear space.

A plain-PyTorch transcription, only to measure against. It underflows where `drmm_hf.mixture` does not. As released, the
probability of a label is the product of p_c ** [c is the label] over all classes c, which is most of the time; with
`lookup` it is indexed instead.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..mixture import MixtureParameters

_EPSILON = 1e-12
_MIN_SCALE_RATIO = 0.04


def linear_mixture_loss(
    stages: Sequence[MixtureParameters],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    mcm_weight: float = 0.5,
    lookup: bool = False,
) -> Tensor:
    """Sum of NLL + mcm_weight * MCM over all ground truths, images and stages.

    Args:
        stages: what each stage predicts.
        boxes, labels: of each image, (n, 4) xyxy in pixels of the network input and (n,).
        lookup: index the class probability rather than multiply over the classes; the numbers are the same.
    """
    losses = []
    for locations, scales, class_logits, objectness_logits, _ in stages:
        objectness = objectness_logits.sigmoid()
        mixing = objectness / objectness.sum(dim=1, keepdim=True)
        probability = class_logits.softmax(dim=-1)
        for i, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            weight = 1.0
            if len(image_labels) == 0:  # a pseudo ground truth that only keeps the graph alive
                best = objectness[i].argmax()
                image_boxes = locations[i, best].detach().unsqueeze(0)
                image_labels = torch.randint(class_logits.shape[-1], (1,), device=locations.device)
                weight = _EPSILON
            category = (_indexed if lookup else _multiplied)(probability[i], image_labels)
            loss = _image_loss(image_boxes, locations[i], scales[i], mixing[i], category, mcm_weight)
            losses.append(loss * weight)
    return torch.stack(losses).sum()


def _multiplied(probability: Tensor, labels: Tensor) -> Tensor:
    """(K, C) and (n,) to (n, K), by way of (n, K, C)."""
    chosen = F.one_hot(labels, probability.shape[-1]).to(probability.dtype)
    return probability.pow(chosen[:, None]).prod(dim=-1)


def _indexed(probability: Tensor, labels: Tensor) -> Tensor:
    return probability[:, labels].t()


def _image_loss(
    boxes: Tensor, locations: Tensor, scales: Tensor, mixing: Tensor, category: Tensor, mcm_weight: float
) -> Tensor:
    size = locations[:, 2:] - locations[:, :2]
    scales = torch.max(scales, torch.cat((size, size), dim=-1) * _MIN_SCALE_RATIO)
    normalized = (boxes.unsqueeze(1) - locations.unsqueeze(0)) / scales.unsqueeze(0)
    density = (1.0 / (torch.pi * scales.unsqueeze(0) * (1.0 + normalized**2))).prod(dim=-1)
    weights = (mixing * len(boxes)).unsqueeze(0)
    nll = -torch.log((weights * density * category).sum(dim=1) + _EPSILON)
    joint = weights * density.detach() * category
    share = joint.max(dim=1).values / (joint.sum(dim=1) + _EPSILON)
    return (nll - mcm_weight * torch.log(share + _EPSILON)).sum()
