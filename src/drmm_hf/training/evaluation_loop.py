"""Evaluation during a training, shared among its processes."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data import DetectionDataset
from ..evaluation import evaluate_detections, predict_dataset
from ..image_processing_drmm import DrmmImageProcessor


def evaluate_model(
    accelerator: Accelerator,
    model: nn.Module,
    processor: DrmmImageProcessor,
    dataset: DetectionDataset,
    results_path: Path,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
) -> dict[str, Any]:
    """COCO numbers and calibration of a model; the detections go to `results_path` in COCO's results format.

    Every process predicts its share of the batches. Whatever their number, the batches are the same ones and every
    image is in one of them, so the numbers are the same.

    Returns:
        On every process AP, AP50, AP75, AR100 and the other COCO numbers, and ECE (paper Eq. 9) over all of the 100
        detections an image, with `ECE_settings` saying how.
    """
    results = predict_dataset(
        model,
        processor,
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        progress=accelerator.is_main_process,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    results = gather_results(accelerator, results, dataset)
    metrics: list[Any] = [None]
    if accelerator.is_main_process:
        results_path.write_text(json.dumps(results))
        metrics = [_summarize(dataset, results)]
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(metrics, src=0)
    return metrics[0]


def gather_results(
    accelerator: Accelerator, results: list[dict[str, Any]], dataset: DetectionDataset
) -> list[dict[str, Any]]:
    """The COCO results of all processes, images in the order of the data set, on every process."""
    if accelerator.num_processes == 1:
        return results
    position = {image_id: index for index, image_id in enumerate(dataset.dataset["image_id"])}
    table = torch.tensor(
        [[position[r["image_id"]], r["category_id"], *r["bbox"], r["score"]] for r in results], dtype=torch.float64
    ).reshape(-1, 7)
    gathered = _gather_rows(accelerator, table)
    # stable: within an image the detections stay in the order of their process
    gathered = gathered[gathered[:, 0].argsort(stable=True)]
    image_ids = dataset.dataset["image_id"]
    return [
        {"image_id": image_ids[int(row[0])], "category_id": int(row[1]), "bbox": row[2:6], "score": row[6]}
        for row in gathered.tolist()
    ]


def _gather_rows(accelerator: Accelerator, table: Tensor) -> Tensor:
    table = table.to(accelerator.device)
    counts = accelerator.gather(torch.tensor([len(table)], device=accelerator.device)).tolist()
    padded = torch.cat((table, table.new_zeros(max(counts) - len(table), table.shape[1])))
    everything = accelerator.gather(padded.unsqueeze(0))
    return torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)]).cpu()


def _summarize(dataset: DetectionDataset, results: list[dict[str, Any]]) -> dict[str, Any]:
    report = evaluate_detections(dataset.annotations_path, results)
    metrics: dict[str, Any] = {name: round(value, 4) for name, value in report.metrics.items()}
    for name, calibration in zip(("ECE", "D-ECE"), report.calibration, strict=True):
        metrics[name] = round(calibration.ece, 4) if calibration.ece == calibration.ece else None
        metrics[f"{name}_settings"] = calibration.settings
    return metrics
