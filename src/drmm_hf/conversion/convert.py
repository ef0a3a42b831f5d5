"""Released checkpoints to this package and back: every key used or explained, every shape checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration_drmm import DrmmConfig
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from ..presets import PRESETS, processor_fields
from .files import ReleasedFile, read_released_file
from .names import Source, released_source

_HEAD = "roi_head.bbox_head."
_LISTED = 10


@dataclass(frozen=True)
class ConversionReport:
    """What became of the keys of a checkpoint.

    Attributes:
        used: number of released tensors that went into the model.
        skipped: released keys that were left out, with the reason.
        added: our tensors that the file does not have, with the reason.
    """

    used: int
    skipped: dict[str, str] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Converted:
    """Result of `convert_checkpoint`: `model`, the image `processor` of its preset, and the `report` on the keys."""

    model: DrmmForObjectDetection
    processor: DrmmImageProcessor
    report: ConversionReport


def convert_checkpoint(path: str | Path, preset: str, weights: str = "raw", **overrides: Any) -> Converted:
    """Load a released checkpoint as a model of `preset`.

    Args:
        path: a checkpoint of the authors' D-RMM, of mmdet's Sparse R-CNN or of AdaMixer, see `read_released_file`.
        preset: the configuration to build; number of classes, proposals and stages are taken from the file.
        weights: "raw" or "ema".
        overrides: further fields of `DrmmConfig`, such as `id2label`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read safely, is of another architecture, lacks keys, has keys too many, or holds
            tensors of another shape; the message lists at most ten, with the count.
    """
    released = read_released_file(path, weights)
    config = config_of_file(released, preset, **overrides)
    with torch.device("meta"):
        model = DrmmForObjectDetection(config)
    state, report = convert_state_dict(released.tensors, model, str(released.path))
    model = DrmmForObjectDetection(config)
    model.load_state_dict(state)
    report = ConversionReport(report.used, {**released.skipped, **report.skipped}, report.added)
    return Converted(model.eval(), DrmmImageProcessor(**processor_fields(preset)), report)


def config_of_file(released: ReleasedFile, preset: str, **overrides: Any) -> DrmmConfig:
    """The configuration of `preset` with the sizes that the file has.

    Raises:
        ValueError: the file is no released detector, or of another decoder or head than the preset.
    """
    config = DrmmConfig.from_preset(preset)
    tensors, path = released.tensors, released.path
    stages = {key.removeprefix(_HEAD).split(".")[0] for key in tensors if key.startswith(_HEAD)}
    needed = (f"{_HEAD}0.fc_cls.weight", f"{_HEAD}0.fc_reg.weight", "rpn_head.init_proposal_bboxes.weight")
    absent = [key for key in needed if key not in tensors]
    if absent:
        raise ValueError(
            f"{path}: no mmdet-style D-RMM, Sparse R-CNN or AdaMixer checkpoint: {', '.join(absent)} missing. Its keys "
            f"begin with {', '.join(sorted(tensors)[:3]) or 'nothing'}."
        )
    decoder = "adamixer" if f"{_HEAD}0.iof_tau" in tensors else "sparse_rcnn"
    head = "mixture" if len(tensors[needed[1]]) == 8 else "set_prediction"
    if (decoder, head) != (config.decoder, config.head):
        fitting = [name for name, fields in PRESETS.items() if _kind(fields) == (decoder, head)]
        raise ValueError(
            f"{path}: holds a {_describe(decoder, head)}, but the preset {preset!r} is a "
            f"{_describe(config.decoder, config.head)}. Presets of its kind: {', '.join(fitting)}."
        )
    num_labels = len(tensors[needed[0]]) - (head == "mixture")
    labels = {} if "id2label" in overrides else {"id2label": _class_names(released, num_labels)}
    sizes = {"num_stages": len(stages), "num_proposals": len(tensors[needed[2]])}
    return DrmmConfig.from_preset(preset, **{**labels, **sizes, **overrides})


def convert_state_dict(
    released: Mapping[str, Tensor], model: DrmmForObjectDetection, where: str = "state dict"
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Tensors by released names to the state dict of `model` (which may be on the meta device).

    Args:
        released: tensors as `read_released_file` gives them.
        model: says which tensors are wanted, and of which shapes; it is not changed.
        where: what the messages of errors call the source.

    Raises:
        ValueError: keys are missing, left over, or of another shape.
    """
    state: dict[str, Tensor] = {}
    missing, misfits, odd, used, added = [], [], [], set(), {}
    for ours, target in model.state_dict().items():
        source = released_source(ours, model.config.decoder, model.config.head)
        if source.name not in released:
            if ours.endswith("num_batches_tracked"):  # old files lack it, and nothing reads it
                state[ours], added[ours] = torch.zeros((), dtype=torch.long), "counter, not in the file"
            else:
                missing.append(source.name)
            continue
        used.add(source.name)
        tensor = _take(released[source.name], source)
        if tensor.shape != target.shape:
            misfits.append(f"{source.name} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        if target.is_floating_point() and not tensor.is_floating_point():
            odd.append(f"{source.name} is {tensor.dtype}, not {target.dtype}")
        state[ours] = tensor.to(target.dtype).clone()
    extra = [key for key in released if key not in used]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', ...' if len(keys) > _LISTED else ''}"
        for what, keys in (
            ("keys missing", missing),
            ("unexpected keys", extra),
            ("tensors of another shape", misfits),
            ("tensors of another kind of numbers", odd),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit the configuration (is it of another backbone or depth?). " + ". ".join(problems)
        )
    return state, ConversionReport(len(used), {}, added)


def released_state_dict(model: DrmmForObjectDetection) -> dict[str, Tensor]:
    """The weights of `model` by the released names: the inverse of `convert_state_dict`, to the bit."""
    parts: dict[str, dict[str | None, Tensor]] = {}
    for ours, tensor in model.state_dict().items():
        source = released_source(ours, model.config.decoder, model.config.head)
        parts.setdefault(source.name, {})[source.part] = tensor.detach().clone()
    return {
        name: pieces[None] if None in pieces else torch.cat((pieces["first"], pieces["rest"]))
        for name, pieces in parts.items()
    }


def _take(tensor: Tensor, source: Source) -> Tensor:
    if source.part is None:
        return tensor
    return tensor[:1] if source.part == "first" else tensor[1:]


def _kind(fields: Mapping[str, Any]) -> tuple[str, str]:
    return fields.get("decoder", "sparse_rcnn"), fields.get("head", "mixture")


def _describe(decoder: str, head: str) -> str:
    name = "AdaMixer" if decoder == "adamixer" else "Sparse R-CNN"
    return f"D-RMM on {name}" if head == "mixture" else f"{name} (set prediction)"


def _class_names(released: ReleasedFile, num_labels: int) -> dict[int, str]:
    if released.classes is not None and len(released.classes) == num_labels:
        return dict(enumerate(released.classes))
    if num_labels == 80:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return dict(enumerate(name for name in names if name not in ("__background__", "N/A")))
    return {label: f"class_{label}" for label in range(num_labels)}
