"""Small random detectors of every family that D-RMM can be put on."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel

_DECODER: dict[str, Any] = {"decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 8, "dropout": 0.0}
_ENCODER = {"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2}
_GROUPS = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "group_detr": 3, "c2f_num_blocks": 1}
_THREE, _LAST = ["stage2", "stage3", "stage4"], ["stage4"]
_WIDTHS = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
_HGNET: dict[str, Any] = {
    **_WIDTHS,
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [8, 16, 16, 16],
    "stage_num_blocks": [1] * 4,
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [2] * 4,
}
_HYBRID: dict[str, Any] = {
    **_DECODER,
    **_ENCODER,
    "decoder_attention_heads": 2,
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16] * 3,
    "decoder_in_channels": [16] * 3,
    "num_denoising": 10,
}
_FIRST = {**_DECODER, **_ENCODER, "decoder_attention_heads": 2, "d_model": 32}

# name -> model type, its fields, type of the backbone, its fields
_FAMILIES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "rt_detr": ("rt_detr", _HYBRID, "rt_detr_resnet", {**_WIDTHS, "layer_type": "basic", "out_features": _THREE}),
    "rt_detr_v2": ("rt_detr_v2", _HYBRID, "rt_detr_resnet", {**_WIDTHS, "layer_type": "basic", "out_features": _THREE}),
    "d_fine": (
        "d_fine",
        {**_HYBRID, "hidden_size": 16, "max_num_bins": 8, "lqe_hidden_dim": 8},
        "hgnet_v2",
        {**_HGNET, "out_features": _THREE},
    ),
    "lw_detr": (
        "lw_detr",
        {**_DECODER, **_GROUPS, "d_model": 32, "projector_scale_factors": [1.0]},
        "lw_detr_vit",
        {**_VIT, "window_block_indices": [0], "out_indices": [2], "num_windows": 4, "pretrain_image_size": 64},
    ),
    "rf_detr": (
        "rf_detr",
        {**_DECODER, **_GROUPS, "d_model": 32},
        "rf_detr_dinov2",
        {**_VIT, "out_features": ["stage1", "stage2"], "num_windows": 1, "num_register_tokens": 0},
    ),
    "deformable_detr": (
        "deformable_detr",
        {**_FIRST, "num_feature_levels": 3},
        "resnet",
        {**_WIDTHS, "out_features": _THREE},
    ),
    "deformable_detr_two_stage": (
        "deformable_detr",
        {**_FIRST, "num_feature_levels": 3, "two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 8},
        "resnet",
        {**_WIDTHS, "out_features": _THREE},
    ),
    "conditional_detr": ("conditional_detr", _FIRST, "resnet", {**_WIDTHS, "out_features": _LAST}),
    "detr": ("detr", _FIRST, "resnet", {**_WIDTHS, "out_features": _LAST}),
}
FAMILIES = tuple(_FAMILIES)
GROUPS = {"lw_detr": 3, "rf_detr": 3}
WITH_PROPOSALS = ("rt_detr", "rt_detr_v2", "d_fine", "lw_detr", "rf_detr", "deformable_detr_two_stage")


def small_detector_config(family: str, **fields: Any) -> PreTrainedConfig:
    """Configuration of a detector of 64x64 images and three classes."""
    model_type, own, backbone_type, backbone = _FAMILIES[family]
    fields = {**({} if "id2label" in fields else {"num_labels": 3}), **own, **fields}
    return CONFIG_MAPPING[model_type](backbone_config=CONFIG_MAPPING[backbone_type](**backbone), **fields)


def small_detector(family: str, **fields: Any) -> PreTrainedModel:
    """The detector, in eval mode, with random weights also where the stock initialisation has zeros."""
    torch.manual_seed(0)
    detector = AutoModelForObjectDetection.from_config(small_detector_config(family, **fields)).eval()
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad and not parameter.any() and not name.endswith(("enc_output.bias",)):
                parameter.normal_(std=0.02)
    return detector


def batch(num_images: int = 2, seed: int = 0) -> dict[str, Any]:
    """Images of noise of 64x64 pixels, two objects in the first and none in the others."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.4]])
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    labels = [{"class_labels": torch.tensor([0, 2]), "boxes": boxes}, *[empty] * (num_images - 1)]
    return {"pixel_values": torch.randn(num_images, 3, 64, 64, generator=generator), "labels": labels}
