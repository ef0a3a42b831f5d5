"""transformers' detectors and criteria that we are measured against, with random weights and without downloads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

NUM_LABELS = 80
DETECTORS = {
    "DETR R50": "Detr",
    "Deformable DETR R50": "DeformableDetr",
    "RT-DETR v2 R50": "RTDetrV2",
    "D-FINE L": "DFine",
}
"""RT-DETR v2 and D-FINE have no timm ResNet: their own ResNet-50-D, and HGNetV2-B4, the nearest that it comes with."""
_BACKBONE_OUTPUTS = {"Detr": [4], "DeformableDetr": [2, 3, 4]}


def build_detector(name: str, **changes: Any) -> nn.Module:
    """One of `DETECTORS` in its default configuration with 80 classes, random weights, in evaluation mode.

    Args:
        name: of the detector.
        changes: other fields of its configuration.
    """
    prefix = DETECTORS[name]
    fields: dict[str, Any] = {"num_labels": NUM_LABELS}
    if prefix in _BACKBONE_OUTPUTS:
        fields["backbone_config"] = transformers.TimmBackboneConfig.from_dict(
            {"backbone": "resnet50", "out_indices": _BACKBONE_OUTPUTS[prefix], "freeze_batch_norm_2d": True}
        )
    fields |= changes
    config = getattr(transformers, f"{prefix}Config")(**fields)
    return getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()


def tiny_fields() -> dict[str, Any]:
    """Fields of a Deformable DETR as wide and deep as our tiny presets, backbone included."""
    backbone: dict[str, Any] = {
        "embedding_size": 16,
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
    }
    parts = ("encoder", "decoder")
    sizes = {"layers": 3, "ffn_dim": 256, "attention_heads": 4}
    fields = {f"{part}_{name}": value for part in parts for name, value in sizes.items()}
    return {"backbone_config": transformers.ResNetConfig(**backbone), "d_model": 64, "num_queries": 64, **fields}


def build_criteria(config_changes: Mapping[str, Any] | None = None) -> dict[str, Callable[..., Tensor]]:
    """Losses of the peers, each matcher included: (logits of S stages, boxes of S stages, labels) to a scalar.

    Logits are (B, K, 80), for DETR (B, K, 81), boxes (B, K, 4) cxcywh fractions; labels as of all transformers
    detectors. Every stage is matched and weighted alike.
    """
    fields = {"num_labels": NUM_LABELS, "auxiliary_loss": True, **(config_changes or {})}
    rt_detr = RTDetrLoss(transformers.RTDetrConfig(**fields))
    d_fine_config = transformers.DFineConfig(**fields)
    d_fine = DFineLoss(d_fine_config)
    corners_of: dict[tuple[int, ...], list[Tensor]] = {}
    detr, deformable = transformers.DetrConfig(**fields), transformers.DeformableDetrConfig(**fields)

    def run_rt_detr(logits: Sequence[Tensor], boxes: Sequence[Tensor], labels: Any) -> Tensor:
        stages = [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
        return sum(rt_detr({**stages[-1], "auxiliary_outputs": stages[:-1]}, labels).values())  # type: ignore[return-value]

    def run_d_fine(logits: Sequence[Tensor], boxes: Sequence[Tensor], labels: Any) -> Tensor:
        shape = (*boxes[0].shape[:2], 4 * (d_fine_config.max_num_bins + 1))
        if shape not in corners_of:  # leaves like logits and boxes, made once
            corners_of[shape] = [torch.randn(shape, device=boxes[0].device).requires_grad_() for _ in boxes]
        corners = corners_of[shape]
        stages = [
            {
                "logits": a,
                "pred_boxes": b,
                "pred_corners": c,
                "ref_points": b.detach(),
                "teacher_corners": corners[-1].detach(),
                "teacher_logits": logits[-1].detach(),
            }
            for a, b, c in zip(logits, boxes, corners, strict=True)
        ]
        last = {key: stages[-1][key] for key in ("logits", "pred_boxes")}
        return sum(d_fine({**last, "auxiliary_outputs": stages[:-1]}, labels).values())  # type: ignore[return-value]

    def through(function: Callable, config: Any) -> Callable[..., Tensor]:
        def run(logits: Sequence[Tensor], boxes: Sequence[Tensor], labels: Any) -> Tensor:
            last = (logits[-1], labels, boxes[-1].device, boxes[-1])
            return function(*last, config, torch.stack(list(logits)), torch.stack(list(boxes)))[0]

        return run

    return {
        "RT-DETR": run_rt_detr,
        "Deformable DETR": through(DeformableDetrForObjectDetectionLoss, deformable),
        "DETR": through(ForObjectDetectionLoss, detr),
        "D-FINE": run_d_fine,
    }
