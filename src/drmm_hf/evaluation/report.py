"""The page of `drmm analyze`: what analysis.json says, as tables, figures and pictures, checkpoints side by side.

The words are in report.html.jinja; here are the tables, the figures, the sentences that depend on numbers, and the
worst images.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jinja2
from markupsafe import Markup
from PIL import Image

from ..data import DetectionDataset, decode_image
from ..visualization import draw_detections
from .calibration import CalibrationReport, reliability_figure
from .coco import CocoGroundTruth

Model: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = tuple[float | None, str] | str
"""A number and its format such as ".3f", or text; None and nan are shown as a dash."""
Better: TypeAlias = Literal["high", "low"] | None

# Of the checkpoints: distinct for most colour-blind readers, and of like weight on white and near-black (Paul Tol).
SERIES = ("#4477aa", "#cc6677", "#3a9a5b", "#b8862b", "#8a63b5", "#2fa3b5")
# Colours of figures that have to follow the page, in light, dark and print.
THEME = {
    "#333333": "--ink", "#8a8a8a": "--soft", "#ececec": "--line", "#ffffff": "--page", "#c4c4c4": "--fill",
    "#a9c6e3": "--bar", "#d1495b": "--warn", "#1f6f8b": "--under",
}  # fmt: skip
INK, SOFT, LINE, PAGE = list(THEME)[:4]
LONGEST_SIDE = 900  # of a picture, pixels: sharp on a wide screen, and ten images stay a few megabytes
MAX_BARS = 30  # more are unreadable; the table has them all
PARTS = {"score": "p·o", "class_probability": "p", "objectness": "o"}


@dataclass(frozen=True)
class WorstImage:
    """An image to show: its id as text, its file's name, and its ground truth and each checkpoint's detections."""

    image_id: str
    file_name: str
    pictures: Sequence[Image.Image]


class Row(NamedTuple):
    """A row of a table: of each checkpoint a list with a cell for each of its columns."""

    title: str
    cells: Sequence[Sequence[Cell]]
    note: str = ""
    better: Better = None


def render_report(analysis: Mapping[str, Any], worst: Sequence[WorstImage] = ()) -> str:
    """The whole HTML page, which needs no other file and no network.

    Args:
        analysis: content of analysis.json.
        worst: the worst images, drawn.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell_text, "pretty": lambda text: text.replace(">=", "≥"), "jpeg": _jpeg}
    environment.globals |= {"table": table, "notes": _notes, "series": lambda index: SERIES[index % len(SERIES)]}
    models: Sequence[Model] = analysis["checkpoints"]
    return environment.get_template("report.html.jinja").render(
        analysis=analysis,
        models=models,
        data=analysis["data"],
        worst=worst,
        figures={"classes": _class_figure(analysis["data"]["objects_per_class"], models), **_line_figures(models)},
        reliability=[_reliability(model["calibration"]["reliability"], model["name"]) for model in models],
        parts=[
            (f"{model['name']}: {PARTS[part]}", report["ece"], _reliability(report, f"{model['name']}, {PARTS[part]}"))
            for model in models
            for part, report in (model["calibration"].get("parts") or {}).items()
            if part != "score"
        ],
        calibration_findings=[text for model in models if (text := _calibration_finding(model))],
        recalibration_findings=[text for model in models if (text := _recalibration_finding(model))],
        duplicate_findings=[text for model in models if (text := _duplicates_finding(model))],
    )


