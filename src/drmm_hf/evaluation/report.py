"""The page of `drmm analyze`: what analysis.json says, as tables, figures and pictures, checkpoints side by side.

The template report.html.jinja walks the values of analysis.json and has the words; here are the look of a number, the
figures, the sentences that depend on numbers, and the worst images.
"""

import base64
import copy
import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from ..data import DetectionDataset, decode_image
from ..files import require
from ..visualization import draw_detections
from .calibration import BAR, COUNT, FAINT, GRID, INK, OVER, UNDER, CalibrationReport, reliability_figure
from .coco_input import CocoGroundTruth

Model: TypeAlias = Mapping[str, Any]
"""The entry of a checkpoint in analysis.json."""

# Of the checkpoints: distinct for most colour-blind readers, and of like weight on white and near-black (Paul Tol).
SERIES = ("#4477aa", "#cc6677", "#3a9a5b", "#b8862b", "#8a63b5", "#2fa3b5")
PAGE = "#ffffff"
# Colours of figures that have to follow the page, in light, dark and print.
THEME = {
    INK: "--ink", FAINT: "--soft", GRID: "--line", PAGE: "--page", COUNT: "--fill", BAR: "--bar", OVER: "--warn",
    UNDER: "--under",
}  # fmt: skip
STYLE: Any = {
    "axes.spines.top": False, "axes.spines.left": False, "axes.spines.right": False, "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT, "axes.labelsize": 10.5, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID,
    "xtick.color": FAINT, "xtick.labelsize": 10.5, "xtick.major.size": 0, "ytick.color": FAINT, "ytick.labelsize": 10.5,
    "ytick.major.size": 0, "lines.markersize": 5,
}  # fmt: skip
SHOWN = 0.3  # score from which a detection counts for D-ECE
TRUSTED, DISTRUSTED = 0.08, 0.12  # D-ECE up to which scores can be trusted, and above which they cannot
FEW = 50  # detections or objects, below which nothing is said about them
VERDICTS = {
    "few": "too few detections to tell whether to trust its scores",
    "trusted": "its scores can be trusted",
    "care": "its scores can be used with care",
    "not": "its scores cannot be trusted",
}
LONGEST_SIDE = 900  # of a picture, pixels: sharp on a wide screen, and ten images stay a few megabytes


def render_report(analysis: Mapping[str, Any], worst: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole HTML page, which needs no other file and no network, of analysis.json and what `draw_images` gives.

    An ImportError names the extra where matplotlib is missing.
    """
    matplotlib = require("matplotlib", "plots")
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
        model["duplicates"]["gains"] = {part: _gains(model, part) for part in ("nms", "winner_takes_all")}
    environment.filters |= {"pretty": lambda text: text.replace(">=", "≥"), "jpeg": _jpeg, "counted": _counted}
    environment.globals |= {
        "bars": functools.partial(_bars, models),
        "cells": lambda *path, **options: compared_cells(models, path, **options),
        "color": lambda index: SERIES[index % len(SERIES)],
        "lines": functools.partial(_lines, models),
        "notes": functools.partial(_notes, models),
        "reliability": _reliability,
    }
    findings = {"recalibration": _recalibration_finding, "duplicates": _nms_finding}
    template = environment.get_template("report.html.jinja")
    # class names are no formulas, text stays text, and the same figure is the same text
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "drmm", "text.parse_math": False}):
        return template.render(
            analysis=analysis,
            models=models,
            data=analysis["data"],
            worst=worst,
            limits=(TRUSTED, DISTRUSTED),
            summaries=[_summary(model) for model in models],
            findings={part: [text for model in models if (text := find(model))] for part, find in findings.items()},
        )


def compared_cells(
    models: Sequence[Model],
    path: Sequence[Any],
    *,
    columns: Sequence[Any] = ((),),
    form: str | Sequence[str] = ".3f",
    better: str | Sequence[str] = "",
    within: bool = False,
) -> list[list[tuple[str, bool]]]:
    """A row of a table: of each checkpoint the text of its cell in each column, and whether that is the best number.

    Args:
        path: keys from a checkpoint to what the row is about.
        columns: further keys, a tuple or one, for each column.
        form: how to write numbers, in all columns or in each.
        better: `high` or `low`, in all columns or in each; "" marks nothing.
        within: compare the columns of a checkpoint with each other, and not the same column of all checkpoints.
    """
    keys = [column if isinstance(column, tuple) else (column,) for column in columns]
    values = [[_look(model, *path, *key) for key in keys] for model in models]
    forms = [form] * len(keys) if isinstance(form, str) else form
    wanted = [better] * len(keys) if isinstance(better, str) else better

    def is_best(model: int, column: int) -> bool:
        rivals = values[model] if within else [own[column] for own in values]
        known = [value for value in rivals if not isinstance(value, str) and _known(value)]
        best = {"high": max, "low": min, "": None}[wanted[column]]
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
) -> list[dict[str, Any]]:
    """Images by their ids as text: `image_id`, `file_name`, and as `pictures` ground truth and each model's detections.

    `results` has of each model its COCO results and the score threshold of each category id. A FileNotFoundError or
    ValueError names the file of an image that cannot be read.
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
        path = Path(row["image"]["path"] or f"image {image_id}")
        drawn.append({"image_id": image_id, "file_name": path.name, "pictures": pictures})
    return drawn


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _look(value: Any, *path: Any) -> Any:
    """What lies at these keys, "*" standing for every entry of a list; None where one of them is missing."""
    if not path:
        return value
    key, *rest = path
    if key == "*":
        return [_look(entry, *rest) for entry in value]
    try:
        return _look(value[key], *rest)
    except (KeyError, IndexError, TypeError):
        return None


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
    """A figure as SVG for the page, whose greys are those of the page."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    text = written.getvalue()
    text = text[text.index("<svg") + len("<svg") :].replace("*{stroke-linejoin", "svg *{stroke-linejoin")
    for color, name in THEME.items():
        text = text.replace(color, f"var({name})")
    return Markup('<svg role="img" aria-label="{}"').format(label) + Markup(text)


def _axes(height: float, **labels: str) -> tuple[Any, Any]:
    figure = require("matplotlib.figure", "plots").Figure(figsize=(5, height), layout="constrained")
    axes = figure.subplots()
    axes.set(**labels)
    return figure, axes


def _bars(models: Sequence[Model], names: Sequence[str]) -> Markup:
    """AP of each class."""
    with require("matplotlib", "plots").rc_context(STYLE):
        thick = 0.8 / len(models)
        figure, axes = _axes(0.5 + len(names) * (0.12 + 0.12 * len(models)))
        for index, model in enumerate(models):
            values = [model["accuracy"]["per_class"][name]["AP"] or 0.0 for name in names]
            places = np.arange(len(names)) + thick * (index - (len(models) - 1) / 2)
            axes.barh(places, values, thick * 0.85, color=SERIES[index % len(SERIES)])
        axes.set_yticks(range(len(names)), [name if len(name) <= 18 else name[:17] + "…" for name in names])
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(visible=False, axis="y")
        return _svg(figure, "AP of each class")


def _lines(
    models: Sequence[Model],
    label: str,
    x_label: str,
    ticks: Sequence[Any],
    solid: Sequence[Any],
    dashed: Sequence[Any] = (),
    *,
    ideal: Sequence[float] = (),
    from_zero: bool = True,
) -> Markup:
    """The lists of numbers at the paths `solid` and `dashed` of each checkpoint, over labelled ticks."""
    with require("matplotlib", "plots").rc_context(STYLE):
        figure, axes = _axes(3.2, xlabel=x_label, ylabel=label)
        axes.margins(0.05, 0.1)
        lowest = 0.0
        for path, style in ((solid, "-"), (dashed, (0, (4, 3)))):
            for index, model in enumerate(models if path else []):
                color = SERIES[index % len(SERIES)]
                heights = np.array(_look(model, *path) or [], dtype=float)  # nan for None, which is left out
                lowest = np.nanmin([lowest, *heights])
                face = color if path is solid else PAGE
                axes.plot(range(len(heights)), heights, "o", linestyle=style, color=color, markerfacecolor=face)
        axes.plot(range(len(ideal)), ideal, color=INK, linestyle=(0, (4, 4)), linewidth=1)
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" if isinstance(tick, float) else str(tick) for tick in ticks])
        axes.grid(visible=False, axis="x")
        if from_zero:
            axes.axhline(0, color=FAINT, linewidth=0.8)
            if lowest == 0:
                axes.set_ylim(bottom=0)
        return _svg(figure, label)


def _reliability(report: Mapping[str, Any], name: str) -> Markup:
    return _svg(reliability_figure({name: CalibrationReport.from_dict(report)}), f"Reliability diagram of {name}")


def _gains(model: Model, part: str) -> list[float | None]:
    """Change of AP by each suppression but "none"."""
    sweep, before = model["duplicates"][part], model["duplicates"]["nms"]["none"]["AP"]
    after = [entry["AP"] for overlap, entry in sweep.items() if overlap != "none"]
    return [None if before is None or ap is None else ap - before for ap in after]


def verdict(d_ece: float | None, detections: int) -> str:
    """Whether scores can be trusted, a key of VERDICTS, from the D-ECE of so many detections.

    One standard error, at most 0.5/√n, keeps luck out of both "trusted" and "not".
    """
    if d_ece is None or detections < FEW:
        return "few"
    error = 0.5 / math.sqrt(detections)
    return "trusted" if d_ece + error <= TRUSTED else "not" if d_ece - error > DISTRUSTED else "care"


def _summary(model: Model) -> tuple[str, list[str]]:
    """The verdict on a checkpoint, and what it is from and what follows, in plain sentences."""
    d_ece, count = (model["calibration"]["measures"]["D-ECE"][name] for name in ("value", "detections"))
    known, (correction, corrected) = verdict(d_ece, count), _correction(model)
    sentences = [f"{_counted(count, 'detection')} with a score of {SHOWN} or more."]
    if known != "few":
        sentences = [*_gap_sentences(model, d_ece, count), _threshold_sentence(model)]
    if known == "few":
        ap = cell_text(model["accuracy"]["metrics"]["AP"], ".3f")
        objects = sum(entry["objects"] for entry in model["thresholds"]["per_class"].values())
        following = "analyze more labeled images"
        if objects >= 2 * FEW:  # enough of them, and it is sure of less than half
            following = f"train longer: it finds few of the {objects:,} objects (AP {ap})"
        page = "docs/train.md"
    elif known == "trusted":
        following = "on images like these, read scores as probabilities; drmm predict --analysis applies the thresholds"
        page = "docs/confidence.md, “Which threshold”"
    elif corrected <= DISTRUSTED:
        following = f"correct the scores by a fit on images kept aside: here {correction}"
        page = "docs/confidence.md, “Correcting the scores”"
    else:
        following = "train longer or on more images; correcting the scores alone does not make them good"
        page = "docs/train.md"
    return f"{model['name']}: {VERDICTS[known]}.", [*sentences, f"Next: {following} ({page})."]


def _gap_sentences(model: Model, d_ece: float, count: int) -> list[str]:
    report = model["calibration"]["reliability"]
    columns = (report[f"bin_{name}"] for name in ("edges", "counts", "confidences", "accuracies"))
    bins = [one for one in zip(*columns, strict=False) if one[1] and one[0] >= SHOWN - 1e-9]
    gap = sum(n * (score - right) for _, n, score, right in bins) / count
    side = f"{abs(gap):.3f} too {'high' if gap > 0 else 'low'}" if abs(gap) >= 0.02 else "neither too high nor too low"
    low, n, score, right = max(bins, key=lambda one: one[1] * abs(one[2] - one[3]))
    return [
        f"Scores of {SHOWN} or more are off by {d_ece:.3f} (D-ECE of {count:,} detections), on average {side}.",
        f"Where that weighs most: of the {_counted(n, 'detection')} with a score from {low:.1f} to {low + 0.1:.1f}, "
        f"{round(n * right):,} were right ({right:.0%}); the scores promise {score:.0%}.",
    ]


def _threshold_sentence(model: Model) -> str:
    found = {name: entry for name, entry in model["thresholds"]["per_class"].items() if entry["objects"]}
    limits = {n: e["score_threshold"] for n, e in found.items() if isinstance(e["score_threshold"], float)}
    if not limits:
        return "No threshold leaves detections worth keeping."
    named = ", ".join(f"{name} {limit:.2f}" for name, limit in limits.items())
    if len(limits) > 4:
        named = f"{min(limits.values()):.2f} to {max(limits.values()):.2f}, class by class"
    right, objects = (sum(entry[name] for entry in found.values()) for name in ("true_positives", "objects"))
    kept = right + sum(entry["false_positives"] for entry in found.values())
    return (
        f"Threshold to use: {named}. That keeps {_counted(kept, 'detection')}, {right:,} of them right "
        f"({right / kept:.0%}), and finds {right / objects:.0%} of the {_counted(objects, 'object')}."
    )


def _correction(model: Model) -> tuple[str, float]:
    """What the best of the corrections that lower both D-ECE and the Brier score brings, and the D-ECE after it."""
    values = model["recalibration"]["values"].items()
    errors = {name: np.array([value["D-ECE"], value["Brier"]], dtype=float) for name, value in values}  # nan for None
    better = [name for name in errors if (errors[name] < errors["raw"]).all()]
    if not better:
        return "", math.inf
    best = min(better, key=lambda name: errors[name][1])
    (d_ece, brier), (lower, lower_brier) = errors["raw"], errors[best]
    text = f"{best} lowers D-ECE from {d_ece:.3f} to {lower:.3f}, the Brier score from {brier:.4f} to {lower_brier:.4f}"
    return text, lower


def _recalibration_finding(model: Model) -> str:
    count = model["calibration"]["measures"]["D-ECE"]["detections"]
    text = _correction(model)[0] or "no correction lowers both D-ECE and the Brier score; use the scores as they are"
    if count < FEW:
        text = f"{_counted(count, 'detection')} with a score of {SHOWN} or more: too few to tell"
    return f"{model['name']}: {text}." if model["recalibration"]["values"] else ""


def _counted(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural * (number != 1)}"


def _nms_finding(model: Model) -> str:
    gains = zip(model["duplicates"]["gains"]["nms"], model["duplicates"]["winner_takes_all"], strict=True)
    known = [(gain, overlap) for gain, overlap in gains if gain is not None]
    objects = sum(entry["objects"] for entry in model["thresholds"]["per_class"].values())
    if not known:
        return ""
    if objects < FEW:
        return f"{model['name']}: {_counted(objects, 'object')}: too few to tell."
    best, overlap = max(known, key=lambda pair: pair[0])
    change = cell_text(best, "+.3f")
    if best < 0.002:
        return f"{model['name']}: NMS brings no AP (at best {change}, at IoU {overlap}); none is needed."
    return f"{model['name']}: NMS at IoU {overlap} changes AP by {change} ({_counted(objects, 'object')})."
