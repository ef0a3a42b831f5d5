"""Settings of a training run: the fields of `TrainConfig`, filled by command-line options, recipes or Python."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..configuration_drmm import shown
from ..files import write_text

logger = logging.getLogger(__name__)

_RECIPES = resources.files("drmm_hf.training") / "recipes"
# Of two fields that exclude each other, one that is given replaces the other one of the recipe.
_RIVALS = (
    *(("epochs", "train_images"), ("train_images", "epochs"), ("model", "warm_start"), ("warm_start", "model")),
    ("warmup_ratio", "warmup_steps"),
)
# Ranges; what may be None is only checked otherwise.
_POSITIVE = (
    *("train_images", "epochs", "batch_size", "gradient_accumulation", "learning_rate", "max_grad_norm", "scale_min"),
    *("max_bad_steps", "eval_every_epochs", "eval_batch_size", "patience", "save_total_limit", "log_every", "timeout"),
    *("epoch_images", "shuffle_buffer", "min_scale_ratio_start"),
)
_NOT_NEGATIVE = ("num_workers", "max_bad_images", "warmup_steps", "eval_every", "save_every", "backbone_lr_factor")
_LARGEST = 1e18
_GONE = ("cache_images",)  # fields that recipes of earlier versions have, without which the training is the same
_SHARES = ("horizontal_flip", "vertical_flip", "translate", "color_jitter")  # in [0, 1]
_BELOW_ONE = ("warmup_ratio", "ema_decay")  # in [0, 1)


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """Settings of `drmm_hf.training.train`; every field is an option of `drmm train` and of a recipe.

    Raises:
        ValueError: a field has another type or is out of its range, or two of them contradict each other.
    """

    # The model
    model: str | None = _option(None, "fine-tune this checkpoint (folder or Hub id) instead of a preset")
    preset: str = _option("drmm-sparse-rcnn-tiny", "named configuration to start from")
    config: dict[str, Any] | None = field(default=None, metadata={"help": "fields of DrmmConfig to change"})
    warm_start: str | None = _option(
        None,
        "start from all weights of this Sparse R-CNN, AdaMixer or D-RMM checkpoint (folder or Hub id) but the output "
        "layers of its heads, also in place of --backbone-weights; the preset must be of its sizes",
    )
    backbone_weights: str | None = _option(
        None,
        "ImageNet weights of the backbone: 'hub' for timm's own, a file of them, or 'package' for those of "
        "drmm-hf[lite0] (presets ...-lite0); none to train from scratch",
    )

    # Data
    data: str = _option(
        "",
        "COCO, YOLO or Pascal VOC folder as the usual tools write it, or a data set of the Hub or on disk "
        "with the columns image and objects; with --streaming also a folder of WebDataset tars",
    )
    output: str = _option("runs/train", "folder for the model, metrics.json and results")
    overwrite: bool = _option(False, "begin anew in an output folder that holds a training already")
    image_frame: Literal["upright", "stored"] = _option(
        "upright",
        "boxes are in pixels of images turned by their EXIF orientation, as viewers show them, or of the stored pixels",
    )
    train_split: str = _option("train", "split to train on")
    eval_split: str = _option("val", "split to evaluate; '' for none")
    annotations: str | None = _option(None, "COCO json to train on, if it is not where the split's is looked for")
    images: str | None = _option(None, "its image folder, likewise")
    eval_annotations: str | None = _option(None, "COCO json to evaluate on, likewise")
    eval_images: str | None = _option(None, "its image folder, likewise")
    classes: list[str] | None = field(
        default=None,
        metadata={"help": "names of labels 0, 1, ... where the data do not tell them, as tars and integer categories"},
    )
    skip_empty_images: bool = _option(False, "leave out training images without boxes, as the paper does")
    aspect_ratio_batches: bool = _option(False, "batches of wide or of tall images only: less padding")
    streaming: bool = _option(
        False, "read the shards of --data (parquet files or tars) in order, without keeping them on the disk"
    )
    epoch_images: int | None = _option(
        None, "streaming: images of the training split, so that the length can be given in --epochs"
    )
    shuffle_buffer: int = _option(1000, "streaming: encoded images that each reading process mixes in memory")
    image_size: list[int] | None = field(
        default=None,
        metadata={
            "help": "network input in pixels: one number for the shorter side, with the aspect ratio kept, or height "
            "and width, to which every image is stretched; that of the preset or --model if not given",
            "metavar": ("N", "N"),
        },
    )
    num_workers: int = _option(0, "processes that read and augment images; 0 does it in the main process")
    max_bad_images: int = _option(10, "unreadable training images to replace and report before stopping")

    # Augmentation
    augmentation: Literal["affine", "multi_scale", "resize"] = _option(
        "affine",
        "affine (zoom, shift and color on a fixed canvas), multi_scale (the paper's 3x: flip, 480..800 px, crops) or "
        "resize (the paper's 1x: flip, 800 px)",
    )
    horizontal_flip: float = _option(0.5, "probability")
    vertical_flip: float = _option(0.0, "affine: probability; for pictures without an up")
    scale_min: float = _option(0.9, "affine: smallest random zoom")
    scale_max: float = _option(1.1, "affine: largest random zoom")
    translate: float = _option(0.05, "affine: random shift as a share of the image")
    color_jitter: float = _option(0.05, "affine: random change of brightness, contrast and saturation")

    # Optimization
    train_images: int | None = _option(None, "length of the training in images seen")
    epochs: float | None = _option(None, "length of the training in epochs; this or --train-images")
    batch_size: int = _option(2, "images per forward pass and process")
    gradient_accumulation: int = _option(1, "forward passes per step")
    learning_rate: float = _option(1e-3, "peak learning rate of AdamW")
    backbone_lr_factor: float = _option(1.0, "learning rate of the backbone relative to the rest")
    weight_decay: float = _option(1e-4, "weight decay of AdamW")
    decay_norms: bool = _option(True, "weight decay on biases and normalization layers, too")
    adam_beta2: float = _option(0.99, "decay of AdamW's second moment; 0.999 for long trainings")
    schedule: Literal["cosine", "linear", "constant_with_warmup", "multi_step"] = _option(
        "cosine", "learning rate after warm-up"
    )
    milestones: list[float] | None = field(
        default=None, metadata={"help": "multi_step: epochs at which to divide by ten"}
    )
    warmup_ratio: float = _option(0.05, "share of the steps with a linearly rising learning rate")
    warmup_steps: int | None = _option(None, "the same as a number of steps; overrides the share")
    min_scale_ratio_start: float | None = _option(
        None,
        "floor of gamma at the first step, as a share of the box; over nine tenths of the training it comes down to "
        "the model's min_scale_ratio, so that boxes are first found and then fitted",
    )
    max_grad_norm: float = _option(1.0, "clip the gradient to this global norm")
    ema_decay: float | None = _option(
        None, "average the weights with this decay, such as 0.999, and evaluate and save the average"
    )
    max_bad_steps: int = _option(20, "stop after this many steps in a row that teach nothing")

    # Evaluation and checkpoints
    eval_every: int = _option(0, "steps between evaluations; 0 evaluates at the end only")
    eval_every_epochs: float | None = _option(None, "epochs between evaluations")
    eval_batch_size: int = _option(8, "images per forward pass and process in an evaluation")
    patience: int | None = _option(None, "stop after this many evaluations without a better AP")
    save_every: int = _option(500, "steps between checkpoints for --resume; 0 for none")
    save_total_limit: int = _option(2, "checkpoints to keep")
    resume: bool = _option(False, "go on from the last good checkpoint in the output folder")

    # The machine
    mixed_precision: Literal["no", "bf16", "fp16"] = _option("no", "lower precision of the forward pass")
    gradient_checkpointing: bool = _option(False, "recompute the stages backward: less memory, more time")
    timeout: float = _option(1800.0, "seconds after which several processes stop if one of them does not answer")
    compile: str | None = _option(None, "torch.compile backbone and stages with this backend: inductor")
    cpu: bool = _option(False, "use the CPU even if there is an accelerator")
    seed: int = _option(0, "seed of weights, order and augmentation")
    log_every: int = _option(50, "steps between lines of metrics.jsonl")
    report_to: str | None = _option(None, "trackers of Accelerate: tensorboard, wandb, trackio; by commas")

    def __post_init__(self) -> None:
        for name, hint in _HINTS.items():
            value = _typed(getattr(self, name), hint, f"TrainConfig.{name}")
            setattr(self, name, value)
            if not isinstance(value, int | float):
                continue
            if name in _POSITIVE and not 0 < value < _LARGEST:
                raise ValueError(f"TrainConfig.{name}={shown(value)} must be greater than 0, and below 1e18.")
            if name in _NOT_NEGATIVE and not 0 <= value < _LARGEST:
                raise ValueError(f"TrainConfig.{name}={shown(value)} must not be negative, and below 1e18.")
            if name in _SHARES and not 0 <= value <= 1:
                raise ValueError(f"TrainConfig.{name}={value} must be in [0, 1].")
            if name in _BELOW_ONE and not 0 <= value < 1:
                raise ValueError(f"TrainConfig.{name}={value} must be in [0, 1).")
        drops = self.milestones or []
        for wrong, message in (
            (not self.data and not self.annotations, "data is empty; give --data: a folder or a data set of the Hub"),
            (
                self.annotations and self.eval_split and not (self.data or self.eval_annotations),
                "annotations without eval_annotations: give both, or --eval-split '' for none",
            ),
            (self.model == "", "this recipe needs --model, the checkpoint to fine-tune (folder or Hub id)"),
            (self.model and self.warm_start, "model (train on from it) excludes warm_start (take its trunk only)"),
            (self.overwrite and self.resume, "overwrite (begin anew) excludes resume (go on)"),
            ((self.train_images is None) == (self.epochs is None), "give exactly one of train_images and epochs"),
            ((self.schedule == "multi_step") != bool(drops), "schedule multi_step, and no other, needs milestones"),
            (drops and self.epochs is None, "milestones are epochs; set the length of the training by epochs, too"),
            (drops != sorted(set(drops)), f"milestones={drops} must be ascending"),
            (
                self.scale_min > self.scale_max,
                f"scale_min={self.scale_min} must not be above scale_max={self.scale_max}",
            ),
            (
                self.image_size and (len(self.image_size) > 2 or min(self.image_size) < 32),
                f"image_size={self.image_size} must be one or two numbers of at least 32 pixels",
            ),
            (
                len(self.image_size or ()) == 2 and self.augmentation != "affine",
                f"augmentation {self.augmentation} keeps the aspect ratio; give one number as image_size",
            ),
            (
                self.patience and not (self.eval_split and (self.eval_every or self.eval_every_epochs)),
                "patience counts evaluations; give eval_split, and eval_every or eval_every_epochs, too",
            ),
            (self.epoch_images and not self.streaming, "epoch_images is for a stream; leave it out, or set streaming"),
        ):
            if wrong:
                raise ValueError(f"TrainConfig: {message}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML."""
        return dataclasses.asdict(self)