def table(
    titles: Sequence[tuple[str, Better]], rows: Iterable[Sequence[Any]], corner: str = "", within: bool = False
) -> dict[str, Any]:
    """What the template draws as a table, with the best of what is compared marked.

    Args:
        titles: heading of each column of a checkpoint, and which number in it is the best; one "" for no second line of
            headings.
        rows: `Row`s or their values.
        corner: above the headings of the rows.
        within: compare the columns of a checkpoint with each other, and not the same column of all checkpoints.
    """
    drawn = []
    for row in (Row(*values) for values in rows):
        best: set[tuple[int, int]] = set()
        places = [[(m, t) for t in range(len(titles))] for m in range(len(row.cells))]
        for group in places if within else zip(*places, strict=True):
            better = row.better or titles[group[0][1]][1]
            values = {place: row.cells[place[0]][place[1]] for place in group}
            known = {place: cell[0] for place, cell in values.items() if not isinstance(cell, str) and _known(cell[0])}
            if better and len(known) > 1:
                winner = (max if better == "high" else min)(known.values())  # type: ignore[type-var]
                best |= {place for place, value in known.items() if value == winner}
        cells = [[(cell_text(cell), (m, t) in best) for t, cell in enumerate(own)] for m, own in enumerate(row.cells)]
        drawn.append({"title": row.title, "note": row.note, "cells": cells})
    return {"titles": [title for title, _ in titles], "rows": drawn, "corner": corner}


def cell_text(cell: Cell) -> str:
    """What a cell shows: numbers with a true minus sign, a dash for one that does not exist."""
    if isinstance(cell, str):
        return cell
    value, form = cell
    return format(value, form).replace("-", "\u2212") if value is not None and _known(value) else "–"


def draw_images(
    dataset: DetectionDataset,
    image_ids: Sequence[str],
    truth: CocoGroundTruth,
    results: Sequence[tuple[Sequence[Mapping[str, Any]], Mapping[Any, float]]],
) -> list[WorstImage]:
    """Images with their ground truth, and with the detections of each model, drawn on them.

    Args:
        dataset: where the images are.
        image_ids: ids as text.
        truth: ground truth.
        results: of each model, its COCO results and the score threshold of each category id.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    places = {str(image_id): place for place, image_id in enumerate(dataset.dataset["image_id"])}
    drawn = []
    for image_id in image_ids:
        row = dataset.dataset[places[image_id]]
        image, original = decode_image(row), row["image_id"]
        pictures = [draw_detections(image, truth.coco.imgToAnns[original], truth.category_names)]
        for found, limits in results:
            kept = [one for one in found if one["image_id"] == original and one["score"] >= limits[one["category_id"]]]
            pictures.append(draw_detections(image, kept, truth.category_names, threshold=0.0))
        for picture in pictures:
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        path = (row["image"].get("path") if isinstance(row["image"], Mapping) else None) or f"image {image_id}"
        drawn.append(WorstImage(image_id, str(path).replace("\\", "/").rsplit("/", 1)[-1], pictures))
    return drawn


def require_matplotlib() -> Any:
    """The class of figures; an ImportError that names the extra where there is none."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps every figure and chooses a window system
    except ImportError as error:
        raise ImportError("The figures of the report need matplotlib: pip install 'drmm-hf[plots]'") from error
    return Figure


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _notes(models: Sequence[Model], texts: Sequence[str | None]) -> list[str]:
    """Small print of each checkpoint; once, without a name, where it is the same for all."""
    if len(set(texts)) == 1:
        return [texts[0]] if texts[0] else []
    return [f"{model['name']}: {text}" for model, text in zip(models, texts, strict=True) if text]


def _jpeg(image: Image.Image) -> str:
    memory = io.BytesIO()
    # Full colour resolution, since thin coloured lines smear without it.
    image.save(memory, "JPEG", quality=85, subsampling=0, optimize=True)
    return base64.b64encode(memory.getvalue()).decode("ascii")


def _svg(figure: Any, label: str) -> Markup:
    """A figure as SVG for the page: text stays text, and its greys are those of the page."""
    import matplotlib

    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # class names are no formulas, and the same figure must be the same text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "text.parse_math": False}):
        figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    text = written.getvalue()
    text = text[text.index("<svg") + len("<svg") :].replace("*{stroke-linejoin", "svg *{stroke-linejoin")
    for color, name in THEME.items():
        text = text.replace(color, f"var({name})")
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(text)


