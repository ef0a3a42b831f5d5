"""The page of `drmm analyze`: what analysis.json says, as tables, figures and pictures, checkpoints side by side.

The template report.html.jinja walks the values of analysis.json and has the words; here are the look of a number, the
figures, the sentences that depend on numbers, and the worst images.
"""

import base64
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from ..data import DetectionDataset, decode_image
from ..visualization import draw_detections
from .calibration import CalibrationReport, reliability_figure
from .coco_input import CocoGroundTruth

Model: TypeAlias = Mapping[str, Any]
"""The entry of a checkpoint in analysis.json."""

# Of the checkpoints: distinct for most colour-blind readers, and of like weight on white and near-black (Paul Tol).
SERIES = ("#4477aa", "#cc6677", "#3a9a5b", "#b8862b", "#8a63b5", "#2fa3b5")
# Colours of figures that have to follow the page, in light, dark and print.
THEME = {
    "#333333": "--ink", "#8a8a8a": "--soft", "#ececec": "--line", "#ffffff": "--page", "#c4c4c4": "--fill",
    "#a9c6e3": "--bar", "#d1495b": "--warn", "#1f6f8b": "--under",
}  # fmt: skip
INK, SOFT, LINE, PAGE = list(THEME)[:4]
STYLE: Any = {
    "axes.spines.top": False, "axes.spines.left": False, "axes.spines.right": False, "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT, "axes.labelsize": 10.5, "axes.axisbelow": True, "axes.grid": True, "grid.color": LINE,
    "xtick.color": SOFT, "xtick.labelsize": 10.5, "xtick.major.size": 0, "ytick.color": SOFT, "ytick.labelsize": 10.5,
    "ytick.major.size": 0, "lines.markersize": 5,
}  # fmt: skip
LONGEST_SIDE = 900  # of a picture, pixels: sharp on a wide screen, and ten images stay a few megabytes
MAX_BARS = 30  # more are unreadable; the table has them all


@dataclass(frozen=True)
class WorstImage:
    """An image to show: its id as text, its file's name, and its ground truth and each checkpoint's detections."""

    image_id: str
    file_name: str
    pictures: Sequence[Image.Image]


