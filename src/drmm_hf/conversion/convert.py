"""Released checkpoints to this package and back: every key used or explained, every shape checked, results verified."""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..backbone import check_tensors, read_weights
from ..configuration_drmm import DrmmConfig
from ..files import writing
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import load_drmm
from ..matching import SetPrediction
from ..mixture import MixtureParameters
from ..modeling_drmm import DrmmForObjectDetection
from ..presets import PRESETS, processor_fields
from .names import released_source

_HEAD = "roi_head.bbox_head."
_NEEDED = (f"{_HEAD}0.fc_cls.weight", f"{_HEAD}0.fc_reg.weight", "rpn_head.init_proposal_bboxes.weight")
_STATE_DICTS = {
    "raw": ("state_dict", "model", "model_state_dict"),
    "ema": ("ema_state_dict", "state_dict_ema", "model_ema"),
}
_LISTED = 10
# last layers of a head: their outputs mean something else under a mixture
_OUTPUT_LAYERS = ("classifier", "objectness", "box")
# what rounding in float32 leaves of six stages: the released code's own distance from float64 is about a tenth
_TOLERANCES = {"loc": 1e-3, "sc": 1e-4, "fg": 1e-5, "prob": 1e-5, "cls_score": 5e-4, "decode_bbox_pred": 2e-2}


class ReleasedFile(NamedTuple):
    """A state dict as released: `tensors` by key, without a `module.` prefix; class names by label, None if the file
    does not say; and the keys left out on purpose, with the reason.
    """

    path: Path
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] | None
    skipped: dict[str, str]


class ConversionReport(NamedTuple):
    """What became of the keys of a checkpoint: how many released tensors went into the model, and, with the reasons,
    the released keys that were skipped and our tensors that were added because the file does not have them.
    """

    used: int
    skipped: dict[str, str]
    added: dict[str, str]


class Converted(NamedTuple):
    """Result of `convert_checkpoint`: `model`, the image `processor` of its preset, and the `report` on the keys."""

    model: DrmmForObjectDetection
    processor: DrmmImageProcessor
    report: ConversionReport


class Deviation(NamedTuple):
    """Largest absolute difference of one quantity of one stage from its golden value, and what is allowed."""

    name: str
    value: float
    tolerance: float

    @property
    def within(self) -> bool:
        return self.value <= self.tolerance  # False for NaN


