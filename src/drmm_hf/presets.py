"""Named configurations: field values of `DrmmConfig` and, beside them, of the image processor."""

import copy
import difflib
from typing import Any

_TIMM_RESNET = {"model_type": "timm_backbone", "out_indices": [1, 2, 3, 4]}

PRESETS: dict[str, dict[str, Any]] = {
    # Paper Table 1, row 2; the released configuration of the 47.0 AP model apart from its synchronised BatchNorm.
    "drmm-sparse-rcnn-r50": {
        "backbone_config": {**_TIMM_RESNET, "backbone": "resnet50"},
    },
    # A small model that learns from scratch on a laptop CPU, for quick starts and small data sets.
    "drmm-sparse-rcnn-tiny": {
        "backbone_config": {**_TIMM_RESNET, "backbone": "resnet10t"},
        "backbone_kwargs": {"channels": [32, 64, 96, 128], "stem_width": 8},
        "backbone_norm": "train",
        "frozen_stages": 0,
        "pyramid_levels": [1],
        "num_proposals": 64,
        "num_stages": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "decoder_ffn_dim": 256,
        "dynamic_dim": 16,
        "proposal_size": 0.25,
        "box_unit": 10.0,
        "isolate_images": True,
        "loss_reduction": "mean",
    },
}

# Network input of a preset, where it is not the image processor's default of 800 by 1333 pixels.
PROCESSOR_PRESETS: dict[str, dict[str, Any]] = {
    "drmm-sparse-rcnn-tiny": {"size": {"shortest_edge": 288, "longest_edge": 384}},
}


def preset_fields(name: str) -> dict[str, Any]:
    """Fields of `DrmmConfig` for the preset `name`.

    Raises:
        ValueError: no such preset; the message lists the nearest names.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.3) or sorted(PRESETS)
        raise ValueError(f"There is no preset {name!r}. Nearest: {', '.join(near)}.")
    return copy.deepcopy(PRESETS[name])


def processor_fields(name: str) -> dict[str, Any]:
    """Arguments of `DrmmImageProcessor` for the preset `name` (ValueError as `preset_fields`)."""
    preset_fields(name)
    return copy.deepcopy(PROCESSOR_PRESETS.get(name, {}))
