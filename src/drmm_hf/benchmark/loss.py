"""Suite `loss`: forward and backward of the objective beside the criteria of the peers, matching included."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from ..configuration_drmm import DrmmConfig
from ..loss_drmm import drmm_loss, pad_targets
from ..mixture import MixtureParameters
from .counts import gpu_counts, peak_memory, saved_memory
from .linear_mixture import linear_mixture_loss
from .peers import NUM_LABELS, build_criteria
from .results import Figure, Row, Settings, Suite, Table, rows_of
from .timing import alternate

OURS, LINEAR, LOOKUP = "drmm-hf", "image by image, linear space", "image by image, linear space, class by index"
_HEIGHT, _WIDTH = 800, 1344
_OBJECTS = 7.3  # an image with objects of COCO train2017 has as many on average


@dataclass(frozen=True)
class Sizes:
    """What is measured: the main case, and the sweeps around it."""

    batch: int = 16
    proposals: int = 300
    stages: int = 6
    sweep_proposals: tuple[int, ...] = (100, 300, 500, 1000, 2000)
    sweep_batch: tuple[int, ...] = (2, 4, 8, 16, 32)


QUICK = Sizes(sweep_proposals=(100, 300), sweep_batch=(4, 16))


@dataclass
class Case:
    """Random predictions of one batch as all the losses take them; every stage's tensors are leaves.

    Attributes:
        labels: dicts of `class_labels` (n,) and `boxes` (n, 4) cxcywh fractions.
        corners: the same boxes, (n, 4) xyxy pixels.
        stages: our parameters.
        logits, boxes: (B, K, 80) and (B, K, 4) cxcywh fractions of each stage, for the peers.
        detr_logits: (B, K, 81).
    """

    labels: list[dict[str, Tensor]]
    corners: list[Tensor]
    sizes: Tensor
    stages: list[MixtureParameters]
    logits: list[Tensor]
    boxes: list[Tensor]
    detr_logits: list[Tensor]

    def leaves(self) -> list[Tensor]:
        own = [tensor for stage in self.stages for tensor in stage[:4]]
        return [*own, *self.logits, *self.boxes, *self.detr_logits]


def object_counts(batch: int, seed: int = 0) -> list[int]:
    """Numbers of objects of a typical batch: evenly spaced quantiles of a geometric distribution, shuffled.

    Its mean of 7.3 and its long tail, from no objects to dozens, are COCO's; a random draw would make a batch of 16
    much heavier or lighter by luck.
    """
    quantiles = (np.arange(batch) + 0.5) / batch
    counts = np.floor(np.log1p(-quantiles) / np.log(_OBJECTS / (1 + _OBJECTS))).astype(int)
    return np.random.default_rng(seed).permutation(counts).tolist()


def make_case(batch: int, proposals: int, stages: int, device: str = "cpu", seed: int = 0) -> Case:
    """A random case; boxes of all sizes, predictions anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def boxes_like(*shape: int) -> Tensor:
        size = torch.exp(torch.rand(*shape, 2, generator=generator) * 3 - 3.5)
        center = size / 2 + torch.rand(*shape, 2, generator=generator) * (1 - size)
        return torch.cat((center, size), dim=-1).to(device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    pixels = torch.tensor([_WIDTH, _HEIGHT, _WIDTH, _HEIGHT], dtype=torch.float32, device=device)
    labels = [
        {"class_labels": torch.randint(NUM_LABELS, (n,), generator=generator).to(device), "boxes": boxes_like(n)}
        for n in object_counts(batch, seed)
    ]
    own, boxes = [], [boxes_like(batch, proposals) for _ in range(stages)]
    for stage in boxes:
        locations = box_convert(stage, "cxcywh", "xyxy") * pixels
        scales = 1 + 20 * normal(batch, proposals, 4).abs()
        own.append(MixtureParameters(locations, scales, normal(batch, proposals, NUM_LABELS), normal(batch, proposals)))
    case = Case(
        labels=labels,
        corners=[box_convert(label["boxes"], "cxcywh", "xyxy") * pixels for label in labels],
        sizes=pixels[:2].expand(batch, 2),
        stages=own,
        logits=[normal(batch, proposals, NUM_LABELS) - 3 for _ in range(stages)],
        boxes=boxes,
        detr_logits=[normal(batch, proposals, NUM_LABELS + 1) for _ in range(stages)],
    )
    for leaf in case.leaves():
        leaf.requires_grad_()
    return case


def losses(case: Case, compiled: bool = False) -> dict[str, Callable[[], Tensor]]:
    """Every loss of the case, from labels as the models take them to a scalar."""
    config = DrmmConfig.from_dict({"num_labels": NUM_LABELS})
    class_labels = [label["class_labels"] for label in case.labels]
    counts = [len(labels) for labels in class_labels]

    def ours(objective: Callable = drmm_loss) -> Tensor:
        targets = pad_targets(case.labels, case.sizes, NUM_LABELS)
        return objective(case.stages, targets, config, counts=counts)[0]

    found: dict[str, Callable[[], Tensor]] = {OURS: ours}
    if compiled:
        objective = torch.compile(drmm_loss, dynamic=False)
        found[f"{OURS}, compiled"] = lambda: ours(objective)
    found[LINEAR] = lambda: linear_mixture_loss(case.stages, case.corners, class_labels)
    found[LOOKUP] = lambda: linear_mixture_loss(case.stages, case.corners, class_labels, lookup=True)
    for name, criterion in build_criteria({"num_queries": case.boxes[0].shape[1]}).items():
        logits = case.detr_logits if name == "DETR" else case.logits
        found[name] = _bind(criterion, logits, case.boxes, case.labels)
    return found


def _bind(function: Callable[..., Tensor], *arguments: Any) -> Callable[[], Tensor]:
    return lambda: function(*arguments)


def with_backward(run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward of a loss into fresh gradients."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        run().backward()

    return step


def run(settings: Settings, sizes: Sizes | None = None) -> Suite:
    """Measure the suite."""
    sizes = sizes or (QUICK if settings.quick else Sizes())
    tables = [_main_table(settings, sizes)]
    figures = []
    for axis, values in (("K", sizes.sweep_proposals), ("B", sizes.sweep_batch)):
        table, figure = _sweep(settings, sizes, axis, values)
        tables.append(table)
        figures.append(figure)
    return Suite(tables, figures)


def _main_table(settings: Settings, sizes: Sizes) -> Table:
    case = make_case(sizes.batch, sizes.proposals, sizes.stages, settings.device)
    candidates = losses(case, settings.compile)
    leaves = case.leaves()
    steps = {name: with_backward(run, leaves) for name, run in candidates.items()}
    timings = alternate(steps, settings.rounds, device=settings.device, min_seconds=0.05)
    extra = {
        name: {
            "saved for backward (MB)": saved_memory(candidates[name]),
            "peak (MB)": peak_memory(step, settings.device),
            **gpu_counts(step, settings.device),
        }
        for name, step in steps.items()
    }
    counts = [len(label["class_labels"]) for label in case.labels]
    note = (
        f"Forward and backward over {sizes.stages} stages, B={sizes.batch} images, K={sizes.proposals}, "
        f"{NUM_LABELS} classes, {sum(counts)} objects ({min(counts)} to {max(counts)} an image), from the list of "
        "labels to the gradients of the predictions; with the peers' matching. Memory is that of tensors; what is "
        "saved includes the predictions themselves where a backward pass reads them. The linear-space form is written "
        "as the released code is: a loop over stages and images, densities and class probabilities as products, these "
        "over all classes; in the row below it each class probability is looked up. The peers get the same number of "
        "predictions; the proposals of their encoders, one more set to match, are left out."
    )
    return Table("Loss", note, rows_of(timings, extra), base=OURS)


def _sweep(settings: Settings, sizes: Sizes, axis: str, values: Sequence[int]) -> tuple[Table, Figure]:
    """The loss against one size: some of the losses, time and memory."""
    rows: dict[str, Row] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    chosen = (OURS, LINEAR, LOOKUP, "RT-DETR")
    for value in values:
        batch, proposals = (value, sizes.proposals) if axis == "B" else (sizes.batch, value)
        case = make_case(batch, proposals, sizes.stages, settings.device)
        found, leaves = losses(case), case.leaves()
        steps = {name: with_backward(found[name], leaves) for name in chosen}
        timings = alternate(steps, settings.rounds, device=settings.device, min_seconds=0.05)
        extra = {name: {axis: value, "peak (MB)": peak_memory(step, settings.device)} for name, step in steps.items()}
        for name, row in rows_of(timings, extra).items():
            rows[f"{name}, {axis}={value}"] = row
            curves.setdefault(name, []).append((float(value), settings.milliseconds(timings[name])))
    fixed = f"B={sizes.batch}" if axis == "K" else f"K={sizes.proposals}"
    comparisons = [
        (f"{name} / {OURS}, {axis}={value}", f"{name}, {axis}={value}", f"{OURS}, {axis}={value}")
        for value in values
        for name in chosen[1:]
    ]
    title = "Loss against the number of " + ("proposals" if axis == "K" else "images")
    note = f"As above with {fixed} and {axis} as it says."
    figure = Figure(title, axis, "forward and backward (ms)", curves)
    return Table(title, note, rows, comparisons=comparisons), figure