def read_released_file(path: str | Path, weights: str = "raw") -> ReleasedFile:
    """Read an mmdet checkpoint (`.pth` with `state_dict` and `meta`), a bare state dict, or safetensors, without
    running code of the file.

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
    if weights not in _STATE_DICTS:
        raise ValueError(f"weights={weights!r}; choose 'raw' or 'ema'.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint (.pth, .pt or .safetensors).")
    content = read_weights(path)
    wrappers = [name for kind in (weights, "raw") for name in _STATE_DICTS[kind]]
    wrapper = next((name for name in wrappers if isinstance(content.get(name), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    if wrapper is None and not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: no state dict in it; its entries are {', '.join(map(repr, list(content)[:10]))}.")
    check_tensors(path, state)
    tensors = {re.sub(r"^(module\.)+", "", key): value for key, value in state.items() if isinstance(value, Tensor)}
    skipped = {key: "not a tensor" for key, value in state.items() if not isinstance(value, Tensor)}
    buffers = {key: tensors.pop(key) for key in list(tensors) if key.startswith("ema_")}
    if weights == "ema" and wrapper not in _STATE_DICTS["ema"]:
        if not buffers:
            raise ValueError(f"{path}: holds no moving average; use weights='raw'.")
        tensors = {key: buffers.get("ema_" + key.replace(".", "_"), value) for key, value in tensors.items()}
    else:
        skipped |= dict.fromkeys(buffers, "the other weights of a moving average; weights='ema' takes them")
    meta = content.get("meta")
    classes = (meta.get("CLASSES") or meta.get("classes")) if isinstance(meta, Mapping) else None
    return ReleasedFile(path, tensors, tuple(map(str, classes)) if classes else None, skipped)


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
    config = _config_of_file(released, preset, **overrides)
    with torch.device("meta"):  # so that a file that does not fit costs no memory
        model = DrmmForObjectDetection(config)
    state, report = convert_state_dict(released.tensors, model, str(released.path))
    model = DrmmForObjectDetection(config)
    model.load_state_dict(state)
    report = report._replace(skipped=released.skipped)
    return Converted(model.eval(), DrmmImageProcessor(**processor_fields(preset)), report)


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
        tensor = released[source.name]
        if source.part is not None:
            tensor = tensor[:1] if source.part == "first" else tensor[1:]
        if tensor.shape != target.shape:
            misfits.append(f"{source.name} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        if target.is_floating_point() and not tensor.is_floating_point():
            odd.append(f"{source.name} is {tensor.dtype}, not {target.dtype}")
        state[ours] = tensor.to(target.dtype).clone()
    findings = {
        "keys missing": missing,
        "unexpected keys": [key for key in released if key not in used],
        "tensors of another shape": misfits,
        "tensors of another kind of numbers": odd,
    }
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', ...' if len(keys) > _LISTED else ''}"
        for what, keys in findings.items()
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


def write_released_file(model: DrmmForObjectDetection, path: Path) -> int:
    """Write the weights as a `.pth` file as mmdet does, under the released names, and return how many there are."""
    if path.suffix != ".pth":
        raise ValueError(f"{path}: give a .pth file to write")
    state = released_state_dict(model)
    classes = list((model.config.id2label or {}).values())  # in the order of the labels
    # In memory first: torch's own writer ends the process when the disk is full. Not as `getbuffer()`, whose garbage
    # collection ends that of Python 3.12.1 (fixed in 3.12.2).
    content = io.BytesIO()
    torch.save({"meta": {"CLASSES": classes}, "state_dict": state}, content)
    with writing(path):
        path.write_bytes(content.getvalue())
    return len(state)


@torch.no_grad()
def warm_start(model: DrmmForObjectDetection, checkpoint: str) -> list[str]:
    """Copy all weights of a checkpoint of this package but the output layers of the heads into `model`.

    Args:
        model: freshly initialised; its output layers keep that.
        checkpoint: folder or Hub id, such as `drmm convert` writes; a Sparse R-CNN, an AdaMixer or a D-RMM.

    Returns:
        The names of the tensors of `model` that were not copied.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be loaded, or is of another decoder, backbone or size.
    """
    source, _ = load_drmm(checkpoint)
    if source.config.decoder != model.config.decoder:
        raise ValueError(
            f"{checkpoint} has decoder={source.config.decoder!r}, the model to train {model.config.decoder!r}; choose "
            "a preset of the same decoder."
        )
    target, weights = model.state_dict(), source.state_dict()
    kept = [name for name in target if name.startswith("model.heads.") and name.split(".")[3] in _OUTPUT_LAYERS]
    wanted = [name for name in target if name not in kept]
    misfits = [name for name in wanted if name not in weights or weights[name].shape != target[name].shape]
    if misfits:
        raise ValueError(
            f"{checkpoint} does not fit the model to train: {len(misfits)} tensors are missing or of another shape, "
            f"such as {', '.join(misfits[:3])}. Choose the preset of the same backbone, widths and numbers of stages "
            "and proposals."
        )
    for name in wanted:
        target[name].copy_(weights[name])
    return kept


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
def verify_golden(model: DrmmForObjectDetection, path: str | Path) -> list[Deviation]:
    """Compare every stage of `model` with golden values in a safetensors file, which the released code computed.

    Their input is `reference_input()`, made from a name, so that a file of some hundred kilobytes is enough. Keys are
    `A/stage<s>/<quantity>`: `loc`, `sc` (K, 4), `fg` (K) and `prob` (K, C) of D-RMM, `cls_score` (K, C) and
    `decode_bbox_pred` (K, 4) of the baselines, with or without a batch axis of 1. `A/stage<s>/rows`, if there, says
    which of the K rows the file keeps, `A/classes` which of the C columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no golden values of this model's head, or not of its number of stages or proposals.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give a safetensors file of golden values.")
    golden = read_weights(path)
    stages = model.eval().model(reference_input().unsqueeze(0)).stages
    deviations = []
    for s, stage in enumerate(stages):
        for name, value in _quantities(stage).items():
            expected = golden.get(f"A/stage{s}/{name}")
            if expected is None:
                continue
            if f"A/stage{s}/rows" in golden:
                value = value[golden[f"A/stage{s}/rows"]]
            if "A/classes" in golden and name in ("prob", "cls_score"):
                value = value[:, golden["A/classes"]]
            if value.numel() != expected.numel():
                raise ValueError(
                    f"{path}: A/stage{s}/{name} has shape {tuple(expected.shape)}, the model gives "
                    f"{tuple(value.shape)}; these are golden values of another model."
                )
            difference = (value - expected.reshape(value.shape)).abs().max().item()
            deviations.append(Deviation(f"stage {s + 1} {name}", difference, _TOLERANCES[name]))
    num_stages = len({key.split("/")[1] for key in golden if re.match(r"A/stage\d+/", key)})
    if not deviations or num_stages != len(stages):
        raise ValueError(
            f"{path}: no golden values of a {model.config.head!r} head with {len(stages)} stages in it (it has "
            f"{num_stages} stages)."
        )
    return deviations


