"""From an image to what the page shows: a drawn picture, a table and the sentences about them. No browser needed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torchvision.ops import batched_nms

from ..configuration_drmm import DrmmConfig
from ..evaluation.predict import predict_images
from ..intervals_drmm import box_intervals
from ..modeling_drmm import DrmmForObjectDetection
from .drawing import draw_view
from .measured import Measured

LEVELS = (0.5, 0.8, 0.9)
"""Probabilities of the bands to choose from."""
NMS_IOU = 0.5
"""Of two boxes of a class that overlap more, NMS would remove the one with the lower score."""
EDGES = ("left", "top", "right", "bottom")

Detections = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        threshold: lowest score shown.
        level: probability that the bands of the edges stand for; None for no bands.
        nms: whether to apply NMS.
    """

    threshold: float = 0.3
    level: float | None = 0.8
    nms: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must lie in [0, 1], not {self.threshold}")


@dataclass(frozen=True)
class View:
    """What is shown: RGB picture, `columns` and `rows` of the table (best first), and Markdown text."""

    picture: Image.Image
    columns: list[str]
    rows: list[list[str]]
    text: str


def detect(model: DrmmForObjectDetection, processor: Any, image: Image.Image) -> Detections:
    """The 100 best detections of one image, on the CPU.

    Args:
        model, processor: a detector and its image processor.
        image: of any mode.

    Returns:
        `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy and, where the model predicts a density, `scales` (n, 4) γ of
        the edges, both in pixels of `image`; best first.
    """
    return predict_images(model, processor, [image.convert("RGB")])[0]


def show(
    image: Image.Image,
    detections: Mapping[str, torch.Tensor],
    config: DrmmConfig,
    options: Options,
    measured: Measured | None = None,
) -> View:
    """Everything the page shows of one image.

    Args:
        image: what `detect` was given.
        detections: what it returned.
        config: of the model.
        options: the user's choice.
        measured: of the model's report, if there is one; its factor widens or narrows the bands.

    Raises:
        ValueError: an option out of its range.
    """
    chosen = detections["scores"] > options.threshold
    found = {name: values[chosen] for name, values in detections.items()}
    removed = _removed_by_nms(found) if options.nms else None
    factor = measured.factor if measured else 1.0
    intervals = None
    if options.level is not None and "scales" in found:
        ends = box_intervals(
            found["boxes"], factor * found["scales"], options.level, config.density, config.student_t_dof
        )
        intervals = torch.stack(ends, dim=1)
    names = {int(label): name for label, name in (config.id2label or {}).items()}
    columns, rows = _table(found, names, intervals, removed, measured)
    sentences = [_count_sentence(found, options)]
    if rows:
        sentences += [_removed_sentence(removed), _band_sentence(intervals, options, measured)]
    return View(
        picture=draw_view(image, found, names, intervals=intervals, removed=removed),
        columns=columns,
        rows=rows,
        text="\n\n".join(sentence for sentence in sentences if sentence),
    )


def threshold_text(threshold: float, measured: Measured | None) -> str:
    """What to expect of the detections above a threshold, in Markdown."""
    if measured is None:
        return (
            "**A score is its own expected precision**, if the model is calibrated: of detections with score 0.8, "
            "80% are right. No report is given that says how well it is."
        )
    precision = measured.precision_above(threshold)
    best = ", ".join(f"{name} {value:.2f}" for name, value in measured.thresholds.items() if value is not None)
    where = f"the report's {measured.images} images, {measured.settings}"
    if math.isnan(precision):
        first = f"**Expected precision unknown**: no detection scored above {threshold:.2f} on {where}."
    else:
        first = f"**Expected precision {precision:.0%}**: the share of right ones above {threshold:.2f} on {where}."
    return f"{first} Best thresholds: {best}." if best else first


def _removed_by_nms(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    removed = torch.ones(len(found["scores"]), dtype=torch.bool)
    removed[batched_nms(found["boxes"], found["scores"], found["labels"], NMS_IOU)] = False
    return removed


def _table(
    found: Mapping[str, torch.Tensor],
    names: Mapping[int, str],
    intervals: torch.Tensor | None,
    removed: torch.Tensor | None,
    measured: Measured | None,
) -> tuple[list[str], list[list[str]]]:
    columns = ["class", "score", *(["expected precision"] if measured else []), *EDGES]
    if removed is not None:
        columns.append("NMS")
    rows = []
    for index, score in enumerate(found["scores"].tolist()):
        label = int(found["labels"][index])
        row = [names.get(label, str(label)), f"{score:.2f}"]
        if measured:
            row.append(f"{measured.precision_at([score])[0]:.0%}")
        for edge, position in enumerate(found["boxes"][index].tolist()):
            half = "" if intervals is None else f" ± {float(intervals[index, 1, edge]) - position:.1f}"
            row.append(f"{position:.1f}{half}")
        if removed is not None:
            row.append("removed" if removed[index] else "kept")
        rows.append(row)
    return columns, rows


def _count_sentence(found: Mapping[str, torch.Tensor], options: Options) -> str:
    number = len(found["scores"])
    if number == 0:
        return f"**No detection** has a score above {options.threshold:.2f}."
    total = float(found["scores"].sum())
    return (
        f"**{number} detection{'s' * (number > 1)}** above {options.threshold:.2f}. "
        f"Their scores add up to {total:.1f}: so many of them are right, if the scores are calibrated."
    )


def _removed_sentence(removed: torch.Tensor | None) -> str:
    if removed is None:
        return ""
    number = int(removed.sum())
    if number == 0:
        return f"NMS at IoU {NMS_IOU:g} would change nothing here."
    return f"NMS at IoU {NMS_IOU:g} would remove {number} of them, crossed out in gray."


def _band_sentence(intervals: torch.Tensor | None, options: Options, measured: Measured | None) -> str:
    if intervals is None or options.level is None:
        return ""
    sentence = f"The bands hold each edge with a probability of {options.level:.0%}, says the predicted density."
    if measured is None:
        return sentence
    if measured.factor != 1.0:
        sentence = f"{sentence[:-1]} with γ times {measured.factor:.2f}, which the report fitted."
    covered = measured.coverage.get(options.level)
    return sentence if covered is None else f"{sentence} Measured: {covered:.0%} of the edges inside."
