"""What a training is made of: Accelerate, the data, the model, the augmentation and the evaluations."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.image_utils import SizeDict

from ..annotations import make_labels
from ..configuration_drmm import DrmmConfig
from ..conversion import warm_start
from ..data import DetectionDataset, PaperTransform, TrainTransform
from ..data.check import check_data, format_check
from ..data.transforms import canvas_size, scaled_size
from ..evaluation import evaluate_detections, predict_dataset
from ..files import write_json
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import load_to_train, model_config
from ..modeling_drmm import DrmmForObjectDetection
from ..presets import PROCESSOR_PRESETS, backbone_statistics
from .batches import TableData, TrainingData
from .config import TrainConfig
from .stream_batches import StreamData

_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # what Accelerate's launcher sets as ACCELERATE_USE_...


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's state for these settings.

    Raises:
        ValueError: a tracker that is unknown or not installed; or Accelerate's launcher was told to divide the model
            among the processes. With FSDP, Accelerate asks the model for its input embeddings, which a detector does
            not have; on a CPU it would leave the model whole without a word.
    """
    for name in _SHARDING:
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"{name} is chosen in Accelerate's configuration, but this training keeps the whole model in every "
                "process; leave it out (accelerate launch --multi_gpu --num_processes N scripts/train.py ...): the "
                "models of this package fit on one device"
            )
    # other detectors have parameters for queries of their own loss, which a likelihood does not read
    partly = config.model is not None and model_config(config.model).model_type != DrmmConfig.model_type
    trackers = [name.strip() for name in (config.report_to or "").split(",") if name.strip()]
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.cpu,
        log_with=trackers or None,
        project_dir=config.output,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(seconds=config.timeout)),
            DistributedDataParallelKwargs(find_unused_parameters=partly),
        ],
    )
    if missing := set(trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}:
        raise ValueError(f"TrainConfig.report_to={config.report_to!r}: not installed; pip install {' '.join(missing)}")
    return accelerator


def open_data(config: TrainConfig, accelerator: Accelerator) -> TrainingData:
    """The training split, as a table or as a stream.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or has no known length where `config` counts in epochs.
    """
    kind = StreamData if config.streaming else TableData
    data = kind(config, accelerator.num_processes, accelerator.process_index)
    if data.epoch_images is None and not (config.epochs is None and config.eval_every_epochs is None):
        raise ValueError(
            f"{config.data}: nothing tells how many images a stream has, so it has no --epochs or "
            "--eval-every-epochs; use --train-images and --eval-every, or give --epoch-images as well"
        )
    return data


