"""Suite `postprocessing`: model outputs to detections beside the peers' image processors, and beside NMS."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.ops import batched_nms, box_convert
from transformers import DeformableDetrImageProcessor, DetrImageProcessor, RTDetrImageProcessor

from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmObjectDetectionOutput
from .counts import gpu_counts
from .peers import NUM_LABELS
from .results import Settings, Suite, Table, rows_of
from .timing import alternate

OURS = "drmm-hf"


@dataclass(frozen=True)
class Sizes:
    """(images, proposals) of each table."""

    cases: tuple[tuple[int, int], ...] = ((1, 300), (16, 300), (1, 2000))


def run(settings: Settings, sizes: Sizes | None = None) -> Suite:
    """Measure the suite."""
    return Suite([_table(settings, *case) for case in (sizes or Sizes()).cases])


def _table(settings: Settings, batch: int, proposals: int) -> Table:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, proposals, NUM_LABELS + 1, generator=generator).to(settings.device) * 2 - 4
    boxes = torch.rand(batch, proposals, 4, generator=generator).to(settings.device) * 0.5 + 0.1
    ours = DrmmObjectDetectionOutput(logits=logits[..., 1:].contiguous(), pred_boxes=boxes, pred_scales=boxes * 0.1)
    detr = DrmmObjectDetectionOutput(logits=logits, pred_boxes=boxes)
    target_sizes = [(480, 640)] * batch
    runs: dict[str, Callable[[], Any]] = {OURS: _processing(DrmmImageProcessor(), ours, target_sizes)}
    for name, processor, outputs in (
        ("RT-DETR", RTDetrImageProcessor(), ours),
        ("Deformable DETR", DeformableDetrImageProcessor(), ours),
        ("DETR", DetrImageProcessor(), detr),
    ):
        runs[name] = _processing(processor, outputs, target_sizes)
    runs["per-class NMS (torchvision)"] = lambda: [_nms(*image) for image in zip(logits[..., 1:], boxes, strict=True)]
    timings = alternate(runs, settings.rounds, device=settings.device, min_seconds=0.02)
    extra = {name: gpu_counts(run, settings.device) for name, run in runs.items()}
    note = (
        f"B={batch} images, K={proposals}, {NUM_LABELS} classes, threshold 0.05, to boxes in pixels; ours also gives "
        "the scales of the edges. NMS is what a detector with duplicates needs instead: every pair above 0.05, at "
        "an IoU of 0.5, of which 100 are kept. No model needs it here."
    )
    title = f"Post-processing, {batch} x {proposals}"
    return Table(title, note, rows_of(timings, extra), base=OURS)


def _processing(processor: Any, outputs: Any, target_sizes: list[tuple[int, int]]) -> Callable[[], Any]:
    return lambda: processor.post_process_object_detection(outputs, threshold=0.05, target_sizes=target_sizes)


def _nms(logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    scores = logits.sigmoid()
    component, label = (scores > 0.05).nonzero(as_tuple=True)
    return batched_nms(box_convert(boxes, "cxcywh", "xyxy")[component], scores[component, label], label, 0.5)[:100]
