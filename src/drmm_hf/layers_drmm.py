"""What the stages of both decoders share: linear layers with the released initial values, attention, the frame."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_drmm import DrmmConfig


class XavierLinear(nn.Linear):
    """A linear layer that carries the released initialisation: Xavier uniform weights.

    Args:
        bias_value: constant of the bias; None is torch's default, uniform in +-1/sqrt(in_features).
        zero_weight: start from zero weights (AdaMixer's generators).
        fan_out: of Xavier's rule, where the released code holds several of our layers in one matrix.
    """

    def __init__(
        self, *args, bias_value: float | None = None, zero_weight: bool = False, fan_out: int | None = None, **kwargs
    ):
        self.bias_value, self.zero_weight, self.fan_out = bias_value, zero_weight, fan_out
        super().__init__(*args, **kwargs)

    def reset_parameters(self) -> None:
        if self.zero_weight:
            init.zeros_(self.weight)
        else:
            bound = math.sqrt(6.0 / (self.in_features + (self.fan_out or self.out_features)))
            init.uniform_(self.weight, -bound, bound)
        if self.bias is None:
            return
        if self.bias_value is None:
            bound = 1.0 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)
        else:
            init.constant_(self.bias, self.bias_value)


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
    """Multi-head attention between the queries of an image."""

    def __init__(self, config: DrmmConfig, output_bias_value: float | None = 0.0):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.qkv_proj = XavierLinear(config.hidden_size, 3 * config.hidden_size, bias_value=0.0)
        self.o_proj = XavierLinear(config.hidden_size, config.hidden_size, bias_value=output_bias_value)

    def forward(self, query_states: Tensor, bias: Tensor | None = None, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query_states: (B, K, D).
            bias: (B, heads, K, K) added to the attention logits.

        Returns:
            (B, K, D), and the attention weights (B, heads, K, K) or None if they are not computed.
        """
        shape = query_states.shape
        qkv = self.qkv_proj(query_states).view(*shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            qkv[0],
            qkv[1],
            qkv[2],
            bias if bias is None else bias.to(qkv.dtype),
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(shape).contiguous()), weights


class DrmmStage(GradientCheckpointingLayer):
    """Frame of a refinement stage: queries look at each other, then each at the image, then a feed-forward layer.

    A decoder fills in `read_image` and, if its attention depends on the regions, `attention_inputs`.
    """

    def __init__(self, config: DrmmConfig, output_bias_value: float | None = 0.0):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.dropout = config.dropout
        self.self_attn = DrmmSelfAttention(config, output_bias_value)
        self.self_attn_layer_norm = nn.LayerNorm(dim, eps=eps)
        self.fc1 = XavierLinear(dim, config.decoder_ffn_dim)
        self.fc2 = XavierLinear(config.decoder_ffn_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self,
        query_states: Tensor,
        regions: Tensor,
        *features: Tensor,
        strides: Sequence[int],
        num_groups: int = 1,
        **kwargs,
    ) -> Tensor:
        """Refine the queries.

        The maps are arguments of their own because re-entrant checkpointing does not look into a list for gradients.

        Args:
            query_states: (B, K, D).
            regions: (B, K, 4) where each query looks, in the coordinates of the decoder's `BoxCoding`; detached.
            features, strides: maps (B, D, H_l, W_l), finest first, and pixels per cell of each.
            num_groups: the K queries are this many independent groups, which do not attend to each other.

        Returns:
            (B, K, D).
        """
        shape = query_states.shape
        grouped, grouped_regions = (t.reshape(shape[0] * num_groups, -1, t.shape[-1]) for t in (query_states, regions))
        inputs, bias = self.attention_inputs(grouped, grouped_regions)
        attended, _ = self.self_attn(inputs, bias, **kwargs)
        query_states = self.self_attn_layer_norm(inputs + self._drop(attended)).reshape(shape)
        query_states = self.read_image(query_states, regions, features, strides)
        hidden = self.fc2(self._drop(F.relu(self.fc1(query_states))))
        return self.final_layer_norm(query_states + self._drop(hidden))

    def attention_inputs(self, query_states: Tensor, regions: Tensor) -> tuple[Tensor, Tensor | None]:
        """States (B, K, D) that attend to each other, and a bias (B, heads, K, K) of the attention."""
        return query_states, None

    def read_image(
        self, query_states: Tensor, regions: Tensor, features: Sequence[Tensor], strides: Sequence[int]
    ) -> Tensor:
        """Queries (B, K, D) with what they read from the image, normalised."""
        raise NotImplementedError

    def _drop(self, states: Tensor) -> Tensor:
        return F.dropout(states, p=self.dropout, training=self.training)
