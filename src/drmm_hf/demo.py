"""A page in the browser that shows detections, their uncertainty, and how much of them to expect to be right.

What the page shows comes from `detect`, `load_measured` and `show`, which need no browser; `demo_page` puts it on a
page of gradio's.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import batched_nms

from .configuration_drmm import DrmmConfig
from .data.scenes import CATEGORIES, render_scene
from .evaluation import predict_images
from .files import read_json
from .modeling_drmm import DrmmForObjectDetection
from .postprocessing import box_intervals
from .visualization import draw_detections, label_color

LEVELS = (0.5, 0.8, 0.9)
"""Probabilities of the bands to choose from."""
NMS_IOU = 0.5
"""Of two boxes of a class that overlap more, NMS would remove the one with the lower score."""
SIDES = (960, 1600)
"""The longer side of a drawn picture lies between these pixels, whatever the image has: tags and bands need room."""
_FILL, _EDGE, _GRAY = 72, 190, (150, 150, 150)  # opacity of a band and of its ends, of 255; color of what is removed

Detections = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """What a report of `drmm analyze` measured of one checkpoint on one data set.

    Attributes:
        edges: (M+1,) edges of the bins of scores over [0, 1].
        counts: (M,) detections in each bin; confidences: (M,) their mean score; precisions: (M,) the share of them
            that was right. nan in empty bins.
        thresholds: best threshold of each class by name (LRP), None where there is none.
        factor: on γ, for intervals of the edges; 1 if none was fitted.
        coverage: share of edges inside their interval, by level, with that factor on γ.
        images: number of images it was measured on; settings: of the precision, in words.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    precisions: np.ndarray
    thresholds: dict[str, float | None]
    factor: float
    coverage: dict[float, float]
    images: int
    settings: str

    def precision_above(self, threshold: float) -> float:
        """Share of right detections among those with a score above `threshold`; nan if the report has none there.

        Exact at the edges of the bins and interpolated between them. In the bin of the highest scores it stays that
        bin's precision: the report does not say how they lie inside.
        """
        right = self.counts * np.nan_to_num(self.precisions)
        above, right_above = (np.cumsum(values[::-1])[::-1] for values in (self.counts, right))
        filled = above > 0
        if not filled.any() or threshold >= self.edges[filled.sum()]:
            return math.nan
        return float(np.interp(threshold, self.edges[:-1][filled], right_above[filled] / above[filled]))

    def precision_at(self, score: float) -> float:
        """Share of right detections with about this score: the bins' precisions, interpolated between their means."""
        filled = self.counts > 0
        if not filled.any():
            return math.nan
        return float(np.interp(score, self.confidences[filled], self.precisions[filled]))


def load_measured(path: str | PathLike[str], checkpoint: str, classes: Sequence[str]) -> Measured:
    """Read the part of an `analysis.json` that is about one checkpoint.

    Args:
        path: written by `drmm analyze`.
        checkpoint: as it was given there; a report on a single checkpoint may be about any folder or Hub id, since
            checkpoints are moved and published.
        classes: names of the model's classes, which the report must know.

    Raises:
        FileNotFoundError, ValueError: the file is no such report, or one of another model.
    """
    content = read_json(path)
    try:
        entries = {Path(entry["checkpoint"]): entry for entry in content["checkpoints"]}
        entry = entries.get(Path(checkpoint)) or (next(iter(entries.values())) if len(entries) == 1 else None)
        measured = None if entry is None else _read(entry, content["data"])
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{path}: no report of drmm analyze ({type(error).__name__}: {error})") from error
    if measured is None:
        raise ValueError(
            f"{path}: is about {', '.join(map(str, entries)) or 'nothing'}, not about {checkpoint}; name the "
            "checkpoint as it was named there, or write a report about it alone"
        )
    if not set(classes) <= set(measured.thresholds):
        raise ValueError(
            f"{path}: is about the classes {', '.join(measured.thresholds)}, the model knows {', '.join(classes)}; "
            "give the report of this model"
        )
    return measured


