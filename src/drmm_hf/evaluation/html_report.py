"""Renders what `analyze` gathered as one HTML page: tables, charts and pictures, the checkpoints side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from .html_mixture import duplicates_section, likelihood_section, uncertainty_section
from .html_page import Cell, Column, Row, cell_text, figure, page, picture, swatch, table
from .html_scores import calibration_section, recalibration_section, thresholds_section
from .html_shared import Checkpoints, compared, key_of, pretty
from .svg_charts import bar_chart

METRIC_NOTES = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "objects below 32² pixels",
    "APm": "objects of 32² to 96² pixels",
    "APl": "objects above 96² pixels",
    "AR1": "recall with 1 detection an image and class",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall, small objects",
    "ARm": "recall, medium objects",
    "ARl": "recall, large objects",
}
RANKING_NOTES = {
    "ap": ("as it is", ""),
    "without_duplicates": ("without duplicates", "no second one of an object, though it may have the better box"),
    "true_first": ("right ones first", "every right detection before every wrong one"),
    "best_first": ("the best boxes first", "the same, and right ones in the order of their IoU"),
}
# More rows of bars than this are unreadable; the table has them all.
MAX_BARS = 30


@dataclass(frozen=True)
class WorstImage:
    """An image to show: its id as text, its file's name, and its ground truth and each checkpoint's detections."""

    image_id: str
    file_name: str
    pictures: Sequence[Image.Image]


def render_report(analysis: Mapping[str, Any], worst: Sequence[WorstImage] = ()) -> str:
    """The whole page, which needs no other file.

    Args:
        analysis: content of analysis.json.
        worst: the worst images, drawn.
    """
    models: Checkpoints = analysis["checkpoints"]
    names = [str(model["name"]) for model in models]
    sections = [
        ("accuracy", "Accuracy", _accuracy(analysis["data"], models)),
        ("calibration", "Calibration", calibration_section(models)),
        ("thresholds", "Which score threshold to use", thresholds_section(models)),
        ("recalibration", "Recalibration", recalibration_section(models)),
        ("duplicates", "Duplicates", duplicates_section(models)),
        ("likelihood", "Likelihood of each stage", likelihood_section(models)),
        ("uncertainty", "Uncertainty of the boxes", uncertainty_section(models)),
        ("worst", "The worst images", _worst(models, worst)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}">\n<h2>{title}</h2>\n{content}\n</section>' for key, title, content in sections
    )
    title = "Detection report: " + ", ".join(names)
    return page(title, f"{_head(analysis, title)}\n<nav>{links}</nav>\n{body}")


def _head(analysis: Mapping[str, Any], title: str) -> str:
    data = analysis["data"]
    counts = f"{data['images']:,} images, {data['objects']:,} objects in {len(data['objects_per_class'])} classes"
    if data["crowd"]:
        counts += f", {data['crowd']:,} crowd regions (ignored)"
    cards = ""
    for index, model in enumerate(analysis["checkpoints"]):
        metrics, measures = model["accuracy"]["metrics"], model["calibration"]["measures"]
        facts = [
            ("AP", (metrics["AP"], ".3f")),
            ("AP50", (metrics["AP50"], ".3f")),
            ("AR100", (metrics["AR100"], ".3f")),
            ("ECE", (measures["ECE"]["value"], ".4f")),
            ("moLRP error", (model["thresholds"]["moLRP"], ".3f")),
            ("duplicates an image, score ≥ 0.1", (_duplicates_at(model, 0.1), ".2f")),
        ]
        entries = "".join(f"<dt>{name}</dt><dd>{escape(cell_text(cell))}</dd>" for name, cell in facts)
        cards += (
            f'<div class="card"><h3>{swatch(index)}{escape(str(model["name"]))}</h3>'
            f'<dl>{entries}</dl><p class="soft">{escape(str(model["checkpoint"]))}</p></div>'
        )
    return (
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="soft">{escape(str(data["data"]))}, split {escape(str(data["split"]))}: {counts}. '
        f"Up to {analysis['top_k']} detections an image. All numbers are fractions of 1 unless they say otherwise; "
        "where checkpoints are compared the best number is blue; a dash stands for a number that does not exist, such "
        f'as the AP of a class without objects.</p>\n<div class="cards">{cards}</div>'
    )


def _accuracy(data: Mapping[str, Any], models: Checkpoints) -> str:
    rows = [
        Row(name, [(model["accuracy"]["metrics"][name], ".3f") for model in models], note, "high")
        for name, note in METRIC_NOTES.items()
    ]
    objects = data["objects_per_class"]
    columns = [Column("objects")]
    for index, model in enumerate(models):
        group = str(model["name"])
        columns += [Column(title, group, title, "high", index) for title in ("AP", "AP50", "AR100")]
    classes = []
    for name, count in objects.items():
        cells: list[Cell] = [f"{count:,}"]
        for model in models:
            entry = model["accuracy"]["per_class"][name]
            cells += [(entry[title], ".3f") for title in ("AP", "AP50", "AR100")]
        classes.append(Row(name, cells))
    bars = {
        name: [model["accuracy"]["per_class"][name]["AP"] for model in models]
        for name in sorted(objects, key=lambda name: -objects[name])[:MAX_BARS]
    }
    caption = "AP of each class" if len(bars) == len(objects) else f"AP of the {MAX_BARS} classes with most objects"
    chart = f'<div class="figures">{figure(bar_chart(bars, title=caption), caption)}</div>' if bars else ""
    return (
        "<p>Average precision (AP) and recall (AR) as COCO defines them. AP50 far above AP75 means that objects are "
        "found but their boxes are loose; AR100 far above AP, that they are found but ranked among false ones.</p>"
        + compared(models, rows)
        + f"<h3>Class by class</h3><p>The classes with few objects have uncertain numbers; those with a low AR need "
        f"more examples, those with a low AP at a good AR are confused or badly scored.</p>{key_of(models)}{chart}"
        + table(columns, classes, "class")
        + _order(models)
    )


def _order(models: Checkpoints) -> str:
    """What AP would be if the ground truth corrected the order of the detections."""
    rows = [
        Row(title, [(model["ranking"][name], ".3f") for model in models], note, "high")
        for name, (title, note) in RANKING_NOTES.items()
    ]
    return (
        "<h3>What the order costs</h3><p>AP with the same boxes and classes, and the order of the detections corrected "
        "by the ground truth. The step to “right ones first” is what false detections with high scores cost: confused "
        "classes, background, missing labels. The step to “the best boxes first” is what scores cost that do not tell "
        "good boxes from loose ones. What is left to 1 are missed objects and loose boxes.</p>"
        + compared(models, rows, "AP")
        + f'<p class="note">{escape(pretty(models[0]["ranking"]["settings"]))}</p>'
    )


def _worst(models: Checkpoints, worst: Sequence[WorstImage]) -> str:
    text = (
        "<p>The images with the most error, summed over the checkpoints: missed objects, false detections and loose "
        "boxes, each class cut at its threshold from above. Look for what they share (blur, crowding, size, labels "
        "that are missing or wrong): that is where more or better data helps most.</p>"
    )
    if not worst:
        return text + '<p class="note">No image to show.</p>'
    parts = []
    for image in worst:
        captions = ["ground truth"]
        for model in models:
            entry = model["images"][image.image_id]
            captions.append(
                f"{model['name']}: error {entry['error']:.1f} ({entry['missed']} missed, {entry['false']} false, "
                f"{entry['right']} right)"
            )
        shown = "".join(picture(*pair) for pair in zip(image.pictures, captions, strict=True))
        parts.append(
            f'<h3>{escape(image.file_name)} <span class="soft">image {escape(image.image_id)}</span></h3>'
            f'<div class="pictures">{shown}</div>'
        )
    return text + "".join(parts)


def _duplicates_at(model: Mapping[str, Any], score: float) -> float | None:
    counts = {entry["score_threshold"]: entry["per_image"] for entry in model["duplicates"]["counts"]}
    return counts.get(score)
