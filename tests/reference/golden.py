"""Values of the released models' stages (README.md), and how far a model of the package is from them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from drmm_hf import DrmmForObjectDetection
from drmm_hf.matching import SetPrediction

# what rounding in float32 leaves of six stages: the released code's own distance from float64 is about a tenth
TOLERANCES = {"loc": 1e-3, "sc": 1e-4, "fg": 1e-5, "prob": 1e-5, "cls_score": 2e-4, "decode_bbox_pred": 1e-2}
# AdaMixer's logits are larger
ADAMIXER = {**TOLERANCES, "cls_score": 5e-4, "decode_bbox_pred": 2e-2}


def reference_input() -> Tensor:
    """(3, 256, 320) float32: 16-pixel blocks and white noise of a generator that is seeded by the name A0."""
    height, width = 256, 320
    seed = int.from_bytes(hashlib.sha256(b"image:A0").digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    blocks = generator.standard_normal((3, -(-height // 16), -(-width // 16)))
    blocks = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    noise = generator.standard_normal((3, height, width))
    return torch.from_numpy((0.8 * blocks + 0.5 * noise).astype(np.float32))


@torch.no_grad()
def deviations(model: DrmmForObjectDetection, path: Path) -> dict[tuple[int, str], float]:
    """Stage and name of each golden quantity -> largest absolute difference of the model's, for `reference_input()`."""
    golden, found = load_file(path), {}
    for number, stage in enumerate(model.eval().model(reference_input().unsqueeze(0)).stages):
        if isinstance(stage, SetPrediction):
            values = {"cls_score": stage.class_logits, "decode_bbox_pred": stage.locations}
        else:
            values = {"loc": stage.locations, "sc": stage.scales}
            values |= {"fg": stage.objectness_logits.sigmoid(), "prob": stage.class_logits.softmax(dim=-1)}
        for name, (value,) in values.items():
            value = value[golden[f"A/stage{number}/rows"]]
            if name in ("prob", "cls_score"):
                value = value[:, golden["A/classes"]]
            expected = golden[f"A/stage{number}/{name}"].reshape(value.shape)
            found[number, name] = (value - expected).abs().max().item()
    return found
