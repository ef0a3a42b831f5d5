"""Evaluations during a training and at its end."""

import math
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data import DetectionDataset
from ..evaluation import evaluate_detections, predict_dataset
from ..files import write_json
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from .config import TrainConfig


def evaluation_steps(config: TrainConfig, num_steps: int, steps_per_epoch: float) -> set[int]:
    """The steps after which `config` wants an evaluation."""
    every = config.eval_every
    steps = set(range(every, num_steps + 1, every)) if every else set()
    if config.eval_every_epochs:
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
    results = predict_dataset(
        model,
        processor,
        dataset,
        accelerator=accelerator,
        batch_size=config.eval_batch_size,
        num_workers=config.num_workers,
    )
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        write_json(Path(config.output) / "results.json", results)
        report = evaluate_detections(dataset.annotations_path, results)
        metrics = {name: round(value, 4) for name, value in report.metrics.items()}
        for name, calibration in report.named_calibration.items():
            metrics[name] = round(calibration.ece, 4) if math.isfinite(calibration.ece) else None
            metrics[f"{name}_settings"] = calibration.settings
    return broadcast_object_list([metrics])[0]
