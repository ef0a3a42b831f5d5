"""D-RMM on Sparse R-CNN computed operator by operator as the released code does, to measure ours against.

Straight transcriptions over a model's own weights: maps in NCHW, every pyramid level, torchvision's RoIAlign level by
level on the boxes of that level, `nn.MultiheadAttention`, and every output of every stage.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ..heads_drmm import DrmmMixtureHead
from ..modeling_drmm import DrmmForObjectDetection
from ..stage_sparse_rcnn import SparseRcnnStage

_CANONICAL_SIZE = 56.0


def released_regions(
    features: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], output_size: int = 7, sampling_ratio: int = 2
) -> Tensor:
    """RoIAlign of boxes (B, K, 4) xyxy in pixels from maps (B, D, H, W): (B * K, D, output_size, output_size)."""
    batch, num_boxes, _ = boxes.shape
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).repeat_interleave(num_boxes).unsqueeze(-1)
    regions = torch.cat((image, boxes.reshape(-1, 4)), dim=-1)
    size = torch.sqrt((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2]))
    level = torch.floor(torch.log2(size / _CANONICAL_SIZE + 1e-6)).clamp(0, len(features) - 1).long()
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], output_size, output_size)
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        own = (level == i).nonzero(as_tuple=True)[0]
        if len(own):
            pooled[own] = roi_align(feature, regions[own], output_size, 1.0 / stride, sampling_ratio, aligned=True)
    return pooled


class ReleasedStage(nn.Module):
    """One refinement stage with its head, over the weights of ours."""

    def __init__(self, stage: SparseRcnnStage, head: DrmmMixtureHead):
        super().__init__()
        self.stage, self.head, self.config = stage, head, stage.self_attn.config
        dim = self.config.hidden_size
        self.attention = nn.MultiheadAttention(dim, self.config.num_attention_heads)
        joint = nn.Linear(dim, 1 + head.classifier.out_features)
        own = stage.self_attn
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(own.qkv_proj.weight)
            self.attention.in_proj_bias.copy_(own.qkv_proj.bias)
            self.attention.out_proj.load_state_dict(own.o_proj.state_dict())
            joint.weight.copy_(torch.cat((head.objectness.weight, head.classifier.weight)))
            joint.bias.copy_(torch.cat((head.objectness.bias, head.classifier.bias)))
        self.joint_classifier = joint

    def forward(
        self, query_states: Tensor, boxes: Tensor, features: Sequence[Tensor], strides: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Queries (B, K, D) and boxes (B, K, 4) to the next queries, and every output of the stage."""
        stage = self.stage
        pooled = released_regions(features, boxes, strides, self.config.roi_size, self.config.roi_sampling_ratio)
        states = query_states.permute(1, 0, 2)
        states = states + self.attention(states, states, states)[0]
        states = stage.self_attn_layer_norm(states).permute(1, 0, 2).reshape(-1, query_states.shape[-1])
        states = stage.dynamic_conv_layer_norm(states + self._dynamic_conv(states, pooled))
        states = stage.final_layer_norm(states + stage.fc2(F.relu(stage.fc1(states)))).view(query_states.shape)
        return states, self._outputs(states, boxes)

    def _dynamic_conv(self, states: Tensor, pooled: Tensor) -> Tensor:
        conv = self.stage.dynamic_conv
        dim, inner = states.shape[-1], conv.dynamic_dim
        cells = pooled.flatten(2).permute(2, 0, 1).permute(1, 0, 2)
        weights = conv.dynamic_layer(states)
        hidden = torch.bmm(cells, weights[:, : dim * inner].view(-1, dim, inner))
        hidden = torch.bmm(F.relu(conv.norm_in(hidden)), weights[:, dim * inner :].view(-1, inner, dim))
        return F.relu(conv.out_norm(conv.out_layer(F.relu(conv.norm_out(hidden)).flatten(1))))

    def _outputs(self, states: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        classes, moves = states, states
        for layer in self.head.class_layers:
            classes = layer(classes)
        for layer in self.head.box_layers:
            moves = layer(moves)
        logits, raw = self.joint_classifier(classes), self.head.box(moves)
        objectness = logits[..., 0].sigmoid()
        unit = float(self.config.box_unit)
        return {
            "locations": boxes + unit * raw[..., :4],
            "scales": unit * F.softplus(raw[..., 4:]),
            "probability": logits[..., 1:].softmax(dim=-1),
            "objectness": objectness,
            "mixing": objectness / objectness.sum(dim=1, keepdim=True),
        }


class ReleasedStages(nn.Module):
    """All refinement stages, over the weights of a D-RMM Sparse R-CNN model."""

    def __init__(self, model: DrmmForObjectDetection):
        super().__init__()
        inner = model.model
        self.proposals = inner.proposals
        pairs = zip(inner.stages, inner.heads, strict=True)
        self.stages = nn.ModuleList(ReleasedStage(cast(SparseRcnnStage, s), cast(DrmmMixtureHead, h)) for s, h in pairs)

    def forward(
        self, features: Sequence[Tensor], strides: Sequence[int], image_sizes: Tensor
    ) -> list[dict[str, Tensor]]:
        """Maps (B, D, H, W) in NCHW, their strides and image sizes (B, 2) to the outputs of all stages."""
        boxes, states = self.proposals(image_sizes)
        outputs: list[dict[str, Tensor]] = []
        for stage in self.stages:
            states, found = stage(states, boxes.detach(), features, strides)
            boxes = found["locations"].detach()
            outputs.append(found)
        return outputs


class ReleasedPyramid(nn.Module):
    """Backbone and feature pyramid in NCHW, over copies of a model's weights; nothing is fused."""

    def __init__(self, model: DrmmForObjectDetection):
        super().__init__()
        inner = model.model
        self.backbone, self.pyramid = (
            copy.deepcopy(part).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            for part in (inner.backbone.model, inner.pyramid)
        )

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to maps (B, D, H_l, W_l)."""
        return self.pyramid(self.backbone(pixel_values.contiguous()).feature_maps)
