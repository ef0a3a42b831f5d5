"""Reading checkpoint files of others without running any code in them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..weight_files import check_tensors, read_weights

_WRAPPERS = {
    "raw": ("state_dict", "model", "model_state_dict"),
    "ema": ("ema_state_dict", "state_dict_ema", "model_ema"),
}


@dataclass(frozen=True)
class ReleasedFile:
    """A state dict as released, and what else the file says.

    Attributes:
        path: the file.
        tensors: by released key, without a `module.` prefix.
        classes: class names by label, None if the file does not say.
        skipped: keys left out on purpose, with the reason.
    """

    path: Path
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    skipped: dict[str, str]


def read_released_file(path: str | Path, weights: str = "raw") -> ReleasedFile:
    """Read an mmdet checkpoint (`.pth` with `state_dict` and `meta`), a bare state dict, or safetensors.

    Args:
        path: the file.
        weights: "raw" for the file's ordinary weights, "ema" for the moving average that it holds beside them: a state
            dict of its own, or mmcv's `ema_*` buffers. (While mmcv's EMAHook is on, the ordinary weights of a saved
            epoch are the average already and the buffers the raw ones.)

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, needs code to be unpickled, holds no state dict, no EMA weights, or NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint (.pth, .pt or .safetensors).")
    content = read_weights(path)
    meta = content.get("meta") if isinstance(content.get("meta"), Mapping) else {}
    state, own_ema = _state_dict(path, content, weights)
    check_tensors(path, state)
    prefix = re.compile(r"^(module\.)+")
    tensors = {prefix.sub("", key): value for key, value in state.items() if isinstance(value, Tensor)}
    skipped = {key: "not a tensor" for key, value in state.items() if not isinstance(value, Tensor)}
    buffers = {key: tensors.pop(key) for key in list(tensors) if key.startswith("ema_")}
    if weights == "ema" and not own_ema:
        tensors = _from_ema_buffers(path, tensors, buffers)
    elif buffers:
        skipped |= dict.fromkeys(buffers, "the other weights of a moving average; weights='ema' takes them")
    classes = meta.get("CLASSES") or meta.get("classes") if meta else None
    return ReleasedFile(path, tensors, tuple(map(str, classes)) if classes else None, skipped)


def _state_dict(path: Path, content: dict[str, Any], weights: str) -> tuple[Mapping[str, Any], bool]:
    """The wanted state dict, and whether it is a moving average of its own."""
    if weights not in _WRAPPERS:
        raise ValueError(f"weights={weights!r}; choose 'raw' or 'ema'.")
    for kind in (weights, "raw"):
        for name in _WRAPPERS[kind]:
            if isinstance(content.get(name), Mapping):
                return content[name], kind == "ema"
    if any(isinstance(value, Tensor) for value in content.values()):
        return content, False
    raise ValueError(f"{path}: no state dict in it; its entries are {', '.join(map(repr, list(content)[:10]))}.")


def _from_ema_buffers(path: Path, tensors: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    if not buffers:
        raise ValueError(f"{path}: holds no moving average; use weights='raw'.")
    return {key: buffers.get("ema_" + key.replace(".", "_"), value) for key, value in tensors.items()}
