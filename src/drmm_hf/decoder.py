"""What both decoders share: proposals, coordinates of boxes, attention, the frame of a stage, and the two heads."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_drmm import DrmmConfig
from .matching import SetPrediction
from .mixture import MixtureParameters

_MAX_DELTA = abs(math.log(16 / 1000))
_SHIFT_STD = 0.5
_PRIOR_BIAS = -math.log((1 - 0.01) / 0.01)
# log2 of a side in pixels; far outside of any image, and 2 to this power and its square stay finite in float32
_MIN_LOG_SIZE, _MAX_LOG_SIZE = -30.0, 30.0


class DrmmProposals(nn.Module):
    """Boxes and query features with which every image starts, a further group of them for each query group."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        self.kind, self.size = config.proposal_init, float(config.proposal_size)
        self.num_proposals, self.num_groups = config.num_proposals, config.num_query_groups
        self.normalize_features = config.decoder == "adamixer"
        total = config.num_proposals * config.num_query_groups
        # (K, 4) center x, center y, width, height as fractions of the un-padded image
        if config.learn_proposal_boxes:
            self.boxes = nn.Parameter(torch.empty(total, 4))
        else:
            self.register_buffer("boxes", torch.empty(total, 4))
        self.features = nn.Parameter(torch.empty(total, config.hidden_size))

    def forward(self, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2) widths and heights in pixels to boxes (B, K, 4) xyxy in pixels and features (B, K, D).

        While training with query groups, K is num_query_groups * num_proposals; otherwise the first group is used.
        """
        count = len(self.features) if self.training else self.num_proposals
        boxes = self.boxes[:count].float()
        center, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = torch.cat((center - half, center + half), dim=-1)
        boxes = corners * torch.cat((image_sizes, image_sizes), dim=-1).unsqueeze(1)
        features = self.features[:count]
        if self.normalize_features:  # without parameters, as AdaMixer's released code has it
            features = F.layer_norm(features, features.shape[-1:])
        return boxes, features.unsqueeze(0).expand(image_sizes.shape[0], -1, -1)

    def initial_boxes(self) -> Tensor:
        """(K, 4) cxcywh: all the full image, or a row-major grid of about 4:3 (20 x 15 for 300, as released)."""
        if self.kind == "full_image":
            return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(self.features), 1)
        columns = round((self.num_proposals * 4 / 3) ** 0.5)
        rows = -(-self.num_proposals // columns)
        index = torch.arange(self.num_proposals)
        x, y = (index % columns + 0.5) / columns, (index // columns + 0.5) / rows
        grid = torch.stack((x, y, torch.full_like(x, self.size), torch.full_like(x, self.size)), dim=-1)
        return grid.repeat(self.num_groups, 1)


# A stage gets K regions an image, its head puts out four numbers a query, and the two make the regions of the next
# stage. The three pairs of decoder and head differ in the arithmetic: `encode` makes regions (..., 4) of boxes,
# `refine` moves them by the head's raw output, `decode` makes boxes, xyxy in pixels of the network input.


class _Boxes:
    """Regions that are boxes."""

    def encode(self, boxes: Tensor) -> Tensor:
        return boxes

    def decode(self, regions: Tensor) -> Tensor:
        return regions


class EdgeOffsets(_Boxes):
    """D-RMM on Sparse R-CNN: regions are boxes, moved by plain pixel offsets of the edges (released code).

    A box can come out with x2 < x1.

    Args:
        unit: pixels per unit of the head's output.
    """

    def __init__(self, unit: float = 1.0):
        self.unit = unit

    def refine(self, regions: Tensor, raw: Tensor) -> Tensor:
        return regions + self.unit * raw


class BoxDeltas(_Boxes):
    """Sparse R-CNN: regions are boxes, moved by shifts relative to their size and by log factors of the size.

    The deltas are divided by (2, 2, 1, 1), log factors clamped to +-ln(1000/16) (mmdet's `DeltaXYWHBBoxCoder`).
    """

    def refine(self, regions: Tensor, raw: Tensor) -> Tensor:
        shift, log_factor = _SHIFT_STD * raw[..., :2], raw[..., 2:]
        low, high = regions.chunk(2, dim=-1)
        size = high - low
        center = (low + high) * 0.5 + size * shift
        half = size * log_factor.clamp(-_MAX_DELTA, _MAX_DELTA).exp() * 0.5
        return torch.cat((center - half, center + half), dim=-1)


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


class XavierLinear(nn.Linear):
    """A linear layer that carries the released initialisation: Xavier uniform weights.

    Args:
        bias_value: constant of the bias; None is torch's default, uniform in +-1/sqrt(in_features).
        zero_weight: start from zero weights (AdaMixer's generators).
        fan_out: of Xavier's rule, where the released code holds several of our layers in one matrix.
        exact: compute and answer in float32 whatever the weights or autocast say. For layers whose output is a
            coordinate or a parameter of the mixture: bfloat16 resolves pixels only to 4 at a coordinate of 1000.
    """

    def __init__(
        self,
        *args,
        bias_value: float | None = None,
        zero_weight: bool = False,
        fan_out: int | None = None,
        exact: bool = False,
        **kwargs,
    ):
        self.bias_value, self.zero_weight, self.fan_out, self.exact = bias_value, zero_weight, fan_out, exact
        super().__init__(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if not self.exact:
            return super().forward(input)
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        values = (input.to(kind), self.weight.to(kind), None if self.bias is None else self.bias.to(kind))
        device = input.device.type
        if device == "meta" or not torch.is_autocast_enabled(device):
            return F.linear(*values)
        with torch.autocast(device, enabled=False):
            return F.linear(*values)

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


class _BranchLayer(nn.Module):
    def __init__(self, config: DrmmConfig):
        super().__init__()
        # AdaMixer's branches have a bias, Sparse R-CNN's have none
        self.linear = XavierLinear(config.hidden_size, config.hidden_size, bias=config.decoder == "adamixer")
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(hidden)))


class _Head(nn.Module):
    """Two branches over each query, of classes and of the box, and the step from regions to the next regions."""

    box: XavierLinear

    def __init__(self, config: DrmmConfig):
        super().__init__()
        self.coding = box_coding(config)
        self.class_layers = nn.Sequential(*(_BranchLayer(config) for _ in range(config.num_class_layers)))
        self.box_layers = nn.Sequential(*(_BranchLayer(config) for _ in range(config.num_box_layers)))

    def raw_boxes(self, query_states: Tensor) -> Tensor:
        """(B, K, D) to (B, K, 4 or 8) of the box branch."""
        return self.box(self.box_layers(query_states)).float()

    def next_regions(self, query_states: Tensor, regions: Tensor) -> Tensor:
        """(B, K, 4): all that the next stage needs, where nobody reads what an intermediate stage predicts."""
        return self.coding.refine(regions, self.raw_boxes(query_states)[..., :4])


class DrmmMixtureHead(_Head):
    """Reads the parameters of one mixture component off each query (paper, Figure 4)."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config)
        dim, num_labels, self.scale_unit = config.hidden_size, len(config.id2label or {}), float(config.box_unit)
        self.class_gradient = float(config.class_gradient)
        # One matrix in the released code: apart, the objectness survives fine-tuning on other classes.
        self.objectness = XavierLinear(dim, 1, bias_value=0.0, fan_out=num_labels + 1, exact=True)
        self.classifier = XavierLinear(dim, num_labels, bias_value=0.0, fan_out=num_labels + 1, exact=True)
        self.box = XavierLinear(dim, 8, bias_value=0.0, zero_weight=config.decoder == "adamixer", exact=True)

    def forward(self, query_states: Tensor, regions: Tensor) -> tuple[MixtureParameters, Tensor]:
        """Queries (B, K, D) and the regions (B, K, 4) they looked at to the stage's mixture and the next regions."""
        hidden = self.class_layers(query_states)
        class_logits, objectness_logits = self.classifier(hidden), self.objectness(hidden).squeeze(-1)
        if self.training and self.class_gradient != 1.0:
            fixed = class_logits.detach()
            class_logits = fixed + self.class_gradient * (class_logits - fixed)
        moves, raw_scales = self.raw_boxes(query_states).chunk(2, dim=-1)
        regions = self.coding.refine(regions, moves)
        scales = self.scale_unit * F.softplus(raw_scales)
        return MixtureParameters(self.coding.decode(regions), scales, class_logits, objectness_logits), regions

    def rank(self, query_states: Tensor) -> Tensor:
        """Queries (B, K, D) to the objectness logits (B, K) alone, by which components are kept (Appendix C.2)."""
        return self.objectness(self.class_layers(query_states)).squeeze(-1)


class DrmmSetPredictionHead(_Head):
    """Sigmoid classes and a box of each query: Sparse R-CNN's and AdaMixer's own head."""

    def __init__(self, config: DrmmConfig):
        super().__init__(config)
        dim, num_labels = config.hidden_size, len(config.id2label or {})
        self.classifier = XavierLinear(dim, num_labels, bias_value=_PRIOR_BIAS, exact=True)
        self.box = XavierLinear(dim, 4, bias_value=0.0, zero_weight=config.decoder == "adamixer", exact=True)

    def forward(self, query_states: Tensor, regions: Tensor) -> tuple[SetPrediction, Tensor]:
        """Queries (B, K, D) and the regions (B, K, 4) they looked at to the stage's boxes and the next regions."""
        class_logits = self.classifier(self.class_layers(query_states))
        regions = self.next_regions(query_states, regions)
        return SetPrediction(self.coding.decode(regions), class_logits), regions
