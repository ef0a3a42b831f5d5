"""Coordinates in which a decoder keeps and moves its boxes.

A stage gets K regions per image, its head puts out four numbers per query, and the two make the regions of the next
stage. Each pair of decoder and head has its own arithmetic for that, with the names of one interface: `encode` makes
regions of boxes, `refine` moves regions, `decode` makes boxes of regions. Boxes are (..., 4) xyxy in pixels of the
network input.
"""

import math

import torch
from torch import Tensor

from .configuration_drmm import DrmmConfig

_MAX_DELTA = abs(math.log(16 / 1000))
_SHIFT_STD = 0.5
# log2 of a side in pixels; far outside of any image, and 2 to this power and its square stay finite in float32
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -30.0, 30.0


class EdgeOffsets:
    """D-RMM on Sparse R-CNN: regions are boxes, moved by plain pixel offsets of the edges (released code).

    A box can come out with x2 < x1.

    Args:
        unit: pixels per unit of the head's output.
    """

    def __init__(self, unit: float = 1.0):
        self.unit = unit

    def encode(self, boxes: Tensor) -> Tensor:
        return boxes

    def refine(self, regions: Tensor, raw: Tensor) -> Tensor:
        return regions + self.unit * raw

    def decode(self, regions: Tensor) -> Tensor:
        return regions


class BoxDeltas:
    """Sparse R-CNN: regions are boxes, moved by shifts relative to their size and by log factors of the size.

    The deltas are divided by (2, 2, 1, 1), log factors clamped to +-ln(1000/16) (mmdet's `DeltaXYWHBBoxCoder`).
    """

    def encode(self, boxes: Tensor) -> Tensor:
        return boxes

    def refine(self, regions: Tensor, raw: Tensor) -> Tensor:
        shift, log_factor = _SHIFT_STD * raw[..., :2], raw[..., 2:]
        low, high = regions.chunk(2, dim=-1)
        size = high - low
        center = (low + high) * 0.5 + size * shift
        half = size * log_factor.clamp(-_MAX_DELTA, _MAX_DELTA).exp() * 0.5
        return torch.cat((center - half, center + half), dim=-1)

    def decode(self, regions: Tensor) -> Tensor:
        return regions


class ScaleSpace:
    """AdaMixer: regions are (x, y, z, r), center in pixels, z = log2 sqrt(w h), r = log2(h / w).

    The center moves in units of the box size 2^z; z and r are added to (AdaMixer, Section 3.1).
    """

    def encode(self, boxes: Tensor) -> Tensor:
        low, high = boxes.chunk(2, dim=-1)
        log_w, log_h = (high - low).clamp(min=2.0**_MIN_LOG_SIZE).log2().unbind(-1)
        return torch.cat(((low + high) * 0.5, torch.stack((0.5 * (log_w + log_h), log_h - log_w), dim=-1)), dim=-1)

    def refine(self, regions: Tensor, raw: Tensor) -> Tensor:
        center, shape = regions[..., :2], regions[..., 2:]
        size = shape[..., :1].exp2()
        shape = (shape + raw[..., 2:]).clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE)
        return torch.cat((center + raw[..., :2] * size, shape), dim=-1)

    def decode(self, regions: Tensor) -> Tensor:
        center, half = regions[..., :2], region_sizes(regions) * 0.5
        return torch.cat((center - half, center + half), dim=-1)


BoxCoding = EdgeOffsets | BoxDeltas | ScaleSpace


def region_sizes(regions: Tensor) -> Tensor:
    """(..., 4) xyzr to (..., 2) width and height in pixels."""
    z, r = regions[..., 2], regions[..., 3]
    log_size = torch.stack((z - 0.5 * r, z + 0.5 * r), dim=-1)
    return log_size.clamp(_MIN_LOG_SIZE, _MAX_LOG_SIZE).exp2()


def box_coding(config: DrmmConfig) -> BoxCoding:
    """The arithmetic of the configured decoder and head."""
    if config.decoder == "adamixer":
        return ScaleSpace()
    return EdgeOffsets(float(config.box_unit)) if config.head == "mixture" else BoxDeltas()