def _axes(height: float, x_label: str = "", y_label: str = "") -> tuple[Any, Any]:
    figure = require_matplotlib()(figsize=(5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=10.5, length=0)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=SOFT, fontsize=10.5)
    axes.set_ylabel(y_label, color=SOFT, fontsize=10.5)
    return figure, axes


def _class_figure(objects: Mapping[str, int], models: Sequence[Model]) -> Markup:
    """Bars of the AP of each class, of those with most objects."""
    names = sorted(objects, key=lambda name: -objects[name])[:MAX_BARS]
    thick = 0.8 / len(models)
    figure, axes = _axes(0.5 + len(names) * (0.12 + 0.12 * len(models)))
    for index, model in enumerate(models):
        values = [model["accuracy"]["per_class"][name]["AP"] or 0.0 for name in names]
        places = [row + thick * (index - (len(models) - 1) / 2) for row in range(len(names))]
        axes.barh(places, values, thick * 0.85, color=SERIES[index % len(SERIES)])
    axes.set_yticks(range(len(names)), [name if len(name) <= 18 else name[:17] + "…" for name in names])
    axes.set(xlim=(0, 1), ylim=(max(len(names), 1) - 0.5, -0.5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", color=LINE)
    return _svg(figure, "AP of each class")


def _lines(
    label: str,
    lines: Iterable[tuple[int, Sequence[float], Sequence[float | None], bool]],
    ticks: Mapping[Any, str],
    *axis_labels: str,
    from_zero: bool = True,
    diagonal: bool = False,
) -> Markup:
    """Lines of (checkpoint, x, y, dashed) over labelled ticks; points that do not exist are left out."""
    figure, axes = _axes(3.2, *axis_labels)
    axes.margins(0.05, 0.1)
    lowest = 0.0
    for index, xs, ys, dashed in lines:
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and _known(y)]
        lowest = min([lowest, *(y for _, y in points)])
        color = SERIES[index % len(SERIES)]
        style = {"linestyle": (0, (4, 3)) if dashed else "-", "markerfacecolor": PAGE if dashed else color}
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=color, markersize=5, **style)
    if diagonal:
        axes.plot(list(ticks), list(ticks), color=INK, linestyle=(0, (4, 4)), linewidth=1)
    axes.set_xticks(list(ticks), list(ticks.values()))
    if from_zero:
        axes.axhline(0, color=SOFT, linewidth=0.8)
        if lowest == 0:
            axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LINE)
    return _svg(figure, label)


def _line_figures(models: Sequence[Model]) -> dict[str, Markup]:
    """The figures of the sections on duplicates, likelihood and uncertainty."""
    counts = [model["duplicates"]["counts"] for model in models]
    levels = {place: f"{entry['score_threshold']:g}" for place, entry in enumerate(counts[0])}
    overlaps = dict(enumerate(models[0]["duplicates"]["winner_takes_all"]))
    gains = [
        (index, list(overlaps), [_gain(model, part, key) for key in overlaps.values()], part != "nms")
        for index, model in enumerate(models)
        for part in ("nms", "winner_takes_all")
    ]
    per_image = [(m, list(levels), [entry["per_image"] for entry in own], False) for m, own in enumerate(counts)]
    figures = {
        "duplicates": _lines(
            "Duplicates an image", per_image, levels, "detections with at least this score", "duplicates an image"
        ),
        "gain": _lines("Change of AP", gains, overlaps, "IoU above which a detection is removed", "change of AP"),
    }
    stages = [model["likelihood"]["stages"] for model in models]
    ticks = {number: str(number) for number in range(1, max(map(len, stages)) + 1)}
    for key, label in (("nll", "NLL of an object"), ("max_share", "Share of the best component")):
        lines = [(m, range(1, len(own) + 1), [stage[key] for stage in own], False) for m, own in enumerate(stages)]
        figures[key] = _lines(label, lines, ticks, "stage", label, from_zero=key != "nll")
    parts = [model["uncertainty"] for model in models]
    asked = {level: f"{level:.0%}" for part in parts for level in part["levels"]}
    coverage = [(m, part["levels"], part["coverage"], False) for m, part in enumerate(parts)]
    axis_labels = ("asked for (the dashed line is where it should be)", "edges inside")
    figures["coverage"] = _lines("Coverage", coverage, asked, *axis_labels, diagonal=True)
    fifths = {number: str(number) for number in range(1, 6)}
    errors = [
        (m, range(1, len(own) + 1), own, False) for m, own in enumerate(part["quintile_errors"] for part in parts)
    ]
    axis_labels = ("fifths of the edges, from small γ to large", "mean error, px")
    figures["errors"] = _lines("Error over predicted scale", errors, fifths, *axis_labels)
    return figures


