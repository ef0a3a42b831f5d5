"""A model small enough that a test of it costs milliseconds, and inputs for it."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor

NAMES = {0: "disc", 1: "ring", 2: "star"}
EMPTY = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}

# Operators that read a value or a shape from the device, and those that make a tensor of numbers of the host.
WAITING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "unique",
    "bincount",
    "repeat_interleave.Tensor",
    "lift_fresh",
    "to_copy.device",
)


def small_config(**overrides: Any) -> DrmmConfig:
    fields = {
        "id2label": NAMES,
        "label2id": {name: label for label, name in NAMES.items()},
        "num_proposals": 12,
        "num_stages": 2,
        "hidden_size": 32,
        "decoder_ffn_dim": 64,
        "dynamic_dim": 8,
        "backbone_kwargs": {"channels": [16, 16, 32, 32], "stem_width": 8},
    }
    return DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", **{**fields, **overrides})


def small_model(seed: int = 0, **overrides: Any) -> DrmmForObjectDetection:
    torch.manual_seed(seed)
    return DrmmForObjectDetection(small_config(**overrides))


def save_small(folder: Path, seed: int = 0, **overrides: Any) -> str:
    """Save such a model, with its processor; the folder, as the commands take it."""
    small_model(seed, **overrides).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


def inputs(batch: int = 2, height: int = 64, width: int = 96) -> dict[str, Any]:
    """Noise images, the last of which covers only a part of its canvas, and their labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, height, width, generator=generator)
    mask = torch.ones(batch, height, width, dtype=torch.long)
    mask[-1, 48:], mask[-1, :, 64:] = 0, 0
    pixels = pixels * mask.unsqueeze(1)
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.6]])}
        for _ in range(batch)
    ]
    return {"pixel_values": pixels, "pixel_mask": mask, "labels": labels}


class Recorder(TorchDispatchMode):
    """Names of the operators that ran, and the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.")
        if name.startswith("_to_copy") and (kwargs or {}).get("device") not in (None, args[0].device):
            name = "to_copy.device"
        if name.startswith("index") and isinstance(args[1], (list, tuple)) and any(map(_is_mask, args[1])):
            name = "nonzero by a mask"
        self.operators[name] += 1
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.largest = max(self.largest, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return result

    def waiting(self) -> list[str]:
        return [name for name in self.operators if name.startswith(WAITING)]


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool
