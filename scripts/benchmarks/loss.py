"""Suite `loss`: forward and backward of the objective beside the criteria of the peers, matching included."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torchvision.ops import box_convert
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from drmm_hf import DrmmConfig
from drmm_hf.loss import drmm_loss, pad_targets
from drmm_hf.mixture import MixtureParameters

from .measure import Settings, alternate, figure, gpu_counts, peak_memory, saved_memory, table
from .models import NUM_LABELS
from .released import linear_mixture_loss

OURS, LINEAR, LOOKUP = "drmm-hf", "image by image, linear space", "image by image, linear space, class by index"
FULL = {
    "batch": 16,
    "proposals": 300,
    "stages": 6,
    "sweep_proposals": (100, 300, 500, 1000, 2000),
    "sweep_batch": (2, 4, 8, 16, 32),
}
QUICK = {**FULL, "sweep_proposals": (100, 300), "sweep_batch": (4, 16)}
_HEIGHT, _WIDTH = 800, 1344
_OBJECTS = 7.3  # an image with objects of COCO train2017 has as many on average


@dataclass
class Case:
    """Random predictions of one batch as all the losses take them; every stage's tensors are leaves.

    Attributes:
        labels: dicts of `class_labels` (n,) and `boxes` (n, 4) cxcywh fractions.
        corners: the same boxes, (n, 4) xyxy pixels.
        sizes: (B, 2) width and height of the images, pixels.
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
    return found | _peers(case)


def _peers(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Losses of the peers, each matcher included; every stage is matched and weighted alike."""
    fields = {"num_labels": NUM_LABELS, "auxiliary_loss": True, "num_queries": case.boxes[0].shape[1]}
    detr, deformable = transformers.DetrConfig(**fields), transformers.DeformableDetrConfig(**fields)
    rt_detr, d_fine_config = RTDetrLoss(transformers.RTDetrConfig(**fields)), transformers.DFineConfig(**fields)
    d_fine = DFineLoss(d_fine_config)
    bins = 4 * (d_fine_config.max_num_bins + 1)
    corners = [torch.randn(*boxes.shape[:2], bins, device=boxes.device).requires_grad_() for boxes in case.boxes]
    stages = [{"logits": a, "pred_boxes": b} for a, b in zip(case.logits, case.boxes, strict=True)]
    teacher = {"teacher_corners": corners[-1].detach(), "teacher_logits": case.logits[-1].detach()}
    distilled = [
        {**stage, "pred_corners": c, "ref_points": stage["pred_boxes"].detach(), **teacher}
        for stage, c in zip(stages, corners, strict=True)
    ]

    def sum_of(criterion: Callable, auxiliary: list[dict[str, Tensor]]) -> Callable[[], Tensor]:
        return lambda: sum(criterion({**stages[-1], "auxiliary_outputs": auxiliary}, case.labels).values())

    def through(function: Callable, config: Any, logits: list[Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            last = (logits[-1], case.labels, case.boxes[-1].device, case.boxes[-1])
            return function(*last, config, torch.stack(logits), torch.stack(case.boxes))[0]

        return run

    return {
        "RT-DETR": sum_of(rt_detr, stages[:-1]),
        "Deformable DETR": through(DeformableDetrForObjectDetectionLoss, deformable, case.logits),
        "DETR": through(ForObjectDetectionLoss, detr, case.detr_logits),
        "D-FINE": sum_of(d_fine, distilled[:-1]),
    }


def with_backward(run: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward of a loss into fresh gradients."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        run().backward()

    return step


def measure_loss(settings: Settings, **changes: Any) -> dict[str, Any]:
    """Measure the suite, with `changes` of the sizes."""
    sizes = {**(QUICK if settings.quick else FULL), **changes}
    tables, figures = [_main_table(settings, sizes)], []
    for axis, values in (("K", sizes["sweep_proposals"]), ("B", sizes["sweep_batch"])):
        swept, curves = _sweep(settings, sizes, axis, values)
        tables.append(swept)
        figures.append(curves)
    return {"tables": tables, "figures": figures}


def _main_table(settings: Settings, sizes: dict[str, Any]) -> dict[str, Any]:
    case = make_case(sizes["batch"], sizes["proposals"], sizes["stages"], settings.device)
    candidates, leaves = losses(case, settings.compile), case.leaves()
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
        f"Forward and backward over {sizes['stages']} stages, B={sizes['batch']} images, K={sizes['proposals']}, "
        f"{NUM_LABELS} classes, {sum(counts)} objects ({min(counts)} to {max(counts)} an image), from the list of "
        "labels to the gradients of the predictions; with the peers' matching. Memory is that of tensors; what is "
        "saved includes the predictions themselves where a backward pass reads them. The linear-space form is written "
        "as the released code is: a loop over stages and images, densities and class probabilities as products, these "
        "over all classes; in the row below it each class probability is looked up. The peers get the same number of "
        "predictions; the proposals of their encoders, one more set to match, are left out."
    )
    return table("Loss", note, timings, extra, base=OURS)


def _sweep(
    settings: Settings, sizes: dict[str, Any], axis: str, values: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The loss against one size: some of the losses, time and memory."""
    timings, extra, comparisons = {}, {}, []
    curves: dict[str, list[tuple[float, float]]] = {}
    for value in values:
        batch, proposals = (value, sizes["proposals"]) if axis == "B" else (sizes["batch"], value)
        case = make_case(batch, proposals, sizes["stages"], settings.device)
        found, leaves = losses(case), case.leaves()
        steps = {name: with_backward(found[name], leaves) for name in (OURS, LINEAR, LOOKUP, "RT-DETR")}
        for name, timing in alternate(steps, settings.rounds, device=settings.device, min_seconds=0.05).items():
            row = f"{name}, {axis}={value}"
            timings[row], extra[row] = timing, {axis: value, "peak (MB)": peak_memory(steps[name], settings.device)}
            curves.setdefault(name, []).append((float(value), settings.milliseconds(timing)))
            if name != OURS:
                comparisons.append((f"{name} / {OURS}, {axis}={value}", row, f"{OURS}, {axis}={value}"))
    title = "Loss against the number of " + ("proposals" if axis == "K" else "images")
    fixed = f"B={sizes['batch']}" if axis == "K" else f"K={sizes['proposals']}"
    swept = table(title, f"As above with {fixed} and {axis} as it says.", timings, extra, comparisons=comparisons)
    return swept, figure(title, axis, "forward and backward (ms)", curves)