def _read(entry: Mapping[str, Any], data: Mapping[str, Any]) -> Measured:
    bins, uncertainty = entry["calibration"]["reliability"], entry["uncertainty"]
    fitted = uncertainty["factor"] is not None and uncertainty["coverage_after"] is not None
    covered = zip(uncertainty["levels"], uncertainty["coverage_after" if fitted else "coverage"], strict=True)
    # an empty bin has None, which becomes nan
    arrays = {name: np.array(bins[f"bin_{name}"], dtype=float) for name in ("edges", "counts", "confidences")}
    return Measured(
        **arrays,
        precisions=np.array(bins["bin_accuracies"], dtype=float),
        thresholds={name: one["score_threshold"] for name, one in entry["thresholds"]["per_class"].items()},
        factor=float(uncertainty["factor"]) if fitted else 1.0,
        coverage={float(level): float(share) for level, share in covered if share is not None},
        images=int(data["images"]),
        settings=f"IoU {bins['iou_threshold']:g}",
    )


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        threshold: scores above it are shown, in [0, 1].
        level: probability that the bands of the edges stand for; None for no bands.
        nms: whether to show what NMS would remove.
    """

    threshold: float = 0.3
    level: float | None = 0.8
    nms: bool = False


@dataclass(frozen=True)
class View:
    """What is shown: RGB picture, `columns` and `rows` of the table (best first), and Markdown text."""

    picture: Image.Image
    columns: list[str]
    rows: list[list[str]]
    text: str


def detect(model: DrmmForObjectDetection, processor: Any, image: Image.Image) -> dict[str, torch.Tensor]:
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
    detections: Detections,
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
    """
    found = {name: values[detections["scores"] > options.threshold] for name, values in detections.items()}
    names = {int(label): name for label, name in (config.id2label or {}).items()}
    intervals, removed, sentences = None, None, []
    number = len(found["scores"])
    if number:
        sentences.append(
            f"**{number} detection{'s' * (number > 1)}** above {options.threshold:.2f}. Their scores add up to "
            f"{float(found['scores'].sum()):.1f}: so many of them are right, if the scores are calibrated."
        )
    else:
        sentences.append(f"**No detection** has a score above {options.threshold:.2f}.")
    if options.nms:
        removed = torch.ones(number, dtype=torch.bool)
        removed[batched_nms(found["boxes"], found["scores"], found["labels"], NMS_IOU)] = False
        crossed = int(removed.sum())
        outcome = f"remove {crossed} of them, crossed out in gray" if crossed else "change nothing here"
        sentences.append(f"NMS at IoU {NMS_IOU:g} would {outcome}.")
    if options.level is not None and "scales" in found:
        scales = (measured.factor if measured else 1.0) * found["scales"]
        ends = box_intervals(found["boxes"], scales, options.level, config.density, config.student_t_dof)
        intervals = torch.stack(ends, dim=1)
        sentences.append(_band_sentence(options.level, measured))
    columns, rows = _table(found, names, intervals, removed, measured)
    text = "\n\n".join(sentences if number else sentences[:1])
    return View(draw_view(image, found, names, intervals=intervals, removed=removed), columns, rows, text)


def _band_sentence(level: float, measured: Measured | None) -> str:
    sentence = f"The bands hold each edge with a probability of {level:.0%}, says the predicted density"
    if measured is None:
        return f"{sentence}."
    if measured.factor != 1.0:
        sentence += f" with γ times {measured.factor:.2f}, which the report fitted"
    covered = measured.coverage.get(level)
    return f"{sentence}." if covered is None else f"{sentence}. Measured: {covered:.0%} of the edges inside."


def _table(
    found: Detections,
    names: Mapping[int, str],
    intervals: torch.Tensor | None,
    removed: torch.Tensor | None,
    measured: Measured | None,
) -> tuple[list[str], list[list[str]]]:
    columns = ["class", "score", *(["expected precision"] if measured else []), "left", "top", "right", "bottom"]
    columns += [] if removed is None else ["NMS"]
    rows = []
    for index, (score, label) in enumerate(zip(found["scores"].tolist(), found["labels"].tolist(), strict=True)):
        row = [names.get(label, str(label)), f"{score:.2f}"]
        if measured:
            row.append(f"{measured.precision_at(score):.0%}")
        for edge, position in enumerate(found["boxes"][index].tolist()):
            half = "" if intervals is None else f" ± {float(intervals[index, 1, edge]) - position:.1f}"
            row.append(f"{position:.1f}{half}")
        rows.append(row if removed is None else [*row, "removed" if removed[index] else "kept"])
    return columns, rows


