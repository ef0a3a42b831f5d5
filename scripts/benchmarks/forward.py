"""Suites `inference`, `training` and `postprocessing`: whole models and their parts beside the peers'."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert
from transformers import DeformableDetrImageProcessor, DetrImageProcessor, RTDetrImageProcessor

from drmm_hf import DrmmImageProcessor
from drmm_hf.modeling_drmm import DrmmObjectDetectionOutput
from drmm_hf.roi_align import multilevel_roi_align

from .measure import Settings, alternate, gpu_counts, peak_memory, table
from .models import (
    DETECTORS,
    NUM_LABELS,
    build_detector,
    build_preset,
    clock_parts,
    inferring,
    random_labels,
    random_pixels,
    tiny_fields,
    training_step,
)
from .released import released_regions

OURS, PEER = "drmm-hf", "Deformable DETR R50"
STRIDES = (4, 8, 16, 32)
INFERENCE = {
    "height": 800,
    "width": 1344,
    "presets": (
        "drmm-sparse-rcnn-r50",
        "drmm-adamixer-r50",
        "drmm-sparse-rcnn-r50-2000",
        "drmm-sparse-rcnn-tiny",
        "drmm-adamixer-tiny",
    ),
    "peers": tuple(DETECTORS),
}
QUICK_INFERENCE = {**INFERENCE, "height": 320, "width": 544}
# ours of the same backbone, tiny or not, and the batch (images, height, width)
_LARGE = ("Training step, ResNet-50", ("drmm-sparse-rcnn-r50", "drmm-adamixer-r50"), False)
_TINY = ("Training step, tiny presets", ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny"), True)
TRAINING = ((*_LARGE, (1, 800, 1344)), (*_TINY, (8, 288, 384)))
QUICK_TRAINING = ((*_LARGE, (1, 256, 320)), (*_TINY, (2, 192, 256)))
_FROZEN = ("model.backbone.model.conv1.", "model.backbone.model.layer1.")


def measure_inference(settings: Settings, **changes: Any) -> dict[str, Any]:
    """Measure the suite `inference`, with `changes` of the sizes."""
    sizes = {**(QUICK_INFERENCE if settings.quick else INFERENCE), **changes}
    pixels = random_pixels(sizes["height"], sizes["width"], settings.device)
    tables = [_models(settings, sizes, pixels), _variants(settings, sizes, pixels), _regions(settings)]
    return {"tables": tables}


def _models(settings: Settings, sizes: dict[str, Any], pixels: Tensor) -> dict[str, Any]:
    """Whole models, with the time of their parts."""
    models: dict[str, nn.Module] = {name: build_preset(name) for name in sizes["presets"]}
    models |= {name: build_detector(name) for name in sizes["peers"]}
    clocks = {name: clock_parts(model.to(settings.device), settings.device) for name, model in models.items()}
    runs = {name: inferring(model, pixels) for name, model in models.items()}
    timings = alternate(runs, settings.rounds, device=settings.device)
    extra: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        records = clocks[name][-settings.rounds :]
        parts = {f"{part} (ms)": statistics.median(r[part] for r in records) * 1e3 for part in records[0]}
        extra[name] = {**parts, "peak (MB)": peak_memory(run, settings.device), **gpu_counts(run, settings.device)}
    note = (
        f"One image of {sizes['height']}x{sizes['width']} pixels to the model's output, float32, eager, random "
        "weights, 80 classes; our boxes lie all over the image, as a trained model's do. Parts are measured by hooks "
        "in the same calls; our stages include their heads. Peak memory is that of tensors beyond the weights."
    )
    pairs = [(f"{ours} / {peer}", ours, peer) for ours in sizes["presets"][:2] for peer in sizes["peers"]]
    return table("Inference", note, timings, extra, base=sizes["presets"][0], comparisons=pairs)


def _variants(settings: Settings, sizes: dict[str, Any], pixels: Tensor) -> dict[str, Any]:
    """The same model eager, in bfloat16, and compiled where that is asked for."""
    runs: dict[str, Callable[[], Any]] = {}
    pairs = []
    for preset in sizes["presets"][:2]:
        model = build_preset(preset, settings.device)
        forms = {"": model, ", compiled": torch.compile(model, dynamic=False)} if settings.compile else {"": model}
        for form, variant in forms.items():
            runs[f"{preset}{form}"] = inferring(variant, pixels)
            runs[f"{preset}{form}, bfloat16"] = inferring(variant, pixels, torch.bfloat16)
        names = [name for name in runs if name.startswith(f"{preset},")]
        pairs += [(f"{preset} / {name.removeprefix(preset + ', ')}", preset, name) for name in names]
    note = (
        "The same input by the same weights; bfloat16 is autocast. A ratio above one is a gain. On a CPU a compiled "
        "model calls the same convolutions and matrix products, which is where nearly all of the time goes."
    )
    timings = alternate(runs, settings.rounds, device=settings.device)
    return table("Precision and compilation", note, timings, comparisons=pairs)


def _regions(settings: Settings) -> dict[str, Any]:
    """Reading regions, forward and backward."""
    batch, num_boxes, dim, height, width = (2, 32, 16, 128, 160) if settings.quick else (1, 300, 256, 800, 1344)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(batch, dim, height // s, width // s, generator=generator) for s in STRIDES]
    center = torch.rand(batch, num_boxes, 2, generator=generator) * torch.tensor([width, height])
    size = torch.exp(torch.rand(batch, num_boxes, 2, generator=generator) * 4) * 10
    boxes = torch.cat((center - size / 2, center + size / 2), dim=-1).to(settings.device)
    # Each in the memory format that it gets in its model.
    formats = (torch.contiguous_format, torch.channels_last)
    plain, last = ([f.to(settings.device, memory_format=form).requires_grad_() for f in features] for form in formats)

    def step(read: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            pooled = read(leaves, boxes, STRIDES)
            pooled.backward(torch.ones_like(pooled))

        return run

    runs: dict[str, Callable[[], Any]] = {
        "regions, forward": torch.no_grad()(lambda: multilevel_roi_align(last, boxes, STRIDES)),
        "regions, forward, as released": torch.no_grad()(lambda: released_regions(plain, boxes, STRIDES)),
        "regions, forward and backward": step(multilevel_roi_align, last),
        "regions, forward and backward, as released": step(released_regions, plain),
    }
    timings = alternate(runs, settings.rounds, device=settings.device, min_seconds=0.02)
    pairs = [(f"as released / {name}", f"{name}, as released", name) for name in list(runs)[::2]]
    note = f"RoIAlign of {batch} x {num_boxes} boxes from a pyramid of {dim} channels, {height}x{width} pixels."
    return table("Reading regions", note, timings, comparisons=pairs)


def measure_training(settings: Settings, cases: Sequence[tuple] | None = None) -> dict[str, Any]:
    """Measure the suite `training`: whole training steps beside Deformable DETR's."""
    cases = cases or (QUICK_TRAINING if settings.quick else TRAINING)
    return {"tables": [_training(settings, *case) for case in cases]}


