"""Settings of a training run."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..annotations_drmm import shown

SCHEDULES = ("cosine", "linear", "constant_with_warmup", "multi_step")
AUGMENTATIONS = ("affine", "multi_scale", "resize")
PRECISIONS = ("no", "bf16", "fp16")


def _option(group: str, default: Any, help: str) -> Any:
    return field(default=default, metadata={"group": group, "help": help})


@dataclass
class TrainConfig:
    """Settings of `drmm_hf.training.train`; every field is an option of `scripts/train.py` and of a recipe."""

    model: str | None = _option("model", None, "fine-tune this checkpoint (folder or Hub id) instead of a preset")
    preset: str = _option("model", "drmm-sparse-rcnn-tiny", "named configuration to start from")
    config: Mapping[str, Any] | None = _option(
        "model", None, "fields of DrmmConfig to change, as NAME=VALUE ..., such as objective=nll mcm_weight=1.0"
    )
    warm_start: str | None = _option(
        "model",
        None,
        "start from all weights of this Sparse R-CNN, AdaMixer or D-RMM checkpoint (folder or Hub id) but the output "
        "layers of its heads; the preset must be of its sizes",
    )
    backbone_weights: str | None = _option(
        "model",
        None,
        "ImageNet weights of the backbone: a file, or 'hub' for timm's own; none to train from scratch",
    )

    data: str = _option(
        "data",
        "",
        "COCO-format folder (annotations/instances_{train,val}.json, images/), or a data set of the Hub or on disk "
        "with the columns image and objects; with --streaming also a folder of WebDataset tars",
    )
    output: str = _option("data", "runs/train", "folder for the model, metrics.json and results")
    train_split: str = _option("data", "train", "split to train on")
    eval_split: str = _option("data", "val", "split to evaluate; '' for none")
    classes: Sequence[str] | None = _option(
        "data", None, "names of labels 0, 1, ... where the data do not tell them, as tars and integer categories"
    )
    skip_empty_images: bool = _option("data", False, "leave out training images without boxes, as the paper does")
    aspect_ratio_batches: bool = _option("data", False, "batches of wide or of tall images only: less padding")
    streaming: bool = _option(
        "data", False, "read the shards of --data (parquet files or tars) in order, without keeping them on the disk"
    )
    epoch_images: int | None = _option(
        "data", None, "streaming: images of the training split, so that the length can be given in --epochs"
    )
    shuffle_buffer: int = _option("data", 1000, "streaming: encoded images that each reading process mixes in memory")
    num_workers: int = _option("data", 0, "processes that read and augment images; 0 does it in the main process")
    cache_images: bool = _option("data", True, "affine: keep decoded images in memory, up to 1 GiB per worker")
    max_bad_images: int = _option("data", 10, "unreadable training images to replace and report before stopping")

    augmentation: str = _option(
        "augmentation",
        "affine",
        "affine (zoom, shift and color on a fixed canvas), multi_scale (the paper's 3x: flip, 480..800 px, crops) or "
        "resize (the paper's 1x: flip, 800 px)",
    )
    horizontal_flip: float = _option("augmentation", 0.5, "probability")
    vertical_flip: float = _option("augmentation", 0.0, "affine: probability; for pictures without an up")
    scale_min: float = _option("augmentation", 0.9, "affine: smallest random zoom")
    scale_max: float = _option("augmentation", 1.1, "affine: largest random zoom")
    translate: float = _option("augmentation", 0.05, "affine: random shift as a share of the image")
    color_jitter: float = _option("augmentation", 0.05, "affine: random change of brightness, contrast and saturation")

    train_images: int | None = _option("optimization", None, "length of the training in images seen")
    epochs: float | None = _option("optimization", None, "length of the training in epochs; this or --train-images")
    batch_size: int = _option("optimization", 2, "images per forward pass and process")
    gradient_accumulation: int = _option("optimization", 1, "forward passes per step")
    learning_rate: float = _option("optimization", 1e-3, "peak learning rate of AdamW")
    backbone_lr_factor: float = _option("optimization", 1.0, "learning rate of the backbone relative to the rest")
    weight_decay: float = _option("optimization", 1e-4, "weight decay of AdamW")
    decay_norms: bool = _option("optimization", True, "weight decay also on biases and normalization layers")
    adam_beta2: float = _option("optimization", 0.99, "decay of AdamW's second moment; 0.999 for long trainings")
    schedule: str = _option("optimization", "cosine", "learning rate after warm-up: " + ", ".join(SCHEDULES))
    milestones: Sequence[float] | None = _option("optimization", None, "multi_step: epochs at which to divide by ten")
    warmup_ratio: float = _option("optimization", 0.05, "share of the steps with a linearly rising learning rate")
    warmup_steps: int | None = _option("optimization", None, "the same as a number of steps; overrides the share")
    max_grad_norm: float = _option("optimization", 1.0, "clip the gradient to this global norm")
    ema_decay: float | None = _option(
        "optimization", None, "average the weights with this decay, such as 0.999, and evaluate and save the average"
    )
    max_bad_steps: int = _option("optimization", 20, "stop after this many steps in a row without a finite gradient")

    eval_every: int = _option("evaluation", 0, "steps between evaluations; 0 evaluates at the end only")
    eval_every_epochs: float | None = _option("evaluation", None, "epochs between evaluations")
    eval_batch_size: int = _option("evaluation", 8, "images per forward pass and process")
    patience: int | None = _option("evaluation", None, "stop after this many evaluations without a better AP")

    save_every: int = _option("checkpoints", 500, "steps between checkpoints for --resume; 0 for none")
    save_total_limit: int = _option("checkpoints", 2, "checkpoints to keep")
    resume: bool = _option("checkpoints", False, "go on from the last good checkpoint in the output folder")

    mixed_precision: str = _option("machine", "no", ", ".join(PRECISIONS))
    gradient_checkpointing: bool = _option("machine", False, "recompute the stages backward: less memory, more time")
    timeout: float = _option(
        "machine", 1800.0, "seconds after which several processes stop if one of them does not answer"
    )
    compile: str | None = _option("machine", None, "torch.compile backbone and stages with this backend: inductor")
    cpu: bool = _option("machine", False, "use the CPU even if there is an accelerator")
    seed: int = _option("machine", 0, "seed of weights, order and augmentation")
    log_every: int = _option("machine", 50, "steps between lines of metrics.jsonl")
    report_to: str | None = _option("machine", None, "trackers of Accelerate: tensorboard, wandb, trackio; by commas")
    debug: bool = _option("machine", False, "show the traceback of an error")

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError naming the first field whose value makes no sense."""
        if not self.data:
            raise ValueError("TrainConfig.data is empty; give --data: a COCO-format folder or a data set of the Hub.")
        if self.model is not None and self.warm_start is not None:
            raise ValueError("Give one of model (go on training this checkpoint) and warm_start (its trunk only).")
        if (self.train_images is None) == (self.epochs is None):
            raise ValueError("Set the length of the training by exactly one of train_images and epochs.")
        if (self.schedule == "multi_step") != (self.milestones is not None):
            raise ValueError("Give milestones (epochs) with schedule='multi_step', and with no other schedule.")
        if self.milestones is not None and self.epochs is None:
            raise ValueError("TrainConfig.milestones are epochs; set the length of the training by epochs, too.")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"TrainConfig.milestones={list(self.milestones)} must be ascending.")
        if self.epoch_images is not None and not self.streaming:
            raise ValueError("TrainConfig.epoch_images is for a stream; leave it out, or set streaming.")
        self._check_ranges()
        choices = {"schedule": SCHEDULES, "mixed_precision": PRECISIONS, "augmentation": AUGMENTATIONS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"TrainConfig.{name}={shown(getattr(self, name))}; choose one of {', '.join(values)}.")

    def _check_ranges(self) -> None:
        positive = (
            *("batch_size", "learning_rate", "max_grad_norm", "scale_min", "log_every", "train_images", "epochs"),
            *("gradient_accumulation", "max_bad_steps", "eval_every_epochs", "eval_batch_size", "patience"),
            *("save_total_limit", "epoch_images", "shuffle_buffer", "timeout"),
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainConfig.{name}={value} must be greater than 0.")
        for name in ("num_workers", "max_bad_images", "warmup_steps", "eval_every", "save_every", "backbone_lr_factor"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"TrainConfig.{name}={value} must not be negative.")
        for name in ("warmup_ratio", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"TrainConfig.{name}={value} must be in [0, 1).")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML."""
        return dataclasses.asdict(self)
