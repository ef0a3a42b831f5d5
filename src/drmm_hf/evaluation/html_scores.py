"""The sections of the HTML report on scores: calibration, thresholds, recalibration."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from .html_page import Cell, Column, Row, cell_text, figure, table
from .html_shared import Checkpoints, compared, findings_of, notes_of, pretty, signed
from .svg_charts import reliability_chart

MEASURE_NOTES = {
    "ECE": "score against precision, all detections",
    "D-ECE": "the same for detections worth showing",
    "LaECE": "score against IoU, class by class",
    "LaECE0": "the same, any overlap counts",
    "LaACE0": "the same without bins",
    "Brier": "squared error of the score, right or wrong",
    "OCE": "squared error around each object; a miss costs 1",
}

PART_NOTES = {
    "score": ("p·o", "the score"),
    "class_probability": ("p", "class probability"),
    "objectness": ("o", "objectness"),
}


def calibration_section(models: Checkpoints) -> str:
    """Calibration errors and reliability diagrams."""
    measures = [model["calibration"]["measures"] for model in models]
    rows = [
        Row(
            _subscript(name),
            [(of_model[name]["value"], ".4f") for of_model in measures],
            f"{note}; {pretty(measures[0][name]['settings'])}",
            "low",
        )
        for name, note in MEASURE_NOTES.items()
    ]
    charts = "".join(
        figure(
            reliability_chart(model["calibration"]["reliability"], str(model["name"]), index),
            str(model["name"]),
            f"ECE {cell_text((measures[index]['ECE']['value'], '.4f'))}",
        )
        for index, model in enumerate(models)
    )
    settings = pretty(models[0]["calibration"]["reliability_settings"])
    return (
        "<p>Whether a score can be read as a probability: of the detections with score 0.8, eight in ten should be "
        "right. All of these are errors, 0 is best, and each means something with its settings only: most of a hundred "
        "detections an image have tiny scores, which hold the ECE down. If the errors are large, see Recalibration.</p>"
        + findings_of(_calibration_finding(model) for model in models)
        + compared(models, rows)
        + "<h3>Reliability diagrams</h3><p>A bar is the precision of the detections in a range of scores; the outline "
        "at its top is how far their mean score lies from it. Red, above the bar: the scores promise too much. "
        "Inside the bar: they promise too little. Bars on the dashed line are right.</p>"
        f'<p class="note">{escape(settings)}</p>'
        f'<div class="figures">{charts}</div>' + _parts(models)
    )


def _parts(models: Checkpoints) -> str:
    """Class probability and objectness by themselves, for the checkpoints whose results have them."""
    known = [(index, model) for index, model in enumerate(models) if model["calibration"].get("parts")]
    if not known:
        return ""
    reports = [model["calibration"].get("parts") or {} for model in models]
    rows = [
        Row(title, [(report.get(name, {}).get("ece"), ".4f") for report in reports], note, "low")
        for name, (title, note) in PART_NOTES.items()
    ]
    charts = "".join(
        figure(
            reliability_chart(report, f"{model['name']}, {title}", index),
            f"{model['name']}: {title}",
            f"ECE {cell_text((report['ece'], '.4f'))}",
        )
        for index, model in known
        for name, (title, _) in PART_NOTES.items()
        for report in [model["calibration"]["parts"][name]]
        if name != "score"
    )
    return (
        "<h3>Class probability and objectness by themselves</h3><p>A score is a product p·o: the probability of the "
        "class if there is an object, times the probability of an object. The same detections, compared with p alone "
        "and with o alone: where the bars of o come near the diagonal and those of p stay below, the objectness makes "
        f'the scores reliable.</p>{compared(models, rows, "ECE")}<div class="figures">{charts}</div>'
    )


def thresholds_section(models: Checkpoints) -> str:
    """The LRP-optimal score threshold of each class."""
    columns: list[Column] = []
    for index, model in enumerate(models):
        name = str(model["name"])
        columns += [
            Column("score ≥", name, series=index),
            Column("precision", name, "precision", "high", index),
            Column("recall", name, "recall", "high", index),
            Column("mean IoU", name, "mean IoU", "high", index),
            Column("LRP error", name, "LRP", "low", index),
        ]
    rows = []
    for class_name, first in models[0]["thresholds"]["per_class"].items():
        cells: list[Cell] = []
        for model in models:
            entry = model["thresholds"]["per_class"][class_name]
            none = entry["score_threshold"] is None and entry["objects"]
            cells += ["keep none" if none else (entry["score_threshold"], ".3f")]
            cells += [(entry[key], ".3f") for key in ("precision", "recall", "mean_iou", "LRP")]
        rows.append(Row(class_name, cells, f"{first['objects']:,} objects"))
    cells = []
    for model in models:
        cells += [None, None, None, None, (model["thresholds"]["moLRP"], ".3f")]
    rows.append(Row("mean of the classes (moLRP)", cells))
    return (
        "<p>To show or count detections, keep those of each class that score at least its threshold: there misses, "
        "false detections and loose boxes together (the LRP error) are fewest. If missing an object is worse than a "
        "false alarm in your work, choose lower. Thresholds found on the images they are judged on are a little "
        "optimistic.</p>"
        + table(columns, rows, "class")
        + f'<p class="note">{escape(pretty(models[0]["thresholds"]["settings"]))}</p>'
    )


def recalibration_section(models: Checkpoints) -> str:
    """What a correction of the scores brings on images it was not fitted on."""
    notes = notes_of(models, [model["recalibration"]["note"] for model in models])
    text = (
        "<p>What a simple correction of the scores, learnt on one half of the images, brings on the other half, both "
        "ways and averaged. The ranking within a class barely changes, so AP stays; if isotonic regression lowers the "
        "errors much, fit it on held-out images before you read scores as probabilities. If not, leave them.</p>"
    )
    measured = next((model["recalibration"] for model in models if model["recalibration"]["values"]), None)
    if measured is None:
        return text + notes
    methods = list(measured["values"])
    columns = [
        Column(method, str(model["name"]), f"{index}", "low", index)
        for index, model in enumerate(models)
        for method in methods
    ]
    rows = [
        Row(
            _subscript(metric),
            [
                (model["recalibration"]["values"].get(method, {}).get(metric), ".4f")
                for model in models
                for method in methods
            ],
            pretty(settings),
        )
        for metric, settings in measured["metric_settings"].items()
    ]
    return (
        text
        + findings_of(_recalibration_finding(model) for model in models)
        + table(columns, rows, "error")
        + f'<p class="note">{escape(pretty(measured["settings"]))}; blue: the least of the same checkpoint</p>'
        + notes
    )


def _calibration_finding(model: Mapping[str, Any]) -> str:
    report = model["calibration"]["reliability"]
    known = [
        (count, confidence - precision)
        for count, confidence, precision, low in zip(
            report["bin_counts"],
            report["bin_confidences"],
            report["bin_accuracies"],
            report["bin_edges"][:-1],
            strict=True,
        )
        if count and low >= 0.3 - 1e-9
    ]
    total = sum(count for count, _ in known)
    if not total:
        return ""
    gap = sum(count * difference for count, difference in known) / total
    distance = sum(count * abs(difference) for count, difference in known) / total
    if abs(gap) < 0.02:
        text = f"{model['name']}: scores of 0.3 and more match precision on average (gap {signed(gap, 3)})"
        # too high in some bins and too low in others: the mean alone would hide it
        return text + (f", but not bin by bin: they are {distance:.3f} away from it." if distance >= 0.05 else ".")
    side = "above" if gap > 0 else "below"
    verdict = "too confident" if gap > 0 else "not confident enough"
    return f"{model['name']}: scores of 0.3 and more lie {abs(gap):.3f} {side} precision on average: {verdict}."


def _recalibration_finding(model: Mapping[str, Any]) -> str:
    values = model["recalibration"]["values"]
    known = {
        method: values[method]["ECE"]
        for method in values
        if values[method]["ECE"] is not None and math.isfinite(values[method]["ECE"])
    }
    if "raw" not in known or len(known) < 2:
        return ""
    best = min(known, key=lambda method: known[method])
    if best == "raw":
        return f"{model['name']}: no correction lowers the ECE of {known['raw']:.4f}; use the scores as they are."
    return f"{model['name']}: {best} lowers the ECE from {known['raw']:.4f} to {known[best]:.4f}."


def _subscript(metric: str) -> str:
    return metric.replace("CE_0", "CE₀").replace("CE0", "CE₀")
