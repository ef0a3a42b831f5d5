"""Loads a trained detector for use, with one clear error where the folder holds something else."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from .backbone import check_tensors
from .configuration_drmm import DrmmConfig
from .configuration_drmm_detr import DrmmDetrConfig
from .detectors import adapter_for
from .files import read_json
from .image_processing_drmm import DrmmImageProcessor
from .modeling_drmm import DrmmForObjectDetection
from .modeling_drmm_detr import DrmmDetrForObjectDetection

logger = logging.getLogger(__name__)

_OWN = (DrmmConfig.model_type, DrmmDetrConfig.model_type)


def load_detector(model: str, device: str | torch.device | None = None) -> tuple[Any, Any]:
    """A trained model in eval mode, and its image processor.

    Args:
        model: folder written by `save_pretrained`, or a Hub id.
        device: where to put the model; CUDA if there is one, otherwise the CPU, unless given.

    Raises:
        FileNotFoundError: no such folder or Hub model, or a file is missing from it.
        ValueError: the checkpoint is not a complete detector, or the device cannot be used.
    """
    target = choose_device(device)
    detector, processor = load_checkpoint(model)
    return detector.eval().to(target), processor


def load_checkpoint(model: str, **options: Any) -> tuple[Any, Any]:
    """Model and image processor of a checkpoint, with the errors of `load_detector`.

    Args:
        model: folder written by `save_pretrained`, or a Hub id: of D-RMM, or of any object detector of transformers.
        options: passed to `from_pretrained`: with `id2label`, layers that do not fit begin anew.
    """
    config = model_config(model)
    with _naming(f"{model}: preprocessor_config.json cannot be used"):
        kind = DrmmImageProcessor if config.model_type == DrmmConfig.model_type else AutoImageProcessor
        processor = kind.from_pretrained(model)
    # than the checkpoint has
    more_classes = len(options["id2label"]) - config.num_labels if "id2label" in options else None
    # A misfit is told of below; transformers prints a table of several lines.
    forced = {**options, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with _naming(f"{model}: the model cannot be loaded"), _without_report():
        detector, info = AutoModelForObjectDetection.from_pretrained(model, **forced)
    if config.model_type not in _OWN:  # stock checkpoints may have more than they need
        info = {**info, "unexpected_keys": []}
    _check_weights(model, detector.state_dict(), info, more_classes)
    return detector, processor


def load_drmm(model: str) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """As `load_checkpoint`, where only the model of this package's own decoders will do."""
    detector, processor = load_checkpoint(model)
    if not isinstance(detector, DrmmForObjectDetection):
        raise ValueError(
            f"{model}: is a {type(detector).__name__}, but only Sparse R-CNN's and AdaMixer's decoder can be taken here"
        )
    return detector, processor


def load_to_train(
    model: str, id2label: Mapping[int, str], label2id: Mapping[str, int], **fields: Any
) -> tuple[Any, Any]:
    """As `load_checkpoint`, with these classes and fields of the configuration; D-RMM is put on a stock detector."""
    config = model_config(model)
    before = label_names(config)
    if config.model_type in _OWN:
        loaded = load_checkpoint(model, id2label=id2label, label2id=label2id, **fields)
    else:
        with _naming(f"{model}: the model cannot be loaded"), _without_report():
            adapter_for(config.model_type)  # before anything is loaded
            processor = AutoImageProcessor.from_pretrained(model)
            detector = DrmmDetrForObjectDetection.from_detector(model, dict(id2label), dict(label2id), **fields)
        loaded = detector, processor
    if len(before) != len(id2label):
        logger.warning("%s: class layer: begins anew, for %d classes in place of %d", model, len(id2label), len(before))
    elif before != dict(id2label):
        other = next(label for label in before if before[label] != id2label[label])
        text = "%s: class layer: kept, but it has learned other classes: label %d was %r and is %r"
        logger.warning(text, model, other, before[other], id2label[other])
    return loaded


def model_config(model: str) -> Any:
    """Configuration of a checkpoint, whose weights are not loaded, with the errors of `load_detector`."""
    config_file = Path(model) / "config.json"
    content = _read_config(model)
    found = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(found, str) or found not in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        raise ValueError(
            f"{config_file}: field model_type is {found!r}, which is no object detector of transformers; give the "
            "folder of a D-RMM detector, or of one of transformers"
        )
    with _naming(str(config_file)):
        return AutoConfig.from_pretrained(model)


def read_config(folder: Path, types: Sequence[str] = _OWN) -> dict[str, Any]:
    """Content of the config.json of a checkpoint of one of the model types; ValueError for another one."""
    config = read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in types:
        raise ValueError(f"{folder / 'config.json'}: field model_type is {found!r}; this takes {' or '.join(types)}")
    return config


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


def label_names(model: Any) -> dict[int, str]:
    """Name of each label of a model, of its configuration, or of a folder or Hub id."""
    config = model_config(model) if isinstance(model, str) else getattr(model, "config", model)
    return {int(label): name for label, name in (config.id2label or {}).items()}


def predicted(model: Any) -> frozenset[str]:
    """What a model predicts besides boxes and scores: "scales" of the edges, "objectness" as a factor of the scores."""
    config = model.config
    if config.model_type == DrmmDetrConfig.model_type:
        return frozenset({"scales"} if config.objective != "native" else ())
    return frozenset({"scales", "objectness"} if getattr(config, "head", None) == "mixture" else ())


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
                inside = folder / "model"
                hint = f"did you mean {inside}?" if (inside / name).is_file() else "give one that save_pretrained wrote"
                raise FileNotFoundError(f"{folder}: no {name} in this folder; {hint}")
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


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' table of weights that do not fit: misfits are an error, or meant, as of other classes.

    It is shown where weights are missing.
    """

    def shown(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "LOAD REPORT" not in text or "MISSING" in text

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(shown)
    try:
        yield
    finally:
        source.removeFilter(shown)


def _check_weights(
    model: str, state: Mapping[str, Tensor], info: Mapping[str, Any], more_classes: int | None = None
) -> None:
    """Refuse weights that transformers takes with a warning at most, and which would pass for a trained model.

    Args:
        more_classes: where the classes may be others: how many more than in the checkpoint.
    """
    problems = {"lack": info["missing_keys"]}
    if more_classes is None:
        problems["have in another shape"] = {name for name, *_ in info["mismatched_keys"]}
        problems["have beside"] = info["unexpected_keys"]
    elif new := [
        name
        for name, old, now in info["mismatched_keys"]
        if not more_classes or (now[0] - old[0], now[1:]) != (more_classes, old[1:])
    ]:
        text = "%s: %d of its %d tensors do not fit the fields given with --config and begin anew, such as %s"
        logger.warning(text, model, len(new), len(state), min(new))
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
