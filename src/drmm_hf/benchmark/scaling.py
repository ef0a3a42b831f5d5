"""Suite `scaling`: cost against the number of proposals and the resolution, and against the machine's limits."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .models import build_preset, inferring, stages_of
from .peers import build_detector
from .results import Figure, Row, Settings, Suite, Table, rows_of
from .roofline import OperatorWork, Peaks, Work, measure_peaks
from .timing import alternate

_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Sparse R-CNN": ("drmm-sparse-rcnn-{}", {}),
    "Sparse R-CNN, top-k 0.7": ("drmm-sparse-rcnn-{}", {"top_k_ratio": 0.7}),
    "AdaMixer": ("drmm-adamixer-{}", {}),
    "AdaMixer, top-k 0.7": ("drmm-adamixer-{}", {"top_k_ratio": 0.7}),
}
_DECODERS = ("drmm-sparse-rcnn-{}", "drmm-adamixer-{}")
_SHOWN = 8


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        backbone: suffix of the presets.
        height, width: network input of everything but the resolution sweep, pixels.
        proposals, resolutions: the sweeps.
        peers: in the resolution sweep.
        matrix: side of the product that the peak is measured with.
    """

    backbone: str = "r50"
    height: int = 800
    width: int = 1344
    proposals: tuple[int, ...] = (100, 300, 500, 1000, 2000)
    resolutions: tuple[tuple[int, int], ...] = ((320, 544), (480, 800), (640, 1088), (800, 1344), (1216, 2048))
    peers: tuple[str, ...] = ("Deformable DETR R50", "RT-DETR v2 R50")
    matrix: int = 2048


QUICK = Sizes(height=320, width=544, proposals=(100, 300), resolutions=((160, 288), (320, 544)))


def run(settings: Settings, sizes: Sizes | None = None) -> Suite:
    """Measure the suite."""
    sizes = sizes or (QUICK if settings.quick else Sizes())
    tables, figures = [], []
    for table, figure in (_proposals(settings, sizes), _resolutions(settings, sizes)):
        tables.append(table)
        figures.append(figure)
    peaks = measure_peaks(settings.device, sizes.matrix)
    for decoder in _DECODERS:
        tables.append(_roofline(settings, sizes, decoder.format(sizes.backbone), peaks))
    return Suite(tables, figures)


def _proposals(settings: Settings, sizes: Sizes) -> tuple[Table, Figure]:
    """The stages alone: backbone and pyramid do not know K."""
    pixels = torch.zeros(1, 3, sizes.height, sizes.width, device=settings.device)
    rows: dict[str, Row] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for count in sizes.proposals:
        runs = {}
        for name, (preset, changes) in _VARIANTS.items():
            model = build_preset(preset.format(sizes.backbone), settings.device, num_proposals=count, **changes)
            with torch.inference_mode():
                features = [torch.zeros_like(f).normal_() for f in model.model.pyramid(model.model.backbone(pixels))]
            runs[f"{name}, K={count}"] = inferring(stages_of(model, features), pixels)
            del model.model.backbone  # the weights of one stand for all
        timings = alternate(runs, settings.rounds, device=settings.device)
        rows.update(rows_of(timings))
        for name in _VARIANTS:
            curves.setdefault(name, []).append((float(count), settings.milliseconds(timings[f"{name}, K={count}"])))
    note = (
        f"The stages and heads alone of the {sizes.backbone} presets, one image of {sizes.height}x{sizes.width} pixels."
    )
    title = "Stages against the number of proposals"
    return Table(title, note, rows), Figure(title, "K", "stages (ms)", curves)


def _resolutions(settings: Settings, sizes: Sizes) -> tuple[Table, Figure]:
    models: dict[str, nn.Module] = {d.format(sizes.backbone): build_preset(d.format(sizes.backbone)) for d in _DECODERS}
    models |= {name: build_detector(name) for name in sizes.peers}
    for model in models.values():
        model.to(settings.device)
    rows: dict[str, Row] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for height, width in sizes.resolutions:
        pixels = torch.randn(1, 3, height, width, device=settings.device)
        runs = {f"{name}, {height}x{width}": inferring(model, pixels) for name, model in models.items()}
        timings = alternate(runs, settings.rounds, device=settings.device)
        rows.update(rows_of(timings))
        for name in models:
            point = (height * width / 1e6, settings.milliseconds(timings[f"{name}, {height}x{width}"]))
            curves.setdefault(name, []).append(point)
    title = "Models against the resolution"
    return Table(title, "One image, float32, eager.", rows), Figure(title, "megapixels", "forward (ms)", curves)


def _roofline(settings: Settings, sizes: Sizes, preset: str, peaks: Peaks) -> Table:
    model = build_preset(preset, settings.device)
    pixels = torch.randn(1, 3, sizes.height, sizes.width, device=settings.device)
    found: list[Mapping[str, Work]] = []
    with torch.no_grad():
        model(pixels)
        for _ in range(settings.rounds):
            with OperatorWork(peaks, settings.device) as mode:
                model(pixels)
            found.append(mode.work)
    rows = _work_rows(found)
    total = sum(work.flops for work in found[0].values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    note = (
        f"`{preset}`, one image of {sizes.height}x{sizes.width} pixels, operator by operator. The machine reaches "
        f"{peaks.flops / 1e9:.0f} GFLOP/s in a float32 convolution or matrix product, whichever is faster, and "
        f"{peaks.bytes / 1e9:.1f} GB/s in a copy; the bound is what an operator's FLOPs or bytes (inputs and outputs, "
        "each once) need at that, whichever is longer, and the gap is what it takes beyond (none where the bytes are "
        "still in the cache). Fused into one, all of it "
        f"would need {max(total / peaks.flops, weights / peaks.bytes) * 1e3:.0f} ms: {total / 1e9:.0f} GFLOP, and "
        f"{weights / 1e6:.0f} MB of weights to read. FLOPs are those of convolutions, matrix products and attention."
    )
    return Table(f"Roofline: {preset}", note, rows)


def _work_rows(found: list[Mapping[str, Work]]) -> dict[str, Row]:
    """The operators that take longest by the median of the rounds, the rest, and all."""
    seconds = {name: statistics.median(work[name].seconds for work in found) for name in found[0]}
    order = sorted(seconds, key=lambda name: -seconds[name])
    groups = {name: [name] for name in order[:_SHOWN]} | {"everything else": order[_SHOWN:], "all": order}
    rows = {}
    for name, members in groups.items():
        parts = [found[0][member] for member in members]
        taken, bound = sum(seconds[m] for m in members), sum(part.bound for part in parts)
        rows[name] = Row(
            extra={
                "measured (ms)": taken * 1e3,
                "GFLOP": sum(part.flops for part in parts) / 1e9,
                "MB": sum(part.bytes for part in parts) / 1e6,
                "bound (ms)": bound * 1e3,
                "gap (ms)": (taken - bound) * 1e3,
            }
        )
    return rows
