"""The density of a box under a component: the product over its edges of 1-D densities (the paper's Equation 3).

As in `pairwise_drmm.py`, the ground truths of all images stand in one row of M with the index of their image.
"""

import math

import torch
from torch import Tensor

from .pairwise_drmm import MAX_LENGTH, MIN_SCALE, LogEdgeTail

DENSITIES = ("cauchy", "gaussian", "student_t")
# Keep the squares of the Gaussian finite in float32, far outside of what changes a likelihood that counts.
_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_DEVIATION = 1e8, 1e10


def effective_scales(locations: Tensor, scales: Tensor, min_scale_ratio: float) -> Tensor:
    """The scales that the density uses: gamma, but at least `min_scale_ratio` times the predicted box's size.

    The floor of the l and r edges is relative to the width, of t and b to the height (released code,
    `min_sc_ratio`). It is not detached: where it is active the gradient goes to the location. A box of negative
    size (x2 < x1) has no floor.

    Args:
        locations, scales: (..., 4) pixels.

    Returns:
        (..., 4) pixels.
    """
    return floored(locations.movedim(-1, 0), scales.movedim(-1, 0), min_scale_ratio).movedim(0, -1)


def floored(locations: Tensor, scales: Tensor, min_scale_ratio: float) -> Tensor:
    """`effective_scales` with the edges first."""
    size = locations[2:] - locations[:2]
    return torch.maximum(scales, min_scale_ratio * torch.cat((size, size)))


def box_log_density(
    boxes: Tensor, locations: Tensor, scales: Tensor, density: str = "cauchy", student_t_dof: float = 1.0
) -> Tensor:
    """log F(b_j; mu_k, gamma_k) for every ground truth j and component k (Eq. 3).

    Args:
        boxes: (B, N, 4) ground-truth edges, pixels xyxy.
        locations, scales: (B, K, 4) pixels; `scales` as `effective_scales` returns them.
        density: "cauchy", "gaussian" (scale = standard deviation) or "student_t".
        student_t_dof: degrees of freedom of "student_t"; 1 is the Cauchy density.

    Returns:
        (B, N, K) log densities in 1/px^4.
    """
    batch, num_boxes, _ = boxes.shape
    image = image_index(batch, num_boxes, boxes.device)
    boxes, locations, scales = (t.movedim(-1, 0) for t in (boxes.flatten(0, 1), locations, scales))
    return log_density(boxes, locations, scales, image, density, student_t_dof).view(batch, num_boxes, -1)


def log_density(
    boxes: Tensor, locations: Tensor, scales: Tensor, image: Tensor, density: str, student_t_dof: float
) -> Tensor:
    """As `box_log_density`, of boxes (4, M) of the images `image` (M,) and components (4, B, ..., K): (M, ..., K)."""
    if density == "gaussian":
        return _log_gaussian(boxes, locations, scales.clamp(MIN_SCALE, _MAX_GAUSSIAN_LENGTH), image)
    dof = 1.0 if density == "cauchy" else student_t_dof
    # with t = sqrt(dof) * s the density is, but for a constant, t^dof / (t^2 + d^2)^((dof + 1) / 2): the square of a
    # ratio d / s overflows, this sum cannot
    scales = (scales if dof == 1.0 else math.sqrt(dof) * scales).clamp(MIN_SCALE, MAX_LENGTH)
    locations, boxes = (t.clamp(-MAX_LENGTH, MAX_LENGTH) for t in (locations, boxes))
    constant = 4.0 * (math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi))
    peak = constant + dof * scales.log().sum(dim=0)
    tail = LogEdgeTail.apply(boxes, locations, scales, image)
    return peak.index_select(0, image) - 0.5 * (dof + 1) * tail


def _log_gaussian(boxes: Tensor, locations: Tensor, scales: Tensor, image: Tensor) -> Tensor:
    peak = -2.0 * math.log(2.0 * math.pi) - scales.log().sum(dim=0)
    exponent = peak.index_select(0, image)
    for edge in range(4):
        target = boxes[edge].view(-1, *[1] * (locations.dim() - 2))
        deviation = (target - locations[edge].index_select(0, image)).clamp(-_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_LENGTH)
        z = (deviation / scales[edge].index_select(0, image)).clamp(-_MAX_GAUSSIAN_DEVIATION, _MAX_GAUSSIAN_DEVIATION)
        exponent = exponent - 0.5 * z.square()
    return exponent


def image_index(batch: int, width: int, device: torch.device) -> Tensor:
    """(batch * width,) index of the image of each of `width` ground truths of every image."""
    return torch.arange(batch, device=device).unsqueeze(1).expand(-1, width).flatten()