def render_report(analysis: Mapping[str, Any], worst: Sequence[WorstImage] = ()) -> str:
    """The whole HTML page, which needs no other file and no network.

    Args:
        analysis: content of analysis.json.
        worst: the worst images, drawn.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    analysis = copy.deepcopy(analysis)
    models: Sequence[Model] = analysis["checkpoints"]
    for model in models:
        for entry in model["thresholds"]["per_class"].values():
            if entry["score_threshold"] is None and entry["objects"]:
                entry["score_threshold"] = "keep none"
    environment.filters |= {"pretty": lambda text: text.replace(">=", "≥"), "jpeg": _jpeg}
    environment.globals |= {
        "cells": lambda *path, **options: compared_cells(models, path, **options),
        "color": lambda index: SERIES[index % len(SERIES)],
        "notes": lambda part: _notes(models, part),
    }
    findings = {
        "calibration": _calibration_finding,
        "recalibration": _recalibration_finding,
        "duplicates": _nms_finding,
    }
    return environment.get_template("report.html.jinja").render(
        analysis=analysis,
        models=models,
        data=analysis["data"],
        worst=worst,
        figures=_figures(models, analysis["data"]["objects_per_class"]),
        findings={part: [text for model in models if (text := find(model))] for part, find in findings.items()},
    )


def compared_cells(
    models: Sequence[Model],
    path: Sequence[Any],
    *,
    columns: Sequence[Any] = ("",),
    form: str | Sequence[str] = ".3f",
    better: str | Sequence[str] = "",
    within: bool = False,
) -> list[list[tuple[str, bool]]]:
    """A row of a table: of each checkpoint the text of its cell in each column, and whether that is the best number.

    Args:
        models: the checkpoints.
        path: keys from a checkpoint to what the row is about.
        columns: further keys, a tuple or one, for each column; "" for the value at `path` itself.
        form: how to write numbers, in all columns or in each.
        better: `high` or `low`, in all columns or in each; anything else marks nothing.
        within: compare the columns of a checkpoint with each other, and not the same column of all checkpoints.
    """
    values = [
        [
            _look(model, *path, *(column if isinstance(column, tuple) else [column] if column else []))
            for column in columns
        ]
        for model in models
    ]
    forms = [form] * len(columns) if isinstance(form, str) else form
    wanted = [better] * len(columns) if isinstance(better, str) else better

    def is_best(model: int, column: int) -> bool:
        rivals = values[model] if within else [own[column] for own in values]
        known = [value for value in rivals if not isinstance(value, str) and _known(value)]
        best = {"high": max, "low": min}.get(wanted[column])
        return best is not None and len(known) > 1 and values[model][column] == best(known)

    return [
        [(cell_text(value, forms[column]), is_best(model, column)) for column, value in enumerate(own)]
        for model, own in enumerate(values)
    ]


def cell_text(value: float | str | None, form: str) -> str:
    """What a cell shows: text, numbers with a true minus sign, a dash for one that does not exist."""
    if isinstance(value, str):
        return value
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


def require_matplotlib() -> None:
    """An ImportError that names the extra where there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("The figures of the report need matplotlib: pip install 'drmm-hf[plots]'") from error


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _look(value: Any, *path: Any) -> Any:
    """What lies at these keys; None where one of them is missing."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _notes(models: Sequence[Model], part: str) -> list[str]:
    """Settings of a part, or why it is missing, of each checkpoint; once, without a name, where all have the same."""
    texts = [model[part]["note"] or model[part]["settings"] for model in models]
    if len(set(texts)) == 1:
        return texts[:1]
    return [f"{model['name']}: {text}" for model, text in zip(models, texts, strict=True)]


def _jpeg(image: Image.Image) -> str:
    memory = io.BytesIO()
    # Full colour resolution, since thin coloured lines smear without it.
    image.save(memory, "JPEG", quality=85, subsampling=0, optimize=True)
    return base64.b64encode(memory.getvalue()).decode("ascii")


def _svg(figure: Any, label: str) -> Markup:
    """A figure as SVG for the page: text stays text, and its greys are those of the page."""
    written = io.StringIO()
    figure.savefig(
        written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
    )
    text = written.getvalue()
    text = text[text.index("<svg") + len("<svg") :].replace("*{stroke-linejoin", "svg *{stroke-linejoin")
    for color, name in THEME.items():
        text = text.replace(color, f"var({name})")
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(text)


def _figures(models: Sequence[Model], objects: Mapping[str, int]) -> dict[str, Any]:
    """The figures by the name that the template has for them, as SVG; lists of them for the reliability diagrams."""
    import matplotlib

    counts, parts = models[0]["duplicates"]["counts"], [model["uncertainty"] for model in models]
    stages = [model["likelihood"]["stages"] for model in models]
    overlaps = list(models[0]["duplicates"]["winner_takes_all"])
    nms, merged = ([[_gain(m, part, at) for at in overlaps] for m in models] for part in ("nms", "winner_takes_all"))
    levels: list[float] = next((part["levels"] for part in parts if part["levels"]), [])
    # class names are no formulas, and the same figure must be the same text
    shared: Any = {"svg.fonttype": "none", "svg.hashsalt": "drmm", "text.parse_math": False}
    with matplotlib.rc_context({**shared, **STYLE}):
        drawn: dict[str, Any] = {
            "classes": _bars(objects, models),
            "duplicates": _lines(
                "duplicates an image",
                "detections with at least this score",
                [f"{entry['score_threshold']:g}" for entry in counts],
                [[entry["per_image"] for entry in model["duplicates"]["counts"]] for model in models],
            ),
            "gain": _lines("change of AP", "IoU above which a detection is removed", overlaps, nms, merged),
            "coverage": _lines(
                "edges inside",
                "asked for (the dashed line is where it should be)",
                [f"{level:.0%}" for level in levels],
                [part["coverage"] for part in parts],
                ideal=levels,
            ),
            "errors": _lines(
                "mean error, px",
                "fifths of the edges, from small γ to large",
                "12345",
                [part["quintile_errors"] for part in parts],
            ),
        }
        for key, label in (("nll", "NLL of an object"), ("max_share", "share of the best component")):
            values = [[stage[key] for stage in own] for own in stages]
            numbers = [str(place + 1) for place in range(max(map(len, stages)))]
            drawn[key] = _lines(label, "stage", numbers, values, from_zero=key != "nll")
    with matplotlib.rc_context(shared):
        reports = [(model["name"], model["calibration"]) for model in models]
        reports = [(name, part) for name, part in reports if part["reliability"]["ece"] is not None]
        drawn["reliability"] = [_reliability(part["reliability"], name) for name, part in reports]
        drawn["parts"] = [
            _reliability(part["parts"][key], f"{name}: {symbol}")
            for name, part in reports
            for key, symbol in (("class_probability", "p"), ("objectness", "o"))
            if part.get("parts")
        ]
    return drawn


def _axes(height: float, **labels: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and chooses a window system

    figure = Figure(figsize=(5, height), layout="constrained")
    axes = figure.subplots()
    axes.set(**labels)
    return figure, axes


def _bars(objects: Mapping[str, int], models: Sequence[Model]) -> Markup:
    """AP of each class, of those with most objects."""
    names = sorted(objects, key=lambda name: -objects[name])[:MAX_BARS]
    thick = 0.8 / len(models)
    figure, axes = _axes(0.5 + len(names) * (0.12 + 0.12 * len(models)))
    for index, model in enumerate(models):
        values = [model["accuracy"]["per_class"][name]["AP"] or 0.0 for name in names]
        places = np.arange(len(names)) + thick * (index - (len(models) - 1) / 2)
        axes.barh(places, values, thick * 0.85, color=SERIES[index % len(SERIES)])
    axes.set_yticks(range(len(names)), [name if len(name) <= 18 else name[:17] + "…" for name in names])
    axes.set(xlim=(0, 1), ylim=(max(len(names), 1) - 0.5, -0.5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=False, axis="y")
    return _svg(figure, "AP of each class")


def _lines(
    label: str,
    x_label: str,
    ticks: Sequence[str],
    solid: Sequence[Sequence[float | None]],
    dashed: Sequence[Sequence[float | None]] = (),
    *,
    ideal: Sequence[float] = (),
    from_zero: bool = True,
) -> Markup:
    """Lines of each checkpoint over labelled ticks; points that do not exist are left out."""
    figure, axes = _axes(3.2, xlabel=x_label, ylabel=label)
    axes.margins(0.05, 0.1)
    for style, group in (("-", solid), ((0, (4, 3)), dashed)):
        for index, values in enumerate(group):
            color = SERIES[index % len(SERIES)]
            face = color if style == "-" else PAGE
            heights = np.array(values, dtype=float)  # nan for None
            axes.plot(range(len(heights)), heights, "o", linestyle=style, color=color, markerfacecolor=face)
    axes.plot(range(len(ideal)), ideal, color=INK, linestyle=(0, (4, 4)), linewidth=1)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.grid(visible=False, axis="x")
    if from_zero:
        axes.axhline(0, color=SOFT, linewidth=0.8)
        if all(value is None or value >= 0 for values in (*solid, *dashed) for value in values):
            axes.set_ylim(bottom=0)
    return _svg(figure, label)


def _reliability(report: Mapping[str, Any], name: str) -> Markup:
    plain: dict[str, Any] = {
        key: tuple(math.nan if entry is None else entry for entry in value) if isinstance(value, list) else value
        for key, value in report.items()
    }
    return _svg(reliability_figure({name: CalibrationReport(**plain)}), f"Reliability diagram of {name}")


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
        text = f"{model['name']}: scores of 0.3 and more match precision on average (gap {cell_text(gap, '+.3f')})"
        # too high in some bins and too low in others: the mean alone would hide it
        return text + (f", but not bin by bin: they are {distance:.3f} away from it." if distance >= 0.05 else ".")
    side, verdict = ("above", "too confident") if gap > 0 else ("below", "not confident enough")
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


def _nms_finding(model: Model) -> str:
    gains = {key: _gain(model, "nms", key) for key in model["duplicates"]["nms"] if key != "none"}
    known = {key: gain for key, gain in gains.items() if gain is not None}
    if not known:
        return ""
    best = max(known, key=lambda key: known[key])
    change = cell_text(known[best], "+.3f")
    if known[best] < 0.002:
        return f"{model['name']}: NMS brings no AP (at best {change}, at IoU {best}); none is needed."
    return f"{model['name']}: NMS at IoU {best} changes AP by {change}: that is what duplicates cost."
