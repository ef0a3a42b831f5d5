"""Loads a trained detector for use, with one clear error where the folder holds something else."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from .backbone import check_tensors
from .configuration_drmm import DrmmConfig
from .files import read_json
from .image_processing_drmm import DrmmImageProcessor
from .modeling_drmm import DrmmForObjectDetection


def load_detector(
    model: str, device: str | torch.device | None = None
) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """A trained model in eval mode, and its image processor.

    Args:
        model: folder written by `save_pretrained`, or a Hub id.
        device: where to put the model; CUDA if there is one, otherwise the CPU, unless given.

    Raises:
        FileNotFoundError: no such folder or Hub model, or a file is missing from it.
        ValueError: the checkpoint is not a complete D-RMM, or the device cannot be used.
    """
    target = choose_device(device)
    detector, processor = load_checkpoint(model)
    return detector.eval().to(target), processor


def load_checkpoint(model: str, **options: Any) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """Model and image processor of a checkpoint, with the errors of `load_detector`.

    Args:
        model: folder written by `save_pretrained`, or a Hub id.
        options: passed to `DrmmForObjectDetection.from_pretrained`, such as `id2label` with
            `ignore_mismatched_sizes=True` for other classes.
    """
    config_file = Path(model) / "config.json"
    config = _read_config(model)
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != DrmmConfig.model_type:
        raise ValueError(
            f"{config_file}: field model_type is {found!r}, not 'drmm'; give the folder of a D-RMM detector"
        )
    with _naming(str(config_file)):
        DrmmConfig.from_pretrained(model)
    with _naming(f"{model}: preprocessor_config.json cannot be used"):
        processor = DrmmImageProcessor.from_pretrained(model)
    # A misfit is an error below, whose message names it; transformers prints a table of several lines.
    forced = {**options, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _naming(f"{model}: the model cannot be loaded"):
        detector, info = DrmmForObjectDetection.from_pretrained(model, **forced)
    _check_weights(model, detector.state_dict(), info, other_classes=bool(options.get("ignore_mismatched_sizes")))
    return detector, processor


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device, or CUDA where there is one and the CPU elsewhere; ValueError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error
    return chosen


def weights_written(model: str) -> str | None:
    """When the weights of a checkpoint folder were written, in UTC; None for a Hub id.

    A later training may write other weights to the same folder: results of the earlier ones are not theirs.
    """
    times = [file.stat().st_mtime for file in sorted(Path(model).glob("*.safetensors"))]
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None


def label_names(model: DrmmForObjectDetection) -> dict[int, str]:
    """Name of each label of a model."""
    return {int(label): name for label, name in (model.config.id2label or {}).items()}


def _read_config(model: str) -> Any:
    folder = Path(model)
    if folder.is_dir():
        for name in ("config.json", "preprocessor_config.json", "*.safetensors*"):
            if not any(folder.glob(name)):
                if (folder / "adapter_config.json").is_file():
                    raise FileNotFoundError(
                        f"{folder}: holds an adapter (adapter_config.json), not a whole model; load it with peft, "
                        "merge it (merge_and_unload) and save the model and its image processor"
                    )
                raise FileNotFoundError(f"{folder}: no {name} in this folder; give one that save_pretrained wrote")
        return read_json(folder / "config.json")
    if folder.is_file():
        raise ValueError(f"{folder}: is a file; give the folder that save_pretrained wrote")
    if folder.is_absolute() or model.count("/") != 1 or model.startswith((".", "~")):
        raise FileNotFoundError(f"{model}: no such model folder")
    try:
        return PreTrainedConfig.get_config_dict(model)[0]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{model}: no such model folder, and not found on the Hub: {error}") from error


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """transformers, timm and safetensors raise whatever an odd value leads to: one error that says where."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())[:500] or type(error).__name__}") from error


def _check_weights(model: str, state: Mapping[str, Tensor], info: Mapping[str, Any], other_classes: bool) -> None:
    """Refuse weights that transformers takes with a warning at most, and which would pass for a trained model."""
    problems = {"lack": info["missing_keys"]}
    if not other_classes:
        problems["have in another shape"] = {name for name, *_ in info["mismatched_keys"]}
        problems["have beside"] = info["unexpected_keys"]
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"{model}: the weights {problem} what config.json asks for: {len(names)} tensors, such as "
                f"{min(names)}; weights and config.json must come from the same save_pretrained"
            )
    whole = Path(model) / "model.safetensors"  # comes before the parts, and other files are not read
    for path in [whole] if whole.is_file() else sorted(Path(model).glob("model-*-of-*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if name in state and state[name].is_floating_point() and "F" not in kind:  # F32, BF16, F8_E4M3, ...
                    raise ValueError(f"{path}: {name} has numbers of type {kind}, not floating point; save it again")
    check_tensors(model, state)
