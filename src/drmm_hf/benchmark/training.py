"""Suite `training`: whole training steps beside Deformable DETR's."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .counts import gpu_counts, peak_memory
from .models import build_preset, random_labels
from .peers import build_detector, tiny_fields
from .results import Settings, Suite, Table, rows_of
from .timing import alternate

PEER = "Deformable DETR R50"
_FROZEN = ("model.backbone.model.conv1.", "model.backbone.model.layer1.")


@dataclass(frozen=True)
class Case:
    """One table: presets beside a Deformable DETR of the same backbone, on the same batch.

    Attributes:
        tiny: the peer has the widths and depths of the tiny presets instead of its own.
    """

    title: str
    presets: tuple[str, ...]
    tiny: bool
    batch: int
    height: int
    width: int


FULL = (
    Case("Training step, ResNet-50", ("drmm-sparse-rcnn-r50", "drmm-adamixer-r50"), False, 1, 800, 1344),
    Case("Training step, tiny presets", ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny"), True, 8, 288, 384),
)
QUICK = (
    Case("Training step, ResNet-50", ("drmm-sparse-rcnn-r50", "drmm-adamixer-r50"), False, 1, 256, 320),
    Case("Training step, tiny presets", ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny"), True, 2, 192, 256),
)


def run(settings: Settings, cases: tuple[Case, ...] | None = None) -> Suite:
    """Measure the suite."""
    return Suite([_table(settings, case) for case in cases or (QUICK if settings.quick else FULL)])


def _table(settings: Settings, case: Case) -> Table:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(case.batch, 3, case.height, case.width, generator=generator).to(settings.device)
    labels = random_labels(case.batch, settings.device)
    peer_name = "Deformable DETR, as small" if case.tiny else PEER
    models: dict[str, nn.Module] = {name: build_preset(name) for name in case.presets}
    models[peer_name] = build_peer(case.tiny)
    steps = {name: training_step(model.to(settings.device), pixels, labels) for name, model in models.items()}
    timings = alternate(steps, settings.rounds, device=settings.device)
    extra = {}
    for name, step in steps.items():
        extra[name] = {
            "images/s": case.batch / statistics.median(timings[name].wall),
            "peak (MB)": peak_memory(step, settings.device),
            **gpu_counts(step, settings.device),
        }
    note = (
        f"Forward, loss, backward and AdamW step in float32; {case.batch} image(s) of {case.height}x{case.width} "
        f"pixels with {len(labels[0]['class_labels'])} objects each. Peak memory is beyond weights and optimizer "
        "state. Deformable DETR freezes what the preset freezes, and all BatchNorm, which ours trains; on a CPU it "
        "reads its samples by transformers' own torch code."
    )
    if case.tiny:
        note += (
            " The Deformable DETR here has a basic ResNet of 32 to 128 channels, 64 queries, width 64, 3 + 3 layers."
        )
    return Table(case.title, note, rows_of(timings, extra), base=case.presets[0])


def build_peer(tiny: bool) -> nn.Module:
    """Deformable DETR with its losses of all stages, that trains what the presets train."""
    model = build_detector(PEER, auxiliary_loss=True, **(tiny_fields() if tiny else {}))
    # Its own freezing goes by module names, and hits all of one backbone and nothing of the other.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tiny or not name.startswith(_FROZEN))
    return model


def training_step(model: nn.Module, pixels: torch.Tensor, labels: list[dict[str, torch.Tensor]]) -> Callable[[], None]:
    """One optimizer step of a detector on a batch, again and again."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()

    return step
