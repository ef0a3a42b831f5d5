"""Files of weights from others: read without running their code, and checked before anything is built on them."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

# in the order in which timm looks for them
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a .safetensors file, or one that `torch.load(weights_only=True)` reads, holds at its top.

    Raises:
        ValueError: the file is damaged, compressed, needs code to be unpickled, or holds something else than a dict
            with names as keys.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None and not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a checkpoint that torch can read; download it again.") from error
        raise ValueError(
            f"{path}: reading it would run code of the file ({needed[1] if needed else 'a pickled object'}). Only "
            "tensors and plain values are read. If you trust the file, load it with the code it came from and save its "
            "state_dict alone."
        ) from error
    except _Compressed as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a damaged pickle has torch's reader raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path}: damaged or cut off ({reason[:200]}); download it again.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict.")
    return dict(content)


def check_tensors(where: str | Path, tensors: Mapping[Any, Any]) -> None:
    """Raise ValueError unless all keys are names, and all tensors dense and finite."""
    strange = [key for key in tensors if not isinstance(key, str)]
    if strange:
        raise ValueError(f"{where}: not a state dict: the key {strange[0]!r} is no name.")
    values = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    for name, value in values.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{where}: {name} is no dense tensor; save the state dict of an ordinary model.")
    bad = [name for name, value in values.items() if not _is_finite(value)]
    if bad:
        raise ValueError(
            f"{where}: NaN or infinity in {len(bad)} of {len(values)} tensors, such as {bad[0]}; the training behind "
            "it has diverged, or the file is damaged. Take an earlier checkpoint, or download it again."
        )


def check_timm_file(path: str | Path, architecture: str, **options: Any) -> None:
    """Whether a file has weights for every layer of a timm network; timm itself leaves what it lacks at random.

    A copy of its weights, all NaN, is loaded: what stays finite was not in the file. So timm's own renaming and
    reshaping of older files needs no repetition here.

    Args:
        path: a file of timm weights, see `read_weights`.
        architecture: timm's name of the network.
        options: of `timm.create_model`.

    Raises:
        ValueError: the file cannot be read, or its weights do not fit, are not numbers, or do not suffice.
    """
    content = read_weights(path)
    wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    check_tensors(path, state)
    numbers = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not numbers:
        raise ValueError(f"{path}: holds no tensors; give a file of timm weights of {architecture}.")
    # whole numbers cannot be NaN: they count as missing
    marked = {n: torch.full_like(v, torch.nan) if v.is_floating_point() else v for n, v in numbers.items()}
    try:
        network = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"state_dict": clean_state_dict(marked)}, **options
        )
    except Exception as error:  # timm's loaders raise anything for names and shapes that they do not expect
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path}: the weights do not fit the backbone {architecture}: {reason}") from error
    wanted: dict[str, Tensor] = dict(network.named_parameters())
    wanted |= {name: value for name, value in network.named_buffers() if "running_" in name}
    missing = [name for name, value in wanted.items() if _is_finite(value)]
    if missing:
        raise ValueError(
            f"{path}: the weights do not fit the backbone {architecture}: {len(missing)} of its {len(wanted)} tensors "
            f"are not in the file, or not as floating point numbers, such as {missing[0]}; give a file of timm weights "
            "of this architecture."
        )


class _Compressed(Exception):
    pass


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing, so what a file says it holds cannot be more than it is."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > path.stat().st_size:
        raise _Compressed(
            f"{path}: a compressed archive that unfolds to {size:,} bytes, which torch does not write; unpack it, or "
            "download the checkpoint again."
        )


def _is_finite(value: Tensor) -> bool:
    return bool((value if value.is_complex() else value.float()).isfinite().all())
