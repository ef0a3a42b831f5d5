"""Does a converted model compute what the released code computes? Golden values of its stages, recomputed.

The golden values were computed with the released code on an input that is made from a name and a seed, so that a file
of some hundred kilobytes is enough (tests/reference/README.md gives the layout).
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..matching import SetPrediction
from ..mixture import MixtureParameters
from ..modeling_drmm import DrmmForObjectDetection

INPUT_NAME, INPUT_SIZE = "A0", (256, 320)
# what rounding in float32 leaves of six stages: the released code's own distance from float64 is about a tenth
TOLERANCES = {
    "loc": 1e-3,
    "sc": 1e-4,
    "fg": 1e-5,
    "prob": 1e-5,
    "cls_score": 5e-4,
    "decode_bbox_pred": 2e-2,
}


@dataclass(frozen=True)
class Deviation:
    """Largest absolute difference of one quantity of one stage from its golden value, and what is allowed."""

    name: str
    value: float
    tolerance: float

    @property
    def within(self) -> bool:
        return self.value <= self.tolerance  # False for NaN


def reference_input(name: str = INPUT_NAME, height: int = INPUT_SIZE[0], width: int = INPUT_SIZE[1]) -> Tensor:
    """(3, height, width) float32: 16-pixel blocks and white noise of a generator that is seeded by the name."""
    seed = int.from_bytes(hashlib.sha256(f"image:{name}".encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    blocks = generator.standard_normal((3, -(-height // 16), -(-width // 16)))
    blocks = blocks.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    noise = generator.standard_normal((3, height, width))
    return torch.from_numpy((0.8 * blocks + 0.5 * noise).astype(np.float32))


@torch.no_grad()
def verify_golden(model: DrmmForObjectDetection, path: str | Path) -> list[Deviation]:
    """Compare every stage of `model` with the golden values in a safetensors file.

    Keys are `A/stage<s>/<quantity>`: `loc`, `sc` (K, 4), `fg` (K) and `prob` (K, C) of D-RMM, `cls_score` (K, C) and
    `decode_bbox_pred` (K, 4) of the baselines, with or without a batch axis of 1. `A/stage<s>/rows`, if there, says
    which of the K rows the file keeps, `A/classes` which of the C columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no golden values of this model's head, or not of its number of stages or proposals.
    """
    golden = _load(Path(path))
    stages = model.eval().model(reference_input().unsqueeze(0)).stages
    deviations = []
    for s, stage in enumerate(stages):
        ours = _quantities(stage)
        rows = golden.get(f"A/stage{s}/rows")
        for name, value in ours.items():
            expected = golden.get(f"A/stage{s}/{name}")
            if expected is None:
                continue
            if rows is not None:
                value = value[rows]
            if "A/classes" in golden and name in ("prob", "cls_score"):
                value = value[:, golden["A/classes"]]
            if value.numel() != expected.numel():
                raise ValueError(
                    f"{path}: A/stage{s}/{name} has shape {tuple(expected.shape)}, the model gives "
                    f"{tuple(value.shape)}; these are golden values of another model."
                )
            difference = (value - expected.reshape(value.shape)).abs().max().item()
            deviations.append(Deviation(f"stage {s + 1} {name}", difference, TOLERANCES[name]))
    num_stages = len({key.split("/")[1] for key in golden if re.match(r"A/stage\d+/", key)})
    if not deviations or num_stages != len(stages):
        raise ValueError(
            f"{path}: no golden values of a {model.config.head!r} head with {len(stages)} stages in it (it has "
            f"{num_stages} stages)."
        )
    return deviations


def _quantities(stage: MixtureParameters | SetPrediction) -> dict[str, Tensor]:
    if isinstance(stage, SetPrediction):
        return {"cls_score": stage.class_logits[0], "decode_bbox_pred": stage.locations[0]}
    return {
        "loc": stage.locations[0],
        "sc": stage.scales[0],
        "fg": stage.objectness_logits[0].sigmoid(),
        "prob": stage.class_logits[0].softmax(dim=-1),
    }


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a safetensors file of golden values.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}).") from error
