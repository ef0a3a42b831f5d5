"""One refinement stage of Sparse R-CNN: self-attention between queries, dynamic convolution with each one's region.

Structure and initialisation follow the authors' released code (mmdet's DIIHead with D-RMM's outputs).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_drmm import DrmmConfig
from .mixture import MixtureParameters
from .roi_align_drmm import multilevel_roi_align


class XavierLinear(nn.Linear):
    """A linear layer that carries the released initialisation: Xavier uniform weights.

    The bias is torch's default, uniform in +-1/sqrt(in_features), or zero. `fan_out` overrides the layer's own
    where the released code holds several of our layers in one matrix.
    """

    def __init__(self, *args, zero_bias: bool = False, fan_out: int | None = None, **kwargs):
        self.zero_bias, self.fan_out = zero_bias, fan_out
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        bound = math.sqrt(6.0 / (self.in_features + (self.fan_out or self.out_features)))
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            bound = 0.0 if self.zero_bias else 1.0 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention written out; (B, heads, K, d) in, (B, K, heads, d) and the weights out."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class DrmmSelfAttention(nn.Module):
    """Multi-head attention between the queries of an image, without positions or mask."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.qkv_proj = XavierLinear(config.hidden_size, 3 * config.hidden_size, zero_bias=True)
        self.o_proj = XavierLinear(config.hidden_size, config.hidden_size, zero_bias=True)

    def forward(self, query_states: Tensor, **kwargs) -> tuple[Tensor, Tensor | None]:
        """(B, K, D) to (B, K, D) and the attention weights (B, heads, K, K), None if not computed."""
        shape = query_states.shape
        qkv = self.qkv_proj(query_states).view(*shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            qkv[0],
            qkv[1],
            qkv[2],
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(shape).contiguous()), weights


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


class SparseRcnnStage(GradientCheckpointingLayer):
    """Queries look at each other, then each at its region."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.roi_size = config.roi_size
        self.roi_sampling_ratio = config.roi_sampling_ratio
        self.roi_canonical_size = float(config.roi_canonical_size)
        self.dropout = config.dropout
        self.self_attn = DrmmSelfAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.dynamic_conv = DrmmDynamicConv(config)
        self.dynamic_conv_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = XavierLinear(dim, config.decoder_ffn_dim)
        self.fc2 = XavierLinear(config.decoder_ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self, query_states: Tensor, boxes: Tensor, features: Sequence[Tensor], strides: Sequence[int], **kwargs
    ) -> Tensor:
        """Refine the queries.

        Args:
            query_states: (B, K, D).
            boxes: (B, K, 4) xyxy, pixels of the network input; no gradient flows into them.
            features, strides: the pyramid, see `multilevel_roi_align`.

        Returns:
            (B, K, D).
        """
        regions = multilevel_roi_align(
            features, boxes, strides, self.roi_size, self.roi_sampling_ratio, self.roi_canonical_size
        )
        attended, _ = self.self_attn(query_states, **kwargs)
        query_states = self.self_attn_layer_norm(query_states + self._drop(attended))
        convolved = self.dynamic_conv(query_states, regions)
        query_states = self.dynamic_conv_layer_norm(query_states + self._drop(convolved))
        hidden = self.fc2(self._drop(F.relu(self.fc1(query_states))))
        return self.final_layer_norm(query_states + self._drop(hidden))

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, p=self.dropout, training=self.training)


class DrmmMixtureHead(nn.Module):
    """Reads the parameters of one mixture component off each query (paper, Figure 4)."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        dim = config.hidden_size
        self.box_unit = float(config.box_unit)
        self.class_layers = _branch(dim, config.num_class_layers, config.layer_norm_eps)
        self.box_layers = _branch(dim, config.num_box_layers, config.layer_norm_eps)
        # One matrix in the released code: apart, the objectness survives fine-tuning on other classes.
        num_labels = len(config.id2label or {})
        fan_out = num_labels + 1
        self.objectness = XavierLinear(dim, 1, zero_bias=True, fan_out=fan_out)
        self.classifier = XavierLinear(dim, num_labels, zero_bias=True, fan_out=fan_out)
        self.box = XavierLinear(dim, 8, zero_bias=True)

    def forward(self, query_states: Tensor, boxes: Tensor) -> MixtureParameters:
        """Queries (B, K, D) and the boxes (B, K, 4) they looked at, xyxy pixels, to the stage's mixture.

        mu = box + offset: plain pixel offsets on the edges, so a box can come out with x2 < x1.
        """
        hidden = query_states
        for layer in self.class_layers:
            hidden = layer(hidden)
        class_logits, objectness_logits = self.classifier(hidden), self.objectness(hidden).squeeze(-1)
        hidden = query_states
        for layer in self.box_layers:
            hidden = layer(hidden)
        # float32 also under autocast: bfloat16 resolves pixels only to 4 at a coordinate of 1000
        offsets, raw_scales = self.box(hidden).float().chunk(2, dim=-1)
        return MixtureParameters(
            boxes + self.box_unit * offsets,
            self.box_unit * F.softplus(raw_scales),
            class_logits,
            objectness_logits,
        )


class _BranchLayer(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.linear = XavierLinear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(hidden)))


def _branch(dim: int, num_layers: int, eps: float) -> nn.ModuleList:
    return nn.ModuleList(_BranchLayer(dim, eps) for _ in range(num_layers))
