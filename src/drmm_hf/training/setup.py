"""What a training is made of: model, augmentation, Accelerate, and the length in steps."""

import os
from collections.abc import Callable
from datetime import timedelta

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from huggingface_hub.errors import StrictDataclassError

from ..configuration_drmm import DrmmConfig
from ..conversion import warm_start
from ..data import PaperTransform, TrainTransform
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import load_checkpoint
from ..modeling_drmm import DrmmForObjectDetection
from ..presets import processor_fields
from .batches import canvas_size
from .config import TrainConfig
from .sources import SampleSource, TableSource
from .streamed_source import StreamedSource

_CACHE_BYTES = 1 << 30
_SHARDING = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
"""What Accelerate's launcher sets in the environment."""


def build_model(config: TrainConfig, source: SampleSource) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """A fresh model of `config.preset`, or `config.model` with the data's classes, and its image processor."""
    labels = {"id2label": source.id2label, "label2id": source.label2id}
    overrides = {**(config.config or {}), **labels}
    if config.model is not None:
        return load_checkpoint(config.model, ignore_mismatched_sizes=True, **overrides)
    try:
        model = DrmmForObjectDetection(DrmmConfig.from_preset(config.preset, **overrides))
    except (StrictDataclassError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"TrainConfig.config={config.config}: {reason}") from error
    if config.warm_start is not None:
        warm_start(model, config.warm_start)
    if config.backbone_weights is not None:
        model.load_backbone(None if config.backbone_weights == "hub" else config.backbone_weights)
    return model, DrmmImageProcessor(**processor_fields(config.preset))


def build_transform(config: TrainConfig, source: SampleSource, processor: DrmmImageProcessor) -> Callable:
    """The augmentation, at the scale at which the processor will show images to the model."""
    if config.augmentation != "affine":
        return PaperTransform(multi_scale=config.augmentation == "multi_scale", horizontal_flip=config.horizontal_flip)
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    return TrainTransform(
        canvas_size(source.landscape_share(), size),
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
        scale_range=(config.scale_min, config.scale_max),
        translate=config.translate,
        color_jitter=config.color_jitter,
        cache=config.cache_images,
        cache_bytes=_CACHE_BYTES,
    )


def open_source(config: TrainConfig, accelerator: Accelerator) -> SampleSource:
    """The training split, as a table or as a stream."""
    return (StreamedSource if config.streaming else TableSource)(config, accelerator)


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's state for these settings; a tracker that is not installed is refused here."""
    trackers = [name.strip() for name in (config.report_to or "").split(",") if name.strip()]
    for name in trackers:
        check_tracker(name)
    refuse_sharded_models()
    return Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
        log_with=trackers or None,
        project_dir=config.output,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout))],
    )


def refuse_sharded_models() -> None:
    """Raise ValueError where Accelerate's launcher was told to divide the model among the processes.

    With FSDP, `accelerate` asks the model for its input embeddings, which a detector does not have; on a CPU it would
    leave the model whole without a word. Evaluation and the saved model are made of the weights of one process.
    """
    for name, switch in _SHARDING.items():
        if os.environ.get(switch, "false").lower() == "true":
            raise ValueError(
                f"{name} is chosen in Accelerate's configuration, but this training keeps the whole model in every "
                "process; leave it out (accelerate launch --multi_gpu --num_processes N scripts/train.py ...): the "
                "models of this package fit on one device"
            )


def check_tracker(name: str) -> None:
    """Raise ValueError for a tracker that Accelerate does not know or that is not installed."""
    known = sorted(str(key) for key in LOGGER_TYPE_TO_CLASS)
    if name not in known:
        raise ValueError(f"TrainConfig.report_to={name!r}; choose of {', '.join(known)}.")
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise ValueError(f"TrainConfig.report_to={name!r}: not installed; pip install {name}")


def number_of_steps(config: TrainConfig, epoch_images: int | None, images_per_step: int) -> int:
    """Optimizer steps of the whole run."""
    images = config.train_images if config.train_images is not None else (config.epochs or 0) * (epoch_images or 0)
    return max(1, round(images / images_per_step))
