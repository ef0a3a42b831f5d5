"""Size and arithmetic of a model: parameters and multiply-adds, without computing anything."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_drmm import DrmmConfig
from ..modeling_drmm import DrmmForObjectDetection


class Complexity(NamedTuple):
    """Counts of one model."""

    parameters: int  # the proposals' boxes count also where they are not trained
    # Those that receive a gradient; the paper's counts (Table 11) leave out the frozen stem and first stage, too.
    trainable: int
    # Of convolutions, linear layers and batched products for one image; what mmdet, and so the paper, calls FLOPs.
    # RoIAlign, grid sampling, norms and activations are not in it, there as here.
    multiply_adds: int


def count_complexity(config: DrmmConfig, height: int = 800, width: int = 1280) -> Complexity:
    """Count on the meta device: no weights are made and nothing is computed, so it takes a second.

    Args:
        config: the model's.
        height, width: network input in pixels, multiples of 32; the default is the paper's (Table 11).
    """
    # eager attention: the counter does not know every fused kernel
    config = DrmmConfig.from_dict({**config.to_dict(), "attn_implementation": "eager"})
    with torch.device("meta"):
        model = DrmmForObjectDetection(config).eval()
        parameters = list(model.parameters()) + [model.model.proposals.boxes] * (not config.learn_proposal_boxes)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        with FlopCounterMode(display=False) as counter:
            model.requires_grad_(False).model(torch.empty(1, 3, height, width))
    return Complexity(sum(p.numel() for p in parameters), trainable, counter.get_total_flops() // 2)
