"""What the suites measure: our presets and transformers' detectors, with random weights and without downloads."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from drmm_hf import DrmmConfig, DrmmForObjectDetection

from .measure import now

NUM_LABELS = 80
DETECTORS = {
    "DETR R50": "Detr",
    "Deformable DETR R50": "DeformableDetr",
    "RT-DETR v2 R50": "RTDetrV2",
    "D-FINE L": "DFine",
}
"""RT-DETR v2 and D-FINE have no timm ResNet: their own ResNet-50-D, and HGNetV2-B4, the nearest that it comes with."""
_BACKBONE_OUTPUTS = {"Detr": [4], "DeformableDetr": [2, 3, 4]}
PARTS = {
    "backbone": ("model.backbone",),
    "pyramid or encoder": ("model.pyramid", "model.encoder"),
    "stages or decoder": ("model.stages", "model.heads", "model.decoder"),
}
"""Parts, with the modules that make each of them up in our models and in transformers' detectors."""


def build_preset(name: str, device: str = "cpu", **changes: Any) -> DrmmForObjectDetection:
    """A preset with 80 classes and random weights, in evaluation mode.

    Its boxes start where a trained model's end, all over the image and of all sizes, and random weights hardly move
    them: how long reading a region takes depends on where it is, and untrained boxes are all in one place.
    """
    model = DrmmForObjectDetection(DrmmConfig.from_preset(name, num_labels=NUM_LABELS, **changes)).eval()
    boxes = model.model.proposals.boxes
    generator = torch.Generator().manual_seed(0)
    sizes = 0.03 * 20.0 ** torch.rand(len(boxes), 2, generator=generator)  # 3 to 60 % of the image
    centers = sizes / 2 + torch.rand(len(boxes), 2, generator=generator) * (1 - sizes)
    with torch.no_grad():
        boxes.copy_(torch.cat((centers, sizes), dim=-1))
    return model.to(device)


def build_detector(name: str, **changes: Any) -> nn.Module:
    """One of `DETECTORS` in its default configuration but for `changes`, with 80 classes, in evaluation mode."""
    prefix = DETECTORS[name]
    fields: dict[str, Any] = {"num_labels": NUM_LABELS}
    if prefix in _BACKBONE_OUTPUTS:
        fields["backbone_config"] = transformers.TimmBackboneConfig.from_dict(
            {"backbone": "resnet50", "out_indices": _BACKBONE_OUTPUTS[prefix], "freeze_batch_norm_2d": True}
        )
    config = getattr(transformers, f"{prefix}Config")(**{**fields, **changes})
    return getattr(transformers, f"{prefix}ForObjectDetection")(config).eval()


def tiny_fields() -> dict[str, Any]:
    """Fields of a Deformable DETR as wide and deep as our tiny presets, backbone included."""
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    sizes = {"layers": 3, "ffn_dim": 256, "attention_heads": 4}
    fields = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes.items()}
    return {"backbone_config": backbone, "d_model": 64, "num_queries": 64, **fields}


class _Given(nn.Module):
    """Returns what it was given, whatever it is called with."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Any:
        return self.value


def stages_of(model: DrmmForObjectDetection, features: Sequence[Tensor]) -> nn.Module:
    """The model without its head, reading `features` in place of what backbone and pyramid would compute."""
    inner = copy.copy(model.model)
    inner._modules = {**inner._modules, "backbone": _Given(()), "pyramid": _Given(list(features))}
    return inner


def clock_parts(model: nn.Module, device: str = "cpu") -> list[dict[str, float]]:
    """Watch a model, from now on; the list gets, for each of its calls, the seconds of its `PARTS` by the steady clock,
    and "rest" for what is left.
    """
    records: list[dict[str, float]] = []
    seconds = dict.fromkeys(PARTS, 0.0)

    def watch(module: nn.Module, report: Callable[[float], None]) -> None:
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(now(device)))
        module.register_forward_hook(lambda *_: report(now(device) - started.pop()))

    def add(part: str, value: float) -> None:
        seconds[part] += value

    def finish(total: float) -> None:
        records.append({**seconds, "rest": total - sum(seconds.values())})
        seconds.update(dict.fromkeys(PARTS, 0.0))

    modules = dict(model.named_modules())
    for part, paths in PARTS.items():
        for found in (modules[path] for path in paths if path in modules):
            for module in found if isinstance(found, nn.ModuleList) else [found]:
                watch(module, functools.partial(add, part))
    watch(model, finish)
    return records


def inferring(model: nn.Module, pixel_values: Tensor, autocast: torch.dtype | None = None) -> Callable[[], Any]:
    """A call of the model on the images, without gradients."""

    def run() -> Any:
        kind = pixel_values.device.type
        with torch.inference_mode(), torch.autocast(kind, autocast or torch.bfloat16, enabled=autocast is not None):
            return model(pixel_values)

    return run


def training_step(model: nn.Module, pixels: Tensor, labels: list[dict[str, Tensor]]) -> Callable[[], None]:
    """One optimizer step of a detector on a batch, again and again."""
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()

    return step


def random_pixels(height: int, width: int, device: str, batch: int = 1) -> Tensor:
    """The same noise at every call, (batch, 3, height, width)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)


def random_labels(batch: int, device: str, objects: int = 7, num_labels: int = NUM_LABELS) -> list[dict[str, Tensor]]:
    """Labels as transformers' detectors take them, the same number of objects in every image."""
    generator = torch.Generator().manual_seed(0)
    labels = []
    for _ in range(batch):
        size = 0.05 + 0.3 * torch.rand(objects, 2, generator=generator)
        center = size / 2 + torch.rand(objects, 2, generator=generator) * (1 - size)
        classes = torch.randint(num_labels, (objects,), generator=generator)
        labels.append({"class_labels": classes.to(device), "boxes": torch.cat((center, size), dim=-1).to(device)})
    return labels
