"""Small detectors whose scores spread, to export."""

import torch

from drmm_hf import DrmmForObjectDetection
from model_fixtures import small_model

DECODERS = {"sparse_rcnn": {}, "adamixer": {"decoder": "adamixer", "num_sampling_points": 8, "num_mixing_points": 8}}


def spread_model(objectness: float = 0.0, **overrides) -> DrmmForObjectDetection:
    """Random weights; boxes and scales move, and the objectness logits spread around `objectness`."""
    model = small_model(**overrides).eval()
    with torch.no_grad():
        for head in model.model.heads:
            head.box.weight.normal_(std=0.2)
            head.classifier.weight.mul_(2)
            head.objectness.weight.mul_(2)
            head.objectness.bias.fill_(objectness)
    return model
