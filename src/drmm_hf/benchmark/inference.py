"""Suite `inference`: a forward pass of our models beside the peers', and our parts beside the released code's."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..roi_align_drmm import multilevel_roi_align
from .counts import gpu_counts, peak_memory
from .models import PartClock, build_preset, inferring, stages_of
from .peers import DETECTORS, build_detector
from .released_forward import ReleasedPyramid, ReleasedStages, released_regions
from .results import Settings, Suite, Table, rows_of
from .timing import alternate

STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        height, width: network input, pixels.
        presets: our models; the first is the one that the others are compared with.
        peers: names out of `peers.DETECTORS`.
        released: the preset of the comparison with the released code's forward.
    """

    height: int = 800
    width: int = 1344
    presets: tuple[str, ...] = (
        "drmm-sparse-rcnn-r50",
        "drmm-adamixer-r50",
        "drmm-sparse-rcnn-r50-2000",
        "drmm-sparse-rcnn-tiny",
        "drmm-adamixer-tiny",
    )
    peers: tuple[str, ...] = tuple(DETECTORS)
    released: str = "drmm-sparse-rcnn-r50"


QUICK = Sizes(height=320, width=544)


def run(settings: Settings, sizes: Sizes | None = None) -> Suite:
    """Measure the suite."""
    sizes = sizes or (QUICK if settings.quick else Sizes())
    tables = [_models(settings, sizes), _variants(settings, sizes), _released(settings, sizes)]
    return Suite([*tables, _regions(settings)])


def _pixels(settings: Settings, sizes: Sizes, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, sizes.height, sizes.width, generator=generator).to(settings.device)


def _models(settings: Settings, sizes: Sizes) -> Table:
    """Whole models, with the time of their parts."""
    pixels = _pixels(settings, sizes)
    models: dict[str, nn.Module] = {name: build_preset(name) for name in sizes.presets}
    models |= {name: build_detector(name) for name in sizes.peers}
    runs, clocks = {}, {}
    for name, model in models.items():
        clocks[name] = PartClock(model.to(settings.device), settings.device)
        runs[name] = inferring(model, pixels)
    timings = alternate(runs, settings.rounds, device=settings.device)
    extra: dict[str, dict[str, Any]] = {}
    for name, model_run in runs.items():
        records = clocks[name].records[-settings.rounds :]
        parts = {f"{part} (ms)": statistics.median(r[part] for r in records) * 1e3 for part in records[0]}
        peak = {"peak (MB)": peak_memory(model_run, settings.device)}
        extra[name] = {**parts, **peak, **gpu_counts(model_run, settings.device)}
    note = (
        f"One image of {sizes.height}x{sizes.width} pixels to the model's output, float32, eager, random weights, "
        "80 classes; our boxes lie all over the image, as a trained model's do. Parts are measured by hooks in the "
        "same calls; our stages include their heads. Peak memory is that of tensors beyond the weights."
    )
    pairs = [(f"{ours} / {peer}", ours, peer) for ours in sizes.presets[:2] for peer in sizes.peers]
    return Table("Inference", note, rows_of(timings, extra), base=sizes.presets[0], comparisons=pairs)


def _variants(settings: Settings, sizes: Sizes) -> Table:
    """The same model eager, in bfloat16, and compiled where that is asked for."""
    pixels = _pixels(settings, sizes)
    runs: dict[str, Callable[[], Any]] = {}
    pairs = []
    for preset in sizes.presets[:2]:
        model = build_preset(preset, settings.device)
        runs[preset] = inferring(model, pixels)
        runs[f"{preset}, bfloat16"] = inferring(model, pixels, torch.bfloat16)
        if settings.compile:
            compiled = cast(nn.Module, torch.compile(model, dynamic=False))
            runs[f"{preset}, compiled"] = inferring(compiled, pixels)
            runs[f"{preset}, compiled, bfloat16"] = inferring(compiled, pixels, torch.bfloat16)
        pairs += [
            (f"{preset} / {name.removeprefix(preset + ', ')}", preset, name) for name in runs if preset + "," in name
        ]
    timings = alternate(runs, settings.rounds, device=settings.device)
    note = (
        "The same input by the same weights; bfloat16 is autocast. A ratio above one is a gain. On a CPU a compiled "
        "model calls the same convolutions and matrix products, which is where nearly all of the time goes."
    )
    return Table("Precision and compilation", note, rows_of(timings), comparisons=pairs)


def _released(settings: Settings, sizes: Sizes) -> Table:
    """Our parts against transcriptions of the released forward over the same weights."""
    pixels = _pixels(settings, sizes)
    model = build_preset(sizes.released, settings.device)
    inner = model.model
    released_pyramid = ReleasedPyramid(model).eval().to(settings.device)
    released_stages = ReleasedStages(model).eval().to(settings.device)
    with torch.inference_mode():
        ours = inner.pyramid(inner.backbone(pixels))
        theirs = [feature.contiguous() for feature in ours]
    strides = [round(sizes.width / feature.shape[-1]) for feature in ours]
    image_sizes = pixels.new_tensor([[sizes.width, sizes.height]])
    stages = stages_of(model, ours)

    def without_gradient(function: Callable[[], Any]) -> Callable[[], Any]:
        return torch.inference_mode()(function)

    runs = {
        "backbone and pyramid": without_gradient(lambda: inner.pyramid(inner.backbone(pixels))),
        "backbone and pyramid, as released": without_gradient(lambda: released_pyramid(pixels)),
        "stages": without_gradient(lambda: stages(pixels)),
        "stages, as released": without_gradient(lambda: released_stages(theirs, strides, image_sizes)),
    }
    timings = alternate(runs, settings.rounds, device=settings.device)
    note = (
        f"`{sizes.released}`, one image of {sizes.height}x{sizes.width} pixels, the same weights. As released: maps in "
        "NCHW, torchvision's RoIAlign level by level, `nn.MultiheadAttention`, all outputs of all stages."
    )
    names = list(runs)
    pairs = [(f"{ours} / as released", ours, released) for ours, released in zip(names[::2], names[1::2], strict=True)]
    return Table("Parts against the released forward", note, rows_of(timings), comparisons=pairs)


def _regions(settings: Settings) -> Table:
    """Reading regions, forward and backward."""
    batch, num_boxes, dim, height, width = (2, 32, 16, 128, 160) if settings.quick else (1, 300, 256, 800, 1344)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(batch, dim, height // s, width // s, generator=generator) for s in STRIDES]
    center = torch.rand(batch, num_boxes, 2, generator=generator) * torch.tensor([width, height])
    size = torch.exp(torch.rand(batch, num_boxes, 2, generator=generator) * 4) * 10
    boxes = torch.cat((center - size / 2, center + size / 2), dim=-1).to(settings.device)
    # Each in the memory format that it gets in its model.
    plain = [f.to(settings.device).requires_grad_() for f in features]
    last = [f.to(settings.device).contiguous(memory_format=torch.channels_last).requires_grad_() for f in features]

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
    names = list(runs)
    pairs = [(f"as released / {ours}", released, ours) for ours, released in zip(names[::2], names[1::2], strict=True)]
    note = f"RoIAlign of {batch} x {num_boxes} boxes from a pyramid of {dim} channels, {height}x{width} pixels."
    return Table("Reading regions", note, rows_of(timings), comparisons=pairs)
