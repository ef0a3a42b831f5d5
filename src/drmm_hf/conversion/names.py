"""Our parameter names in terms of the released ones: D-RMM (mmdet), mmdet's Sparse R-CNN, AdaMixer.

One table serves both directions. The released matrix `fc_cls` of D-RMM holds the objectness in its first row and the
classes below; here they are two layers, so that the objectness survives fine-tuning on other classes.
"""

import re
from dataclasses import dataclass

_STAGE = {
    "self_attn.qkv_proj.": "attention.attn.in_proj_",
    "self_attn.o_proj.": "attention.attn.out_proj.",
    "self_attn_layer_norm.": "attention_norm.",
    "dynamic_conv.dynamic_layer.": "instance_interactive_conv.dynamic_layer.",
    "dynamic_conv.norm_in.": "instance_interactive_conv.norm_in.",
    "dynamic_conv.norm_out.": "instance_interactive_conv.norm_out.",
    "dynamic_conv.out_layer.": "instance_interactive_conv.fc_layer.",
    "dynamic_conv.out_norm.": "instance_interactive_conv.fc_norm.",
    "dynamic_conv_layer_norm.": "instance_interactive_conv_norm.",
    "attention_bias.tau": "iof_tau",
    "sampling_offsets.": "sampling_n_mixing.sampling_offset_generator.0.",
    "adaptive_mixing.parameter_layer.": "sampling_n_mixing.adaptive_mixing.parameter_generator.0.",
    "adaptive_mixing.out_layer.": "sampling_n_mixing.adaptive_mixing.out_proj.",
    "mixing_layer_norm.": "sampling_n_mixing.norm.",
    "fc1.": "ffn.layers.0.0.",
    "fc2.": "ffn.layers.1.",
    "final_layer_norm.": "ffn_norm.",
}


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from.

    Attributes:
        name: the released key.
        part: "first" row or the "rest" of its rows; None for all of it.
    """

    name: str
    part: str | None = None


def released_source(ours: str, decoder: str, head: str) -> Source:
    """The released tensor of our parameter or buffer `ours` of a `DrmmForObjectDetection`.

    Raises:
        KeyError: the released code has no such parameter.
    """
    name = ours.removeprefix("model.")
    if name.startswith("backbone.model._backbone."):
        return Source(name.replace("backbone.model._backbone.", "backbone.", 1))
    if name == "proposals.boxes":
        return Source("rpn_head.init_proposal_bboxes.weight")
    if name == "proposals.features":
        kind = "content" if decoder == "adamixer" else "proposal"
        return Source(f"rpn_head.init_{kind}_features.weight")
    if match := re.fullmatch(r"pyramid\.(laterals|outputs)\.(\d+)\.(\w+)", name):
        kind = "lateral" if match[1] == "laterals" else "fpn"
        return Source(f"neck.{kind}_convs.{match[2]}.conv.{match[3]}")
    if match := re.fullmatch(r"pyramid\.norm\.(\w+)", name):
        return Source(f"neck.gn_out.{match[1]}")
    if match := re.fullmatch(r"stages\.(\d+)\.(.+)", name):
        for prefix, theirs in _STAGE.items():
            if match[2].startswith(prefix):
                return Source(f"roi_head.bbox_head.{match[1]}.{theirs}{match[2].removeprefix(prefix)}")
    if match := re.fullmatch(r"heads\.(\d+)\.(class|box)_layers\.(\d+)\.(linear|norm)\.(\w+)", name):
        # linear, norm and ReLU take a number each
        kind, index = ("cls" if match[2] == "class" else "reg"), 3 * int(match[3]) + (match[4] == "norm")
        return Source(f"roi_head.bbox_head.{match[1]}.{kind}_fcs.{index}.{match[5]}")
    if match := re.fullmatch(r"heads\.(\d+)\.(box|objectness|classifier)\.(\w+)", name):
        kind = "reg" if match[2] == "box" else "cls"
        part = None
        if head == "mixture" and kind == "cls":
            part = "first" if match[2] == "objectness" else "rest"
        return Source(f"roi_head.bbox_head.{match[1]}.fc_{kind}.{match[3]}", part)
    raise KeyError(ours)
