"""Named configurations: field values of `DrmmConfig` and, beside them, of the image processor."""

import copy
import difflib
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg

_PYRAMID = {"model_type": "timm_backbone", "out_indices": [1, 2, 3, 4]}
_BACKBONES: dict[str, dict[str, Any]] = {
    "r50": {"backbone_config": {**_PYRAMID, "backbone": "resnet50.tv_in1k"}},
    "r101": {"backbone_config": {**_PYRAMID, "backbone": "resnet101.tv_in1k"}},
    # strict_img_size: Swin takes images of any size; nothing of it is frozen, and it has no BatchNorm
    "swin-t": {
        "backbone_config": {
            **_PYRAMID,
            "backbone": "swin_tiny_patch4_window7_224.ms_in1k",
            "out_indices": [0, 1, 2, 3],
        },
        "backbone_kwargs": {"strict_img_size": False},
        "frozen_stages": 0,
    },
}
_BASELINE: dict[str, Any] = {"head": "set_prediction", "objective": "set_prediction", "proposal_init": "full_image"}
_ADAMIXER: dict[str, Any] = {"decoder": "adamixer", "num_box_layers": 1}
_DECODERS: dict[str, dict[str, Any]] = {
    "drmm-sparse-rcnn": {"backbone_norm": "sync"},
    # what the paper leaves open: docs/results/ablations.md
    "drmm-adamixer": {**_ADAMIXER, "backbone_norm": "sync", "learn_proposal_boxes": False},
    "sparse-rcnn": _BASELINE,
    "adamixer": {**_ADAMIXER, **_BASELINE, "learn_proposal_boxes": False},
}

# Small widths for a laptop CPU, for quick starts and small data sets.
_SMALL: dict[str, Any] = {
    "num_proposals": 64,
    "num_stages": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "decoder_ffn_dim": 256,
    "proposal_size": 0.25,
    "isolate_images": True,
    "loss_reduction": "mean",
}
_FEW_POINTS = {"num_sampling_points": 16, "num_mixing_points": 32}
_SMALL_DECODERS: dict[str, dict[str, Any]] = {
    # beta is twice the paper's: short trainings leave more duplicates (docs/results/training.md)
    "drmm-sparse-rcnn": {**_SMALL, "dynamic_dim": 16, "box_unit": 10.0, "mcm_weight": 1.0},
    "drmm-adamixer": {**_SMALL, **_ADAMIXER, **_FEW_POINTS, "box_unit": 10.0, "learn_proposal_boxes": False},
    "sparse-rcnn": {**_SMALL, **_BASELINE, "dynamic_dim": 16, "proposal_init": "grid"},
    "adamixer": {**_SMALL, **_ADAMIXER, **_BASELINE, **_FEW_POINTS, "proposal_init": "grid"},
}
_SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    # learns from random weights
    "tiny": {
        "backbone_config": {**_PYRAMID, "backbone": "resnet10t"},
        "backbone_kwargs": {"channels": [32, 64, 96, 128], "stem_width": 8},
        "backbone_norm": "train",
        "frozen_stages": 0,
    },
    # has learned from ImageNet: batches of a few images are no better statistics than ImageNet's
    "lite0": {
        "backbone_config": {**_PYRAMID, "backbone": "tf_efficientnet_lite0.in1k"},
        "backbone_norm": "eval",
        "frozen_stages": 1,
    },
}
# Few images, few steps: the scores of an image add up to its objects, and the class does not wait for the boxes
# (docs/results/real-data.md, measured on AdaMixer).
_FEW_STEPS = {"drmm-adamixer-lite0": {"objectness_anchor": "poisson", "class_gradient": 2.0}}
# Levels of Sparse R-CNN's pyramid; AdaMixer reads all.
_SMALL_LEVELS = {"tiny": [1], "lite0": [1, 2, 3]}

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's six (Table 1 and 6) and their baselines.
    **{f"{d}-{b}": {**backbone, **decoder} for d, decoder in _DECODERS.items() for b, backbone in _BACKBONES.items()},
    # Appendix C.2: many proposals, of which each stage keeps 70%.
    "drmm-sparse-rcnn-r50-2000": {
        **_BACKBONES["r50"],
        **_DECODERS["drmm-sparse-rcnn"],
        "num_proposals": 2000,
        "top_k_ratio": 0.7,
    },
    **{
        f"{name}-{size}": {**decoder, **backbone}
        | ({"pyramid_levels": _SMALL_LEVELS[size]} if name.endswith("sparse-rcnn") else {})
        | _FEW_STEPS.get(f"{name}-{size}", {})
        for size, backbone in _SMALL_BACKBONES.items()
        for name, decoder in _SMALL_DECODERS.items()
    },
}

# Network input of a preset, where it is not the image processor's default of 800 by 1333 pixels.
PROCESSOR_PRESETS: dict[str, dict[str, Any]] = {
    f"{name}-{backbone}": {"size": {"shortest_edge": 288, "longest_edge": 384}}
    for name in _SMALL_DECODERS
    for backbone in _SMALL_BACKBONES
}


def preset_fields(name: str) -> dict[str, Any]:
    """Fields of `DrmmConfig` for the preset `name`.

    Raises:
        ValueError: no such preset; the message lists the nearest names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.3) or sorted(PRESETS)
        raise ValueError(f"There is no preset {str(name)[:80]!r}. Nearest: {', '.join(near)}.")
    return copy.deepcopy(PRESETS[name])


def processor_fields(name: str) -> dict[str, Any]:
    """Arguments of `DrmmImageProcessor` for the preset `name` (ValueError as `preset_fields`)."""
    backbone = preset_fields(name)["backbone_config"]
    return {**copy.deepcopy(PROCESSOR_PRESETS.get(name, {})), **_statistics(backbone["backbone"])}


def backbone_statistics(config: Any) -> dict[str, list[float]]:
    """`image_mean` and `image_std` with which the backbone of a `DrmmConfig` was trained, as arguments of the image
    processor; empty where they are ImageNet's, its defaults, or where timm states none.
    """
    return _statistics(getattr(config.backbone_config, "backbone", None))


def _statistics(architecture: str | None) -> dict[str, list[float]]:
    known = None if architecture is None else get_pretrained_cfg(architecture)
    if known is None or (known.mean, known.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        return {}
    return {"image_mean": list(known.mean), "image_std": list(known.std)}
