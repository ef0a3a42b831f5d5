"""The training loop: a COCO-format folder to a saved, measured detector, through Accelerate."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from ..configuration_drmm import DrmmConfig
from ..conversion import warm_start
from ..data import DetectionDataset, TrainTransform, load_detection_dataset
from ..evaluation import evaluate_detections, predict_dataset
from ..evaluation.loading import load_checkpoint
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from ..presets import processor_fields
from .batches import canvas_size, normalize, training_loader
from .config import TrainConfig

logger = logging.getLogger(__name__)

_CACHE_BYTES = 1 << 30
_EVAL_BATCH = 8


@dataclass
class TrainResult:
    """What `train` leaves behind.

    Attributes:
        model_dir: folder with model and image processor, for `from_pretrained` and `pipeline`.
        metrics: the content of `metrics.json`; the COCO numbers are absent without an evaluation split.
        model, processor: the trained pair, on the device of the training.
    """

    model_dir: Path
    metrics: dict[str, Any]
    model: DrmmForObjectDetection
    processor: DrmmImageProcessor


def train(config: TrainConfig) -> TrainResult:
    """Train, save to `config.output`/model, evaluate, and write metrics.json, metrics.jsonl and the settings.

    Raises:
        FileNotFoundError, ValueError: the data, the settings or the checkpoint are wrong; the message names the file or
            field. Nothing is written before the data have been read.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
    set_seed(config.seed)
    # Read everything that can be wrong before the minutes of training.
    dataset = load_detection_dataset(config.data, config.train_split)
    eval_dataset = None
    if config.eval_split:
        eval_dataset = load_detection_dataset(config.data, config.eval_split, id2label=dataset.id2label)
    if dataset.report.boxes == 0:
        raise ValueError(f"{dataset.annotations_path}: no boxes to learn from in the split {config.train_split!r}.")
    model, processor = build_model(config, dataset)
    transform = build_transform(config, dataset, processor)
    if accelerator.process_index > 0:  # every process draws its own augmentation
        torch.manual_seed(config.seed + accelerator.process_index)
    loader = training_loader(dataset, transform, config.batch_size, config.num_workers, config.seed)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "train_config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")

    num_steps = number_of_steps(config, len(dataset), accelerator.num_processes)
    started = time.perf_counter()
    run_steps(accelerator, model, loader, config, num_steps, processor, output / "metrics.jsonl")
    metrics: dict[str, Any] = {
        "train_seconds": round(time.perf_counter() - started, 1),
        "train_steps": num_steps,
        "train_images": num_steps * config.batch_size * accelerator.num_processes,
        "seed": config.seed,
    }
    model_dir = output / "model"
    if accelerator.is_main_process:
        model.save_pretrained(model_dir)
        processor.save_pretrained(model_dir)
        if eval_dataset is not None:
            metrics = {**evaluate_model(model, processor, eval_dataset, output), **metrics}
        (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return TrainResult(model_dir, metrics, model, processor)


def build_model(config: TrainConfig, dataset: DetectionDataset) -> tuple[DrmmForObjectDetection, DrmmImageProcessor]:
    """A fresh model of `config.preset`, or `config.model` with the data's classes, and its image processor."""
    labels = {"id2label": dataset.id2label, "label2id": dataset.label2id}
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


def build_transform(config: TrainConfig, dataset: DetectionDataset, processor: DrmmImageProcessor) -> TrainTransform:
    """The augmentation, at the scale at which the processor will show images to the model."""
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    return TrainTransform(
        canvas_size(dataset, size),
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
        scale_range=(config.scale_min, config.scale_max),
        translate=config.translate,
        color_jitter=config.color_jitter,
        cache=config.cache_images,
        cache_bytes=_CACHE_BYTES,
    )


def number_of_steps(config: TrainConfig, num_images: int, num_processes: int) -> int:
    """Optimizer steps of the whole run."""
    images = config.train_images if config.train_images is not None else (config.epochs or 0) * num_images
    return max(1, round(images / (config.batch_size * num_processes)))


def run_steps(
    accelerator: Accelerator,
    model: DrmmForObjectDetection,
    loader: DataLoader,
    config: TrainConfig,
    num_steps: int,
    processor: DrmmImageProcessor,
    log_path: Path,
) -> None:
    """Optimise the model in place, with a progress bar and a line of metrics every `config.log_every` steps."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, config.adam_beta2),
        fused=True,  # one pass over the parameters; the plain one is a tenth of a small model's step on a CPU
    )
    warmup = round(config.warmup_ratio * num_steps)
    # Accelerate steps the schedule once per process, as it divides the data among them.
    factor = accelerator.num_processes
    scheduler = get_scheduler(config.schedule, optimizer, warmup * factor, num_steps * factor)
    prepared, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    prepared.train()
    bar = tqdm(total=num_steps, desc="training", unit="step", disable=not accelerator.is_main_process)
    batches, window, started = _endless(loader), _Mean(), time.perf_counter()
    with log_path.open("w") as log, bar:
        for step in range(1, num_steps + 1):
            batch = next(batches)
            if isinstance(batch, Exception):
                raise batch
            mask = batch["pixel_mask"]
            pixels = normalize(batch["image"], mask, processor.image_mean, processor.image_std)
            outputs = prepared(pixel_values=pixels, pixel_mask=mask, labels=batch["labels"])
            accelerator.backward(outputs.loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            window.add({"loss": outputs.loss, "grad_norm": norm, **outputs.loss_dict})
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            bar.update()
            if step % config.log_every == 0 or step == num_steps:
                means = window.take()
                if not math.isfinite(means["loss"]):
                    raise RuntimeError(f"The loss is {means['loss']} at step {step}; lower --learning-rate.")
                images = step * config.batch_size * accelerator.num_processes
                line = {
                    "step": step,
                    **{name: round(value, 5) for name, value in means.items()},
                    "learning_rate": scheduler.get_last_lr()[0],
                    "images_per_second": round(images / (time.perf_counter() - started), 2),
                }
                bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
                if accelerator.is_main_process:
                    log.write(json.dumps(line) + "\n")
                    log.flush()


def evaluate_model(
    model: nn.Module, processor: DrmmImageProcessor, dataset: DetectionDataset, output: Path
) -> dict[str, Any]:
    """COCO numbers and calibration of a model; the detections go to `output`/results.json.

    Returns:
        AP, AP50, AP75, AR100 and the other COCO numbers, and ECE (paper Eq. 9) over all of the 100 detections an image,
        with `ECE_settings` saying how.
    """
    results = predict_dataset(model, processor, dataset, batch_size=_EVAL_BATCH)
    (output / "results.json").write_text(json.dumps(results))
    report = evaluate_detections(dataset.annotations_path, results)
    metrics: dict[str, Any] = {name: round(value, 4) for name, value in report.metrics.items()}
    for name, calibration in zip(("ECE", "D-ECE"), report.calibration, strict=True):
        metrics[name] = round(calibration.ece, 4) if calibration.ece == calibration.ece else None
        metrics[f"{name}_settings"] = calibration.settings
    return metrics


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class _Mean:
    """Means of tensors over steps, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.count = 0

    def add(self, values: dict[str, Any]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def take(self) -> dict[str, float]:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means
