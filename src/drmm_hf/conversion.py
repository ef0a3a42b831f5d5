"""Released checkpoints of D-RMM (mmdet), mmdet's Sparse R-CNN and AdaMixer to this package and back.

Every key is used or explained, every shape checked. One table of names serves both directions. The released matrix
`fc_cls` of D-RMM holds the objectness in its first row and the classes below; here they are two layers, so that the
objectness survives fine-tuning on other classes.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from .backbone import check_tensors, read_weights
from .configuration_drmm import DrmmConfig
from .files import writing
from .image_processing_drmm import DrmmImageProcessor
from .loading import load_drmm
from .modeling_drmm import DrmmForObjectDetection
from .presets import PRESETS, processor_fields

_HEAD = "roi_head.bbox_head"
_NEEDED = (f"{_HEAD}.0.fc_cls.weight", f"{_HEAD}.0.fc_reg.weight", "rpn_head.init_proposal_bboxes.weight")
_STATE_DICTS = {
    "raw": ("state_dict", "model", "model_state_dict"),
    "ema": ("ema_state_dict", "state_dict_ema", "model_ema"),
}
_LISTED = 10
# last layers of a head: their outputs mean something else under a mixture
_OUTPUT_LAYERS = ("classifier", "objectness", "box")
_RULES = [  # what ours begin with, and what the released names begin with in its place
    (r"backbone\.model\._backbone\.", "backbone."),
    (r"proposals\.boxes$", "rpn_head.init_proposal_bboxes.weight"),
    (r"proposals\.features$", "rpn_head.init_{features}_features.weight"),
    (r"pyramid\.laterals\.(\d+)\.", r"neck.lateral_convs.\1.conv."),
    (r"pyramid\.outputs\.(\d+)\.", r"neck.fpn_convs.\1.conv."),
    (r"pyramid\.norm\.", "neck.gn_out."),
    (r"heads\.(\d+)\.box\.", rf"{_HEAD}.\1.fc_reg."),
    (r"heads\.(\d+)\.(?:objectness|classifier)\.", rf"{_HEAD}.\1.fc_cls."),
]
_STAGE = {
    "self_attn.qkv_proj.": "attention.attn.in_proj_",
    "self_attn.o_proj.": "attention.attn.out_proj.",
    "self_attn_layer_norm.": "attention_norm.",
    "dynamic_conv.dynamic_layer.": "instance_interactive_conv.dynamic_layer.",
    "dynamic_conv.norm_in.": "instance_interactive_conv.norm_in.",
    "dynamic_conv.norm_out.": "instance_interactive_conv.norm_out.",
    "dynamic_conv.out_layer.": "instance_interactive_conv.fc_layer.",
    "dynamic_conv.out_norm.": "instance_interactive_conv.fc_norm.",
    "dynamic_conv_layer_norm.": "instance_interactive_conv_norm.",
    "attention_bias.tau": "iof_tau",
    "sampling_offsets.": "sampling_n_mixing.sampling_offset_generator.0.",
    "adaptive_mixing.parameter_layer.": "sampling_n_mixing.adaptive_mixing.parameter_generator.0.",
    "adaptive_mixing.out_layer.": "sampling_n_mixing.adaptive_mixing.out_proj.",
    "mixing_layer_norm.": "sampling_n_mixing.norm.",
    "fc1.": "ffn.layers.0.0.",
    "fc2.": "ffn.layers.1.",
    "final_layer_norm.": "ffn_norm.",
}
_RULES += [(rf"stages\.(\d+)\.{re.escape(ours)}", rf"{_HEAD}.\1.{theirs}") for ours, theirs in _STAGE.items()]
# in a row of layers, linear, norm and ReLU take a number each
_RULES += [
    (rf"heads\.(\d+)\.{ours}_layers\.{layer}\.{kind}\.", rf"{_HEAD}.\1.{theirs}_fcs.{3 * layer + place}.")
    for ours, theirs in (("class", "cls"), ("box", "reg"))
    for layer in range(8)
    for place, kind in enumerate(("linear", "norm"))
]


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


class Source(NamedTuple):
    """Where one of our tensors comes from: the released key, and the "first" row or the "rest" of its rows, or None for
    all of it.
    """

    name: str
    part: str | None = None


def released_source(ours: str, decoder: str, head: str) -> Source:
    """The released tensor of our parameter or buffer `ours` of a `DrmmForObjectDetection`.

    Raises:
        KeyError: the released code has no such parameter.
    """
    name = ours.removeprefix("model.")
    for pattern, theirs in _RULES:
        if match := re.match(pattern, name):
            released = match.expand(theirs) + name[match.end() :]
            part = (
                {"objectness": "first", "classifier": "rest"}.get(name.split(".")[2])
                if ".fc_cls." in released
                else None
            )
            features = "content" if decoder == "adamixer" else "proposal"
            return Source(released.format(features=features), part if head == "mixture" else None)
    raise KeyError(ours)


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
    decoder = "adamixer" if f"{_HEAD}.0.iof_tau" in tensors else "sparse_rcnn"
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
    stages = {key.removeprefix(f"{_HEAD}.").split(".")[0] for key in tensors if key.startswith(f"{_HEAD}.")}
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
