"""One refinement stage of AdaMixer: attention that knows the boxes, 3-D sampling points, adaptive mixing.

Structure and initialisation follow the authors' released code (MCG-NJU/AdaMixer). A region is (x, y, z, r), see
`decoder.ScaleSpace`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_drmm import DrmmConfig
from .decoder import DrmmStage, ScaleSpace, XavierLinear, region_sizes

_POSITION_UNIT = 1000.0
_TEMPERATURE = 10000.0


def position_encoding(regions: Tensor, dim: int) -> Tensor:
    """(B, K, 4) xyzr to (B, K, dim): dim/4 interleaved sines and cosines of each of x/1000, y/1000, z and r."""
    num_features = dim // 4
    index = torch.arange(num_features, device=regions.device) // 2
    frequency = _TEMPERATURE ** (-2 * index / num_features)
    scaled = torch.cat((regions[..., :2] / _POSITION_UNIT, regions[..., 2:]), dim=-1)
    angle = scaled.unsqueeze(-1) * frequency
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-3)


class IntersectionBias(nn.Module):
    """Bias of the attention of query q to query k: tau * log of the share of q's box that k's box covers."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.tau = nn.Parameter(torch.empty(num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.uniform_(self.tau, 0.0, 4.0)

    def forward(self, boxes: Tensor) -> Tensor:
        """(B, K, 4) xyxy to (B, heads, K, K)."""
        low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
        intersection = (high - low).clamp(min=0).prod(dim=-1)
        area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
        log_share = torch.log(intersection / area.clamp(min=1e-6).unsqueeze(-1) + 1e-7)
        return log_share.unsqueeze(1) * self.tau.view(1, -1, 1, 1)


class SamplingOffsets(XavierLinear):
    """Offsets of the sampling points of a query: three numbers for each point of each group."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        start = torch.empty(self.out_features // 3, 3, device=self.bias.device, dtype=self.bias.dtype)
        init.uniform_(start[:, :2], -0.5, 0.5)
        init.constant_(start[:, 2:], -1.0)
        init.copy_(self.bias, start.flatten())


def sample_3d(features: Sequence[Tensor], strides: Sequence[int], points: Tensor) -> Tensor:
    """Read a feature pyramid at points of its scale space, bilinear within a level and Gaussian across levels.

    Args:
        features, strides: L maps (B, D, H_l, W_l) and pixels per cell.
        points: (B, K, G, P, 3) x, y in pixels of the network input and z = log2 of a size in pixels; group g reads the
            g-th share of the D channels.

    Returns:
        (B, K, G, P, D / G), float32 at least.
    """
    batch, num_queries, groups, num_points, _ = points.shape
    # numbers go in one by one: a tensor of them would be a copy to the device
    distances = torch.stack([points[..., 2] - math.log2(stride) for stride in strides], dim=-1)
    level_weights = torch.softmax(-distances.square() / 2, dim=-1)
    # (B * G, K, P, 2): the groups are images of their own to the sampler
    xy = points[..., :2].transpose(1, 2).reshape(batch * groups, num_queries, num_points, 2)
    weights = level_weights.transpose(1, 2).reshape(batch * groups, 1, num_queries, num_points, len(strides))
    sampled: Tensor | float = 0.0
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        height, width = feature.shape[-2:]
        # not one tensor of both sides: that would fix the size in a captured graph, and copy it to a GPU
        grid = torch.stack((xy[..., 0] / (width * stride), xy[..., 1] / (height * stride)), dim=-1) * 2 - 1
        # not in the type of half-precision maps, which would read cells elsewhere
        kind = torch.promote_types(feature.dtype, grid.dtype)
        maps = feature.reshape(batch * groups, -1, height, width).to(kind)
        values = F.grid_sample(maps, grid.to(kind), mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled + values * weights[..., level].to(kind)
    assert isinstance(sampled, Tensor)  # there is a level
    return sampled.view(batch, groups, -1, num_queries, num_points).permute(0, 3, 1, 4, 2)


class AdaptiveMixing(nn.Module):
    """Mixes a query's sampled features, first across channels and then across points, with weights of its own."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim, self.groups = config.hidden_size, config.num_sampling_groups
        self.channels = dim // self.groups
        self.in_points, self.out_points = config.num_sampling_points, config.num_mixing_points
        count = self.groups * (self.channels**2 + self.in_points * self.out_points)
        self.parameter_layer = XavierLinear(dim, count, zero_weight=True)
        self.out_layer = XavierLinear(self.groups * self.out_points * self.channels, dim)

    def forward(self, query_states: Tensor, sampled: Tensor) -> Tensor:
        """Queries (B, K, D) and samples (B, K, G, P, D / G) to (B, K, D)."""
        weights = self.parameter_layer(query_states).unflatten(-1, (self.groups, -1))
        channel_weights, point_weights = weights.split([self.channels**2, self.in_points * self.out_points], dim=-1)
        hidden = sampled @ channel_weights.unflatten(-1, (self.channels, self.channels))
        hidden = F.relu(F.layer_norm(hidden, hidden.shape[-2:]))
        hidden = point_weights.unflatten(-1, (self.out_points, self.in_points)) @ hidden
        hidden = F.relu(F.layer_norm(hidden, hidden.shape[-2:]))
        return self.out_layer(hidden.flatten(-3))


class AdaMixerStage(DrmmStage):
    """A stage whose queries read points of the pyramid's scale space and mix them."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config, output_bias_value=None)
        self.groups = config.num_sampling_groups
        self.attention_bias = IntersectionBias(config.num_attention_heads)
        self.sampling_offsets = SamplingOffsets(
            config.hidden_size,
            self.groups * config.num_sampling_points * 3,
            zero_weight=True,
            bias_value=0.0,
            exact=True,
        )
        self.adaptive_mixing = AdaptiveMixing(config)
        self.mixing_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def attention_inputs(self, query_states: Tensor, regions: Tensor) -> tuple[Tensor, Tensor | None]:
        position = position_encoding(regions, query_states.shape[-1]).to(query_states.dtype)
        return query_states + position, self.attention_bias(ScaleSpace().decode(regions))

    def read_image(
        self, query_states: Tensor, regions: Tensor, features: Sequence[Tensor], strides: Sequence[int]
    ) -> Tensor:
        sampled = sample_3d(features, strides, self.sampling_points(query_states, regions)).to(query_states.dtype)
        mixed = self.adaptive_mixing(query_states, sampled)
        return self.mixing_layer_norm(query_states + self._drop(mixed))

    def sampling_points(self, query_states: Tensor, regions: Tensor) -> Tensor:
        """(B, K, D) and regions (B, K, 4) to points (B, K, G, P, 3), see `sample_3d`."""
        offsets = self.sampling_offsets(query_states).float().unflatten(-1, (self.groups, -1, 3))
        center, log_size = regions[:, :, None, None, :2], regions[:, :, None, None, 2:3]
        size = region_sizes(regions)[:, :, None, None, :]
        return torch.cat((center + offsets[..., :2] * size, log_size + offsets[..., 2:]), dim=-1)