def threshold_text(threshold: float, measured: Measured | None) -> str:
    """What to expect of the detections above a threshold, in Markdown."""
    if measured is None:
        return (
            "**A score is its own expected precision**, if the model is calibrated: of detections with score 0.8, "
            "80% are right. No report is given that says how well it is."
        )
    precision = measured.precision_above(threshold)
    where = f"above {threshold:.2f} on the report's {measured.images} images, {measured.settings}"
    if math.isnan(precision):
        first = f"**Expected precision unknown**: no detection scored {where}."
    else:
        first = f"**Expected precision {precision:.0%}**: the share of right ones {where}."
    best = ", ".join(f"{name} {value:.2f}" for name, value in measured.thresholds.items() if value is not None)
    return f"{first} Best thresholds: {best}." if best else first


def draw_view(
    image: Image.Image,
    detections: Detections,
    id2label: Mapping[int, str],
    *,
    intervals: torch.Tensor | None = None,
    removed: torch.Tensor | None = None,
) -> Image.Image:
    """Boxes, tags, and a band around each edge.

    Args:
        image: the picture, any size; left unchanged.
        detections: `boxes` (n, 4) xyxy in pixels of `image`, `labels` (n,) and `scores` (n,); all are drawn.
        id2label: names of the labels.
        intervals: (n, 2, 4) lower and upper end of each edge, same pixels; no bands without.
        removed: (n,) bool, detections to cross out in gray.

    Returns:
        RGB image whose longer side lies within `SIDES`.
    """
    factor = min(max(max(image.size), SIDES[0]), SIDES[1]) / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = torch.tensor([canvas.width / image.width, canvas.height / image.height] * 2)
    boxes = detections["boxes"] * pixels
    kept = torch.ones(len(boxes), dtype=torch.bool) if removed is None else ~removed
    pen = ImageDraw.Draw(canvas)
    for left, top, right, bottom in boxes[~kept].tolist():
        if right > left and bottom > top:
            pen.rectangle((left, top, right, bottom), outline=_GRAY, width=3)
            pen.line((left, top, right, bottom), fill=_GRAY, width=3)
            pen.line((left, bottom, right, top), fill=_GRAY, width=3)
    if intervals is not None:
        for index in reversed(kept.nonzero()[:, 0].tolist()):  # the surest last, on top of the others
            color = label_color(int(detections["labels"][index]))
            canvas = _draw_bands(canvas, boxes[index].tolist(), (intervals[index] * pixels).tolist(), color)
    shown = {name: detections[name][kept] for name in ("labels", "scores")} | {"boxes": boxes[kept]}
    return draw_detections(canvas, shown, id2label, threshold=0.0)


def _draw_bands(
    canvas: Image.Image, box: Sequence[float], ends: Sequence[Sequence[float]], color: tuple[int, int, int]
) -> Image.Image:
    """Four strips: where the left, top, right and bottom edge may lie, each as long as the box is."""
    layer = Image.new("RGBA", canvas.size)
    pen = ImageDraw.Draw(layer)
    for edge, (low, high) in enumerate(zip(*ends, strict=True)):
        vertical = edge % 2 == 0
        start, stop = (box[1], box[3]) if vertical else (box[0], box[2])
        if high < low or stop < start:
            continue
        pen.rectangle((low, start, high, stop) if vertical else (start, low, stop, high), fill=(*color, _FILL))
        for end in (low, high):
            pen.line((end, start, end, stop) if vertical else (start, end, stop, end), fill=(*color, _EDGE))
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def example_scenes(classes: Collection[str], number: int = 6) -> list[Image.Image]:
    """Generated scenes to pick from, always the same; none for a model that does not know their classes."""
    if not set(CATEGORIES) <= set(classes):
        return []
    # A seed of their own: none of them is in a data set that `generate_scenes` writes.
    generators = [np.random.default_rng([2205, 8714, index]) for index in range(number)]
    sizes = {"min_size": 32.0, "max_size": 120.0, "mean_objects": 7.0}
    return [Image.fromarray(render_scene(generator, 288, 384, **sizes).image) for generator in generators]


def example_files(folder: str, most: int = 12) -> list[str]:
    """The first pictures of a folder, in the order of their names; FileNotFoundError if there are none."""
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
    found = sorted(str(file) for file in Path(folder).glob("*") if file.suffix.lower() in suffixes)
    if not found:
        raise FileNotFoundError(f"{folder}: no folder with images ({', '.join(suffixes)})")
    return found[:most]