def _quantities(stage: MixtureParameters | SetPrediction) -> dict[str, Tensor]:
    """What a stage gives for the only image, by the released code's names."""
    if isinstance(stage, SetPrediction):
        return {"cls_score": stage.class_logits[0], "decode_bbox_pred": stage.locations[0]}
    return {
        "loc": stage.locations[0],
        "sc": stage.scales[0],
        "fg": stage.objectness_logits[0].sigmoid(),
        "prob": stage.class_logits[0].softmax(dim=-1),
    }


def _config_of_file(released: ReleasedFile, preset: str, **overrides: Any) -> DrmmConfig:
    """The configuration of `preset` with the sizes that the file has; ValueError if it is of another kind."""
    config = DrmmConfig.from_preset(preset)
    tensors, path = released.tensors, released.path
    absent = [key for key in _NEEDED if key not in tensors]
    if absent:
        raise ValueError(
            f"{path}: no mmdet-style D-RMM, Sparse R-CNN or AdaMixer checkpoint: {', '.join(absent)} missing. Its keys "
            f"begin with {', '.join(sorted(tensors)[:3]) or 'nothing'}."
        )
    classifier, regressor, proposals = (tensors[key] for key in _NEEDED)
    decoder = "adamixer" if f"{_HEAD}0.iof_tau" in tensors else "sparse_rcnn"
    head = "mixture" if len(regressor) == 8 else "set_prediction"  # locations and scales, or boxes alone
    if (decoder, head) != (config.decoder, config.head):
        fitting = [
            name
            for name, fields in PRESETS.items()
            if (fields.get("decoder", "sparse_rcnn"), fields.get("head", "mixture")) == (decoder, head)
        ]
        raise ValueError(
            f"{path}: holds a {_describe(decoder, head)}, but the preset {preset!r} is a "
            f"{_describe(config.decoder, config.head)}. Presets of its kind: {', '.join(fitting)}."
        )
    stages = {key.removeprefix(_HEAD).split(".")[0] for key in tensors if key.startswith(_HEAD)}
    sizes: dict[str, Any] = {"num_stages": len(stages), "num_proposals": len(proposals)}
    sizes["id2label"] = _class_names(released.classes, len(classifier) - (head == "mixture"))
    return DrmmConfig.from_preset(preset, **{**sizes, **overrides})


def _describe(decoder: str, head: str) -> str:
    name = "AdaMixer" if decoder == "adamixer" else "Sparse R-CNN"
    return f"D-RMM on {name}" if head == "mixture" else f"{name} (set prediction)"


def _class_names(classes: tuple[str, ...] | None, num_labels: int) -> dict[int, str]:
    if classes is not None and len(classes) == num_labels:
        return dict(enumerate(classes))
    if num_labels == 80:
        names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return dict(enumerate(name for name in names if name not in ("__background__", "N/A")))
    return {label: f"class_{label}" for label in range(num_labels)}
