"""Suite `scaling`: cost against the number of proposals and the resolution."""

from typing import Any

import torch
from torch import nn

from .measure import Settings, alternate, figure, table
from .models import build_detector, build_preset, inferring, random_pixels, stages_of

FULL = {
    "backbone": "r50",  # suffix of the presets
    "height": 800,  # network input of all but the resolution sweep
    "width": 1344,
    "proposals": (100, 300, 500, 1000, 2000),
    "resolutions": ((320, 544), (480, 800), (640, 1088), (800, 1344), (1216, 2048)),
    "peers": ("Deformable DETR R50", "RT-DETR v2 R50"),
}
QUICK = {**FULL, "height": 320, "width": 544, "proposals": (100, 300), "resolutions": ((160, 288), (320, 544))}
_DECODERS = {"Sparse R-CNN": "drmm-sparse-rcnn-{}", "AdaMixer": "drmm-adamixer-{}"}
_TOP_K = {"": {}, ", top-k 0.7": {"top_k_ratio": 0.7}}


def measure_scaling(settings: Settings, **changes: Any) -> dict[str, Any]:
    """Measure the suite, with `changes` of the sizes."""
    sizes = {**(QUICK if settings.quick else FULL), **changes}
    swept = [_proposals(settings, sizes), _resolutions(settings, sizes)]
    return {"tables": [one for one, _ in swept], "figures": [curves for _, curves in swept]}


def _proposals(settings: Settings, sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stages alone: backbone and pyramid do not know K."""
    pixels = torch.zeros(1, 3, sizes["height"], sizes["width"], device=settings.device)
    timings = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for count in sizes["proposals"]:
        runs = {}
        for name, preset in _DECODERS.items():
            for more, change in _TOP_K.items():
                model = build_preset(preset.format(sizes["backbone"]), settings.device, num_proposals=count, **change)
                with torch.inference_mode():
                    features = model.model.pyramid(model.model.backbone(pixels))
                    features = [torch.zeros_like(feature).normal_() for feature in features]
                runs[name + more] = inferring(stages_of(model, features), pixels)
                del model.model.backbone  # the weights of one stand for all
        for name, timing in alternate(runs, settings.rounds, device=settings.device).items():
            timings[f"{name}, K={count}"] = timing
            curves.setdefault(name, []).append((float(count), settings.milliseconds(timing)))
    title = "Stages against the number of proposals"
    shape = f"{sizes['height']}x{sizes['width']}"
    note = f"The stages and heads alone of the {sizes['backbone']} presets, one image of {shape} pixels."
    return table(title, note, timings), figure(title, "K", "stages (ms)", curves)


def _resolutions(settings: Settings, sizes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    presets = [preset.format(sizes["backbone"]) for preset in _DECODERS.values()]
    models: dict[str, nn.Module] = {name: build_preset(name, settings.device) for name in presets}
    models |= {name: build_detector(name).to(settings.device) for name in sizes["peers"]}
    timings = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for height, width in sizes["resolutions"]:
        pixels = random_pixels(height, width, settings.device)
        runs = {name: inferring(model, pixels) for name, model in models.items()}
        for name, timing in alternate(runs, settings.rounds, device=settings.device).items():
            timings[f"{name}, {height}x{width}"] = timing
            curves.setdefault(name, []).append((height * width / 1e6, settings.milliseconds(timing)))
    title = "Models against the resolution"
    swept = table(title, "One image, float32, eager.", timings)
    return swept, figure(title, "megapixels", "forward (ms)", curves)