def _reliability(report: Mapping[str, Any], name: str) -> Markup:
    """The package's reliability diagram of one report; the caption is the page's."""
    known: dict[str, Any] = {
        key: tuple(math.nan if entry is None else entry for entry in value) if isinstance(value, list) else value
        for key, value in report.items()
    }
    known["ece"] = math.nan if known["ece"] is None else known["ece"]
    figure = reliability_figure({name: CalibrationReport(**known)})
    for axes in figure.axes:
        axes.set_title("")
        for text in list(axes.texts):
            text.remove()
    return _svg(figure, f"Reliability diagram of {name}")


def _gain(model: Model, part: str, overlap: str) -> float | None:
    before, after = model["duplicates"]["nms"]["none"]["AP"], model["duplicates"][part][overlap]["AP"]
    return None if before is None or after is None else after - before


def _calibration_finding(model: Model) -> str:
    report = model["calibration"]["reliability"]
    columns = (report[f"bin_{name}"] for name in ("counts", "confidences", "accuracies", "edges"))
    known = [(n, score - right) for n, score, right, low in zip(*columns, strict=False) if n and low >= 0.3 - 1e-9]
    total = sum(count for count, _ in known)
    if not total:
        return ""
    gap = sum(count * difference for count, difference in known) / total
    distance = sum(count * abs(difference) for count, difference in known) / total
    if abs(gap) < 0.02:
        text = f"{model['name']}: scores of 0.3 and more match precision on average (gap {cell_text((gap, '+.3f'))})"
        # too high in some bins and too low in others: the mean alone would hide it
        return text + (f", but not bin by bin: they are {distance:.3f} away from it." if distance >= 0.05 else ".")
    side = "above" if gap > 0 else "below"
    verdict = "too confident" if gap > 0 else "not confident enough"
    return f"{model['name']}: scores of 0.3 and more lie {abs(gap):.3f} {side} precision on average: {verdict}."


def _recalibration_finding(model: Model) -> str:
    values = model["recalibration"]["values"]
    known = {method: value["ECE"] for method, value in values.items() if _known(value["ECE"])}
    if "raw" not in known or len(known) < 2:
        return ""
    best = min(known, key=lambda method: known[method])
    if best == "raw":
        return f"{model['name']}: no correction lowers the ECE of {known['raw']:.4f}; use the scores as they are."
    return f"{model['name']}: {best} lowers the ECE from {known['raw']:.4f} to {known[best]:.4f}."


def _duplicates_finding(model: Model) -> str:
    gains = {key: _gain(model, "nms", key) for key in model["duplicates"]["nms"] if key != "none"}
    known = {key: gain for key, gain in gains.items() if gain is not None}
    if not known:
        return ""
    best = max(known, key=lambda key: known[key])
    change = cell_text((known[best], "+.3f"))
    if known[best] < 0.002:
        return f"{model['name']}: NMS brings no AP (at best {change}, at IoU {best}); none is needed."
    return f"{model['name']}: NMS at IoU {best} changes AP by {change}: that is what duplicates cost."
