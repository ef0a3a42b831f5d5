"""Our parameter names in terms of the released ones: D-RMM (mmdet), mmdet's Sparse R-CNN, AdaMixer.

One table serves both directions. The released matrix `fc_cls` of D-RMM holds the objectness in its first row and the
classes below; here they are two layers, so that the objectness survives fine-tuning on other classes.
"""

import re
from typing import NamedTuple

_HEAD = "roi_head.bbox_head"
_RULES = [  # what ours begin with, and what the released names begin with in its place
    (r"backbone\.model\._backbone\.", "backbone."),
    (r"proposals\.boxes$", "rpn_head.init_proposal_bboxes.weight"),
    (r"proposals\.features$", "rpn_head.init_{features}_features.weight"),
    (r"pyramid\.laterals\.(\d+)\.", r"neck.lateral_convs.\1.conv."),
    (r"pyramid\.outputs\.(\d+)\.", r"neck.fpn_convs.\1.conv."),
    (r"pyramid\.norm\.", "neck.gn_out."),
    (r"heads\.(\d+)\.box\.", rf"{_HEAD}.\1.fc_reg."),
    (r"heads\.(\d+)\.(?:objectness|classifier)\.", rf"{_HEAD}.\1.fc_cls."),
]
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
_RULES += [(rf"stages\.(\d+)\.{re.escape(ours)}", rf"{_HEAD}.\1.{theirs}") for ours, theirs in _STAGE.items()]
# in a row of layers, linear, norm and ReLU take a number each
_RULES += [
    (rf"heads\.(\d+)\.{ours}_layers\.{layer}\.{kind}\.", rf"{_HEAD}.\1.{theirs}_fcs.{3 * layer + place}.")
    for ours, theirs in (("class", "cls"), ("box", "reg"))
    for layer in range(8)
    for place, kind in enumerate(("linear", "norm"))
]


class Source(NamedTuple):
    """Where one of our tensors comes from: the released key, and the "first" row or the "rest" of its rows, or None for
    all of it.
    """

    name: str
    part: str | None = None


def released_source(ours: str, decoder: str, head: str) -> Source:
    """The released tensor of our parameter or buffer `ours` of a `DrmmForObjectDetection`.

    Raises:
        KeyError: the released code has no such parameter.
    """
    name = ours.removeprefix("model.")
    for pattern, theirs in _RULES:
        if match := re.match(pattern, name):
            released = match.expand(theirs) + name[match.end() :]
            part = (
                {"objectness": "first", "classifier": "rest"}.get(name.split(".")[2])
                if ".fc_cls." in released
                else None
            )
            features = "content" if decoder == "adamixer" else "proposal"
            return Source(released.format(features=features), part if head == "mixture" else None)
    raise KeyError(ours)