_HINTS = get_type_hints(TrainConfig)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field of this type has it: a number for 1e-4, which YAML takes for a text, and a float for 12."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind, parts = get_origin(kinds[0]) or kinds[0], get_args(kinds[0])
    if kind is list and isinstance(value, list | tuple):
        return [_typed(entry, parts[0], where) for entry in value]
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    elif kind is Literal:
        if value in parts:
            return value
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    wanted = f"one of {', '.join(parts)}" if kind is Literal else f"of type {kind.__name__}"
    raise ValueError(f"{where} is {shown(value)}, but must be {wanted}.")


def parser() -> argparse.ArgumentParser:
    """The options of `drmm train`; what was not given is not in its namespace, so that a recipe can fill it."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument(
        "--recipe",
        help="settings to start from: " + ", ".join(recipe_names()) + ", or a YAML file such as OUTPUT/recipe.yaml",
    )
    options = HfArgumentParser(
        [TrainConfig],  # type: ignore[list-item]
        usage="%(prog)s [--recipe NAME] --data FOLDER [options]",
        description="Train or fine-tune a detector.",
        formatter_class=argparse.HelpFormatter,
        conflict_handler="resolve",
        allow_abbrev=False,
        parents=[first],
    )
    options.add_argument(
        "--config", nargs="+", action="extend", metavar="NAME=VALUE", help="such as objective=nll mcm_weight=1.0"
    )
    for action in options._actions:
        if action.default not in (None, "", False, argparse.SUPPRESS):
            action.help = f"{action.help} (default: {action.default})"
        action.default = argparse.SUPPRESS
        # the help has one spelling of two; both are understood
        action.option_strings = [word for word in action.option_strings if "_" not in word]
        if action.option_strings[0].startswith("--no-"):
            action.help = f"the opposite of --{action.option_strings[0].removeprefix('--no-')}"
    return options


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """The settings from command-line words.

    Raises:
        FileNotFoundError, ValueError: as `read_recipe` and `TrainConfig`.
        SystemExit: an unknown option, as argparse does it.
    """
    return config_from(parser().parse_args(argv))


def config_from(arguments: argparse.Namespace) -> TrainConfig:
    """The settings from what `parser` has read: the options over those of `--recipe` if there is one."""
    given = {name: value for name, value in vars(arguments).items() if name in _HINTS}
    if "config" in given:
        given["config"] = dict(map(_assignment, given["config"]))
    for name, option in (("preset", "--preset"), ("backbone_weights", "--backbone-weights")):
        if given.get("model") and given.get(name):
            raise ValueError(f"--model brings its own architecture and weights; leave out {option}, or --model")
    recipe = read_recipe(arguments.recipe) if "recipe" in arguments else {}
    return TrainConfig(**_merged(recipe, given))


def _assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is read as YAML, so 1.0, true and [location] are what they look like."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ValueError(f"--config {text}: write NAME=VALUE, such as objective=nll.")
    try:
        content = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--config {text}: the value cannot be read as YAML.") from error
    if isinstance(content, str):
        with contextlib.suppress(ValueError):  # 1e-4 is a text in YAML
            content = float(content)
    return name.strip(), content


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `over` where it has them, else those of `base`; `config` is merged field by field."""
    given = {name for name, value in over.items() if value is not None}
    dropped = {rival for name, rival in _RIVALS if name in given and rival not in over}
    if over.get("schedule", "multi_step") != "multi_step":
        dropped.add("milestones")
    fields = {name: value for name, value in base.items() if name not in dropped} | dict(over)
    if "config" in given and base.get("config"):
        fields["config"] = {**base["config"], **over["config"]}
    return fields


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    names = (path.name.removesuffix(".yaml") for path in _RECIPES.iterdir() if path.name.endswith(".yaml"))
    return sorted(name for name in names if not name.startswith("_"))


