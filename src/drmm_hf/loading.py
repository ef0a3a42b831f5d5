"""Loads a trained detector for use, with one clear error where the folder holds something else."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from .configuration_drmm import DrmmConfig
from .image_processing_drmm import DrmmImageProcessor
from .modeling_drmm import DrmmForObjectDetection
from .weight_files import check_tensors


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
    _check_folder(model)
    _check_model_type(model)
    try:
        DrmmConfig.from_pretrained(model)
    except Exception as error:  # transformers raises whatever an odd value leads to
        raise ValueError(f"{Path(model) / 'config.json'}: {_last_line(error)}") from error
    try:
        processor = DrmmImageProcessor.from_pretrained(model)
    except Exception as error:
        raise ValueError(f"{model}: preprocessor_config.json cannot be used: {_first_line(error)}") from error
    return _load_weights(model, options), processor


def choose_device(device: str | torch.device | None) -> torch.device:
    """The named device, or CUDA where there is one and the CPU elsewhere; ValueError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{device}' cannot be used here: {_first_line(error)}") from error
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


def _load_weights(model: str, options: Mapping[str, Any]) -> DrmmForObjectDetection:
    # A misfit is an error here, whose message names it; transformers prints a table of several lines.
    forced = {**options, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        detector, info = DrmmForObjectDetection.from_pretrained(model, **forced)
    except Exception as error:  # timm asserts, transformers raises KeyError for what a configuration asks for
        reason = _first_line(error).removeprefix(f"{model}: ")[:500]
        raise ValueError(f"{model}: the model cannot be loaded: {reason}") from error
    # transformers only warns of missing ones and leaves random weights, which would be evaluated as if they were
    # trained; of what is left over it says nothing, as when config.json has fewer stages.
    same = "weights and config.json must come from the same save_pretrained"
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{model}: the weights lack {len(missing)} tensors that config.json asks for, such as {missing[0]}; {same}"
        )
    if not options.get("ignore_mismatched_sizes"):
        if misfits := sorted(info["mismatched_keys"]):
            name, found, wanted = misfits[0]
            raise ValueError(
                f"{model}: {len(misfits)} tensors of the weights have another shape than config.json asks for, such as "
                f"{name}, which is {tuple(found)}, not {tuple(wanted)}; {same}"
            )
        if extra := sorted(info["unexpected_keys"]):
            raise ValueError(
                f"{model}: the weights hold {len(extra)} tensors that config.json does not ask for, such as "
                f"{extra[0]}; {same}"
            )
    state = detector.state_dict()
    _check_kinds(model, state)
    check_tensors(model, state)
    return detector


def _check_kinds(model: str, state: Mapping[str, Tensor]) -> None:
    """transformers takes whole numbers where the model has fractions."""
    whole = Path(model) / "model.safetensors"  # comes before the parts, and other files are not read
    for path in [whole] if whole.is_file() else sorted(Path(model).glob("model-*-of-*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if name in state and state[name].is_floating_point() and "F" not in kind:  # F32, BF16, F8_E4M3, ...
                    raise ValueError(f"{path}: {name} has numbers of type {kind}, not floating point; save it again")


def _check_folder(model: str) -> None:
    folder = Path(model)
    if folder.is_dir():
        for name in ("config.json", "preprocessor_config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: no {name} in this folder; give one that save_pretrained wrote")
        if not any(folder.glob("*.safetensors*")):
            raise FileNotFoundError(f"{folder}: no weights (model.safetensors) in this folder")
    elif folder.is_file():
        raise ValueError(f"{folder}: is a file; give the folder that save_pretrained wrote")
    elif folder.is_absolute() or model.count("/") != 1 or model.startswith((".", "~")):
        raise FileNotFoundError(f"{model}: no such model folder")


def _check_model_type(model: str) -> None:
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(model)[0]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if Path(model).is_dir():
            raise ValueError(f"{Path(model) / 'config.json'}: not valid JSON; {_json_problem(model)}") from error
        raise FileNotFoundError(
            f"{model}: no such model folder, and not found on the Hub: {_first_line(error)}"
        ) from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != DrmmConfig.model_type:
        raise ValueError(
            f"{Path(model) / 'config.json'}: field model_type is {found!r}, expected "
            f"{DrmmConfig.model_type!r}; give the folder of a D-RMM detector"
        )


def _json_problem(model: str) -> str:
    try:
        content = json.loads((Path(model) / "config.json").read_bytes())
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError:
        return "it is not text"
    except RecursionError:
        return "it is nested too deeply"
    return "it cannot be read" if isinstance(content, dict) else f"it holds a {type(content).__name__}, not an object"


def _last_line(error: Exception) -> str:
    # The strict configuration classes put the cause in the last line.
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