def _training(
    settings: Settings, title: str, presets: Sequence[str], tiny: bool, shape: tuple[int, int, int]
) -> dict[str, Any]:
    batch, height, width = shape
    pixels, labels = random_pixels(height, width, settings.device, batch), random_labels(batch, settings.device)
    models: dict[str, nn.Module] = {name: build_preset(name) for name in presets}
    models["Deformable DETR, as small" if tiny else PEER] = build_training_peer(tiny)
    steps = {name: training_step(model.to(settings.device), pixels, labels) for name, model in models.items()}
    timings = alternate(steps, settings.rounds, device=settings.device)
    extra = {
        name: {
            "images/s": batch / statistics.median(timings[name]["wall"]),
            "peak (MB)": peak_memory(step, settings.device),
            **gpu_counts(step, settings.device),
        }
        for name, step in steps.items()
    }
    note = (
        f"Forward, loss, backward and AdamW step in float32; {batch} image(s) of {height}x{width} "
        f"pixels with {len(labels[0]['class_labels'])} objects each. Peak memory is beyond weights and optimizer "
        "state. Deformable DETR freezes what the preset freezes, and all BatchNorm, which ours trains; on a CPU it "
        "reads its samples by transformers' own torch code."
    )
    if tiny:
        note += (
            " The Deformable DETR here has a basic ResNet of 32 to 128 channels, 64 queries, width 64, 3 + 3 layers."
        )
    return table(title, note, timings, extra, base=presets[0])


def build_training_peer(tiny: bool) -> nn.Module:
    """Deformable DETR with its losses of all stages, that trains what the presets train."""
    model = build_detector(PEER, auxiliary_loss=True, **(tiny_fields() if tiny else {}))
    # Its own freezing goes by module names, and hits all of one backbone and nothing of the other.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tiny or not name.startswith(_FROZEN))
    return model


def measure_postprocessing(
    settings: Settings, cases: Sequence[tuple[int, int]] = ((1, 300), (16, 300), (1, 2000))
) -> dict[str, Any]:
    """Measure the suite `postprocessing` for (images, proposals): beside the peers' image processors, and NMS."""
    return {"tables": [_postprocessing(settings, *case) for case in cases]}


def _postprocessing(settings: Settings, batch: int, proposals: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, proposals, NUM_LABELS + 1, generator=generator).to(settings.device) * 2 - 4
    boxes = torch.rand(batch, proposals, 4, generator=generator).to(settings.device) * 0.5 + 0.1
    outputs = DrmmObjectDetectionOutput(logits=logits[..., 1:].contiguous(), pred_boxes=boxes, pred_scales=boxes * 0.1)
    with_background = DrmmObjectDetectionOutput(logits=logits, pred_boxes=boxes)

    def processing(processor: Any, outputs: Any = outputs) -> Callable[[], Any]:
        sizes = [(480, 640)] * batch
        return lambda: processor.post_process_object_detection(outputs, threshold=0.05, target_sizes=sizes)

    runs: dict[str, Callable[[], Any]] = {
        OURS: processing(DrmmImageProcessor()),
        "RT-DETR": processing(RTDetrImageProcessor()),
        "Deformable DETR": processing(DeformableDetrImageProcessor()),
        "DETR": processing(DetrImageProcessor(), with_background),
        "per-class NMS (torchvision)": lambda: [_nms(*image) for image in zip(logits[..., 1:], boxes, strict=True)],
    }
    timings = alternate(runs, settings.rounds, device=settings.device, min_seconds=0.02)
    extra = {name: gpu_counts(run, settings.device) for name, run in runs.items()}
    note = (
        f"B={batch} images, K={proposals}, {NUM_LABELS} classes, threshold 0.05, to boxes in pixels; ours also gives "
        "the scales of the edges. NMS is what a detector with duplicates needs instead: every pair above 0.05, at "
        "an IoU of 0.5, of which 100 are kept. No model needs it here."
    )
    return table(f"Post-processing, {batch} x {proposals}", note, timings, extra, base=OURS)


def _nms(logits: Tensor, boxes: Tensor) -> Tensor:
    scores = logits.sigmoid()
    component, label = (scores > 0.05).nonzero(as_tuple=True)
    return batched_nms(box_convert(boxes, "cxcywh", "xyxy")[component], scores[component, label], label, 0.5)[:100]
