"""The released D-RMM model's parameter names in terms of ours (until the package converts checkpoints itself)."""

import re

import torch

_STAGE = {
    "attention.attn.in_proj_": "self_attn.qkv_proj.",
    "attention.attn.out_proj.": "self_attn.o_proj.",
    "attention_norm.": "self_attn_layer_norm.",
    "instance_interactive_conv.dynamic_layer.": "dynamic_conv.dynamic_layer.",
    "instance_interactive_conv.norm_in.": "dynamic_conv.norm_in.",
    "instance_interactive_conv.norm_out.": "dynamic_conv.norm_out.",
    "instance_interactive_conv.fc_layer.": "dynamic_conv.out_layer.",
    "instance_interactive_conv.fc_norm.": "dynamic_conv.out_norm.",
    "instance_interactive_conv_norm.": "dynamic_conv_layer_norm.",
    "ffn.layers.0.0.": "fc1.",
    "ffn.layers.1.": "fc2.",
    "ffn_norm.": "final_layer_norm.",
}


def released_name(ours: str) -> str:
    """The released name of one of our parameters; the two parts of `fc_cls` share one."""
    name = ours.removeprefix("model.")
    name = name.replace("backbone.model._backbone.", "backbone.")
    if name == "proposals.boxes":
        return "rpn_head.init_proposal_bboxes.weight"
    if name == "proposals.features":
        return "rpn_head.init_proposal_features.weight"
    if match := re.fullmatch(r"pyramid\.(lateral|output)s\.(\d)\.(\w+)", name):
        kind = "lateral" if match[1] == "lateral" else "fpn"
        return f"neck.{kind}_convs.{match[2]}.conv.{match[3]}"
    if match := re.fullmatch(r"stages\.(\d)\.(.+)", name):
        for theirs, own in _STAGE.items():
            if match[2].startswith(own):
                return f"roi_head.bbox_head.{match[1]}.{theirs}{match[2].removeprefix(own)}"
    if match := re.fullmatch(r"heads\.(\d)\.(class|box)_layers\.(\d)\.(linear|norm)\.(\w+)", name):
        kind, index = ("cls" if match[2] == "class" else "reg"), 3 * int(match[3]) + (match[4] == "norm")
        return f"roi_head.bbox_head.{match[1]}.{kind}_fcs.{index}.{match[5]}"
    if match := re.fullmatch(r"heads\.(\d)\.(box|objectness|classifier)\.(\w+)", name):
        return f"roi_head.bbox_head.{match[1]}.fc_{'reg' if match[2] == 'box' else 'cls'}.{match[3]}"
    return name


def from_released(ours: str, shape: torch.Size, fill) -> torch.Tensor:
    """Our tensor `ours`, made by `fill(released name, released shape)`."""
    released = released_name(ours)
    part = re.search(r"heads\.\d\.(objectness|classifier)\.", ours)
    if part is None:
        return torch.from_numpy(fill(released, tuple(shape)))
    whole = torch.from_numpy(fill(released, (81, *shape[1:])))
    return whole[:1] if part[1] == "objectness" else whole[1:]
