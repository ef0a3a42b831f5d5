"""Our models as the suites measure them, their parts, and a clock for the parts of any model."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_drmm import DrmmConfig
from ..modeling_drmm import DrmmForObjectDetection
from .peers import NUM_LABELS
from .timing import now

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
    nn.Module.to(model, device)
    return model


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


class PartClock:
    """Seconds that a model spends in its parts, call by call, by the steady clock.

    Attributes:
        records: one mapping for each call of the model, of part to seconds; "rest" is what is left.
    """

    def __init__(self, model: nn.Module, device: str = "cpu", parts: Mapping[str, Sequence[str]] = PARTS):
        self.records: list[dict[str, float]] = []
        self._device, self._parts, self._current = device, list(parts), dict.fromkeys(parts, 0.0)
        for part, paths in parts.items():
            for module in _modules_at(model, paths):
                self._watch(part, module)
        started: list[float] = []
        model.register_forward_pre_hook(lambda *_: started.append(now(self._device)))
        model.register_forward_hook(lambda *_: self._finish(now(self._device) - started.pop()))

    def _watch(self, part: str, module: nn.Module) -> None:
        started: list[float] = []

        def stop(*_: Any) -> None:
            self._current[part] += now(self._device) - started.pop()

        module.register_forward_pre_hook(lambda *_: started.append(now(self._device)))
        module.register_forward_hook(stop)

    def _finish(self, total: float) -> None:
        self.records.append({**self._current, "rest": total - sum(self._current.values())})
        self._current = dict.fromkeys(self._parts, 0.0)


def _modules_at(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for path in paths:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            continue
        found += list(module) if isinstance(module, nn.ModuleList) else [module]
    return found


def inferring(model: nn.Module, pixel_values: Tensor, autocast: torch.dtype | None = None) -> Callable[[], Any]:
    """A call of the model on the images, without gradients."""

    def run() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(pixel_values.device.type, autocast or torch.bfloat16, enabled=autocast is not None),
        ):
            return model(pixel_values)

    return run


def random_labels(batch: int, device: str, seed: int = 0, objects: int = 7) -> list[dict[str, Tensor]]:
    """Labels as transformers' detectors take them, the same number of objects in every image."""
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for _ in range(batch):
        size = 0.05 + 0.3 * torch.rand(objects, 2, generator=generator)
        center = size / 2 + torch.rand(objects, 2, generator=generator) * (1 - size)
        classes = torch.randint(NUM_LABELS, (objects,), generator=generator)
        labels.append({"class_labels": classes.to(device), "boxes": torch.cat((center, size), dim=-1).to(device)})
    return labels
