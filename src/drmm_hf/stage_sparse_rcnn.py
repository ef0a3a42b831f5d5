"""One refinement stage of Sparse R-CNN: self-attention between queries, dynamic convolution with each one's region.

Structure and initialisation follow the authors' released code (mmdet's DIIHead with D-RMM's outputs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_drmm import DrmmConfig
from .decoder import DrmmStage, XavierLinear
from .roi_align import multilevel_roi_align


class DrmmDynamicConv(nn.Module):
    """Two 1x1 convolutions over a region's cells whose weights come from the region's query."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim, self.dynamic_dim = config.hidden_size, config.dynamic_dim
        self.dynamic_layer = XavierLinear(dim, 2 * dim * config.dynamic_dim)
        self.norm_in = nn.LayerNorm(config.dynamic_dim, eps=config.layer_norm_eps)
        self.norm_out = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.out_layer = XavierLinear(dim * config.roi_size**2, dim)
        self.out_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def forward(self, query_states: Tensor, region_features: Tensor) -> Tensor:
        """Queries (B, K, D) and regions (B, K, cells, D) to (B, K, D)."""
        batch, num_queries, dim = query_states.shape
        weight_in, weight_out = self.dynamic_layer(query_states).flatten(0, 1).chunk(2, dim=-1)
        hidden = torch.bmm(region_features.flatten(0, 1), weight_in.view(-1, dim, self.dynamic_dim))
        hidden = F.relu(self.norm_in(hidden))
        hidden = torch.bmm(hidden, weight_out.view(-1, self.dynamic_dim, dim))
        hidden = F.relu(self.norm_out(hidden))
        hidden = self.out_layer(hidden.view(batch, num_queries, -1))
        return F.relu(self.out_norm(hidden))


class SparseRcnnStage(DrmmStage):
    """A stage whose queries read RoIAligned features through a dynamic convolution; regions are boxes."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config)
        self.roi_size = config.roi_size
        self.roi_sampling_ratio = config.roi_sampling_ratio
        self.roi_canonical_size = float(config.roi_canonical_size)
        self.dynamic_conv = DrmmDynamicConv(config)
        self.dynamic_conv_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def read_image(
        self, query_states: Tensor, regions: Tensor, features: Sequence[Tensor], strides: Sequence[int]
    ) -> Tensor:
        region_features = multilevel_roi_align(
            features, regions, strides, self.roi_size, self.roi_sampling_ratio, self.roi_canonical_size
        )
        convolved = self.dynamic_conv(query_states, region_features)
        return self.dynamic_conv_layer_norm(query_states + self._drop(convolved))