def check_training_data(
    data: TrainingData,
    eval_dataset: DetectionDataset | None,
    model: DrmmForObjectDetection,
    processor: DrmmImageProcessor,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """The report of `check_data`, whose lines the main process prints; None for a stream, which nothing can look over.

    Raises:
        ValueError: nothing can be learned from these data; in every process.
    """
    if not isinstance(data, TableData):
        return None
    report: list[Any] = [None]
    if accelerator.is_main_process:
        size, proposals = input_size(processor), model.config.num_proposals
        report = [check_data(data.dataset, eval_dataset, size=size, num_proposals=proposals)]
        print(format_check(report[0]), flush=True)
    found = broadcast_object_list(report)[0]
    if found["problem"]:
        raise ValueError(f"{data.dataset.kind}: {found['problem']}")
    return found


def build_model(
    config: TrainConfig, id2label: Mapping[int, str], label2id: Mapping[str, int]
) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """A fresh model of `config.preset`, or `config.model` with the data's classes, and its image processor."""
    overrides = {**(config.config or {}), "id2label": id2label, "label2id": label2id}
    if config.model is not None:
        model, processor = load_to_train(config.model, **overrides)
        if config.compile and not isinstance(model, DrmmForObjectDetection):
            raise ValueError(
                f"TrainConfig.compile={config.compile}: {config.model} is a detector of transformers, and only models "
                "with this package's own decoders are compiled; leave it out."
            )
    else:
        try:
            model = DrmmForObjectDetection(DrmmConfig.from_preset(config.preset, **overrides))
        except (StrictDataclassError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"TrainConfig.config={config.config}: {reason}") from error
        if config.warm_start is not None:
            warm_start(model, config.warm_start)
        elif config.backbone_weights is not None:  # which are part of what a warm start brings
            model.load_backbone(None if config.backbone_weights == "hub" else config.backbone_weights)
        # its size is that of the preset, its mean and deviation are those that the backbone knows
        fields = {**PROCESSOR_PRESETS.get(config.preset, {}), **backbone_statistics(model.config)}
        processor = DrmmImageProcessor(**fields)
    if config.image_size is not None:
        size = scaled_size(input_size(processor), config.image_size)
        processor.size = SizeDict(**size)  # type: ignore[assignment]
        processor.pad_size = None  # type: ignore[attr-defined]
    return model, processor


def input_size(processor: DrmmImageProcessor) -> dict[str, int]:
    """What the processor's `size` says: `shortest_edge` and `longest_edge`, or `height` and `width`, in pixels."""
    return {name: side for name, side in dict(processor.size).items() if side is not None}


def model_inputs(
    processor: Any, images: Sequence[Tensor], annotations: Sequence[Mapping[str, Any]], device: torch.device
) -> Mapping[str, Any]:
    """What a model is trained on: augmented images (3, h, w) and their COCO annotations, through its own processor.

    Processors of other detectors may write boxes as fractions of a padded canvas: the labels are always ours.
    """
    if isinstance(processor, DrmmImageProcessor):
        return processor.preprocess(
            images=images, annotations=annotations, do_resize=False, return_tensors="pt", device=device
        )
    fixed = "height" in input_size(processor)  # else augmentation has given the images their size
    inputs = processor(images=images, do_resize=fixed, return_tensors="pt", device=device)
    old = np.array([image.shape[-2:] for image in images])
    new = np.array([inputs["pixel_values"].shape[-2:]] * len(images)) if fixed else old
    return {**inputs, "labels": make_labels(annotations, old, new, device)}


def build_transform(
    config: TrainConfig, landscape_share: Callable[[], float], processor: DrmmImageProcessor
) -> TrainTransform | PaperTransform:
    """The augmentation, at the scale at which the processor will show images to the model."""
    size = input_size(processor)
    if config.augmentation != "affine":
        share = min(size.values()) / 800  # of the paper's size
        return PaperTransform(
            multi_scale=config.augmentation == "multi_scale",
            horizontal_flip=config.horizontal_flip,
            shortest_edges=[round(side * share) for side in range(480, 801, 32)],
            crop_shortest_edges=[round(side * share) for side in (400, 500, 600)],
            crop_size=(round(384 * share), round(600 * share)),
            longest_edge=max(size.values()),
        )
    red, green, blue = (round(255 * value) for value in processor.image_mean)  # about zero for the network
    return TrainTransform(
        canvas_size(landscape_share(), size),
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
        scale_range=(config.scale_min, config.scale_max),
        translate=config.translate,
        color_jitter=config.color_jitter,
        keep_aspect="height" not in size,
        fill=(red, green, blue),
    )


def evaluation_steps(config: TrainConfig, num_steps: int, steps_per_epoch: float) -> set[int]:
    """The steps after which `config` wants an evaluation."""
    every = config.eval_every
    steps = set(range(every, num_steps + 1, every)) if every and config.eval_split else set()
    if config.eval_every_epochs and config.eval_split:
        stride = steps_per_epoch * config.eval_every_epochs
        steps |= {max(1, round(stride * i)) for i in range(1, int(num_steps / stride) + 1)}
    return steps


def evaluate(
    model: DrmmForObjectDetection,
    processor: DrmmImageProcessor,
    dataset: DetectionDataset,
    accelerator: Accelerator,
    config: TrainConfig,
) -> dict[str, Any]:
    """COCO numbers and ECE (paper Eq. 9) on every process; the detections go to results.json."""
    size, workers = config.eval_batch_size, config.num_workers
    results = predict_dataset(model, processor, dataset, accelerator=accelerator, batch_size=size, num_workers=workers)
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        write_json(Path(config.output) / "results.json", results)
        report = evaluate_detections(dataset.annotations_path, results)
        metrics = {name: round(value, 4) for name, value in report.metrics.items()}
        for name, calibration in report.named_calibration.items():
            metrics[name] = round(calibration.ece, 4) if math.isfinite(calibration.ece) else None
            metrics[f"{name}_settings"] = calibration.settings
    return broadcast_object_list([metrics])[0]