def read_recipe(source: str, above: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of `TrainConfig` from a recipe of the package or a YAML file, over those of its `base`.

    Args:
        source: name of a recipe, or path of a file; whatever has a slash or ends in .yaml or .yml is a path. `base` in
            a recipe is another such name or path.
        above: recipes whose `base` this one is.

    Raises:
        FileNotFoundError: no such recipe or file; the message lists the nearest names.
        ValueError: not YAML, an unknown field (with the nearest name), or a value of another type.
    """
    where = f"--recipe {source}"
    if source in above:
        raise ValueError(f"{where}: is its own base")
    try:
        content = yaml.safe_load(_recipe_text(source))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # a date of month 13, a list as a key, ...
        raise ValueError(f"{where}: not valid YAML: {str(error)[:500]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds no fields; write lines such as `epochs: 12`")
    base = content.pop("base", None)
    for name in content.keys() & {*_GONE}:
        logger.warning("%s: there is no field %r any more; it is passed over", where, name)
        del content[name]
    for name in content:
        if name not in _HINTS:
            near = difflib.get_close_matches(str(name), _HINTS, n=1, cutoff=0.3)
            raise ValueError(f"{where}: unknown field {shown(name)}" + (f"; did you mean {near[0]!r}?" if near else ""))
    fields = {name: _typed(value, _HINTS[name], f"{where}: field {name!r}") for name, value in content.items()}
    return fields if base is None else _merged(read_recipe(str(base), (*above, source)), fields)


def _recipe_text(source: str) -> str:
    if "/" in source or source.endswith((".yaml", ".yml")):
        if not Path(source).is_file():
            raise FileNotFoundError(f"--recipe {source}: no such file")
        return Path(source).read_text(encoding="utf-8")
    path = _RECIPES / f"{source}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(source, recipe_names(), n=3, cutoff=0.3) or recipe_names()
        raise FileNotFoundError(f"There is no recipe {source!r}. Nearest: {', '.join(near)}.")
    return path.read_text(encoding="utf-8")


def write_recipe(config: TrainConfig, path: Path) -> None:
    """The resolved settings as a recipe that repeats the run from its beginning."""
    write_text(path, yaml.safe_dump({**config.to_dict(), "resume": False, "overwrite": False}, sort_keys=False))
