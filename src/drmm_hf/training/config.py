"""Settings of a training run, and their command-line options."""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

import yaml


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """Settings of `drmm_hf.training.train`; every field is an option of `scripts/train.py`."""

    data: str = _option("", "COCO-format folder: annotations/instances_{train,val}.json and images/")
    output: str = _option("runs/train", "folder for the model, metrics.json and results")
    train_split: str = _option("train", "split to train on")
    eval_split: str = _option("val", "split to evaluate at the end; '' for none")
    model: str | None = _option(None, "fine-tune this checkpoint (folder or Hub id) instead of a preset")
    preset: str = _option("drmm-sparse-rcnn-tiny", "named configuration to start from")
    config: Mapping[str, Any] | None = _option(
        None, "fields of DrmmConfig to change, as NAME=VALUE ..., such as objective=nll mcm_weight=1.0"
    )
    warm_start: str | None = _option(
        None,
        "start from all weights of this Sparse R-CNN, AdaMixer or D-RMM checkpoint (folder or Hub id) but the output "
        "layers of its heads; the preset must be of its sizes",
    )
    backbone_weights: str | None = _option(
        None, "ImageNet weights of the backbone: a file, or 'hub' for timm's own; none for training from scratch"
    )
    train_images: int | None = _option(None, "length of the training in images seen")
    epochs: float | None = _option(None, "length of the training in epochs; this or --train-images")
    batch_size: int = _option(2, "images per step and process")
    learning_rate: float = _option(1e-3, "peak learning rate of AdamW")
    weight_decay: float = _option(1e-4, "weight decay of AdamW")
    adam_beta2: float = _option(0.99, "decay of AdamW's second moment; 0.999 for long trainings")
    schedule: str = _option("cosine", "learning rate after warm-up: cosine, linear or constant_with_warmup")
    warmup_ratio: float = _option(0.05, "share of the steps with a linearly rising learning rate")
    max_grad_norm: float = _option(1.0, "clip the gradient to this global norm")
    horizontal_flip: float = _option(0.5, "probability")
    vertical_flip: float = _option(0.0, "probability; for pictures without an up, such as microscopy")
    scale_min: float = _option(0.9, "smallest random zoom")
    scale_max: float = _option(1.1, "largest random zoom")
    translate: float = _option(0.05, "random shift as a share of the image")
    color_jitter: float = _option(0.05, "random change of brightness, contrast and saturation")
    num_workers: int = _option(0, "processes that read and augment images; 0 does it in the main process")
    cache_images: bool = _option(True, "keep decoded images in memory, up to 1 GiB per worker")
    mixed_precision: str = _option("no", "no, bf16 or fp16")
    cpu: bool = _option(False, "use the CPU even if there is an accelerator")
    seed: int = _option(0, "seed of weights, order and augmentation")
    debug: bool = _option(False, "show the traceback of an error")
    log_every: int = _option(50, "steps between lines of metrics.jsonl")

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError naming the first field whose value makes no sense."""
        if not self.data:
            raise ValueError("TrainConfig.data is empty; give a COCO-format folder.")
        if self.model is not None and self.warm_start is not None:
            raise ValueError("Give one of model (go on training this checkpoint) and warm_start (its trunk only).")
        if (self.train_images is None) == (self.epochs is None):
            raise ValueError("Set the length of the training by exactly one of train_images and epochs.")
        positive = ("batch_size", "learning_rate", "max_grad_norm", "scale_min", "log_every", "train_images", "epochs")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainConfig.{name}={value} must be greater than 0.")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"TrainConfig.warmup_ratio={self.warmup_ratio} must be in [0, 1).")
        choices = {
            "schedule": ("cosine", "linear", "constant_with_warmup"),
            "mixed_precision": ("no", "bf16", "fp16"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"TrainConfig.{name}={getattr(self, name)!r}; choose one of {', '.join(values)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def parse_config(argv: Sequence[str] | None = None) -> TrainConfig:
    """Read a `TrainConfig` from command-line options; a bad value ends the program with one line on stderr."""
    parser = argparse.ArgumentParser(description="Train or fine-tune a D-RMM detector on a COCO-format folder.")
    hints = get_type_hints(TrainConfig)
    for spec in dataclasses.fields(TrainConfig):
        name, hint = "--" + spec.name.replace("_", "-"), hints[spec.name]
        text = f"{spec.metadata['help']} (default: {spec.default if spec.default != '' else 'none'})"
        if hint is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=spec.default, help=text)
            continue
        if spec.name == "config":
            parser.add_argument(name, nargs="+", metavar="NAME=VALUE", help=text)
            continue
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
        required = spec.name == "data"
        parser.add_argument(
            name,
            type=kinds[0],
            default=None if required else spec.default,
            required=required,
            help=spec.metadata["help"] if required else text,
        )
    values = vars(parser.parse_args(argv))
    try:
        values["config"] = _assignments(values["config"])
        return TrainConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def _assignments(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """NAME=VALUE texts to a dict; a value is read as YAML, so 1.0, true and [location] are what they look like."""
    if texts is None:
        return None
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ValueError(f"--config {text}: write NAME=VALUE, such as objective=nll.")
        pairs[name.strip()] = _value(text, value)
    return pairs


def _value(text: str, value: str) -> Any:
    try:
        return float(value) if re.fullmatch(r"[-+]?\d+e[-+]?\d+", value) else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--config {text}: the value cannot be read as YAML.") from error
