"""The measured part of a model card: tables, calibration, thresholds, and the same numbers as a model-index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult

from .card_text import DIAGRAM, cell_text, number, table

_COLUMNS = ("AP", "AP50", "AP75", "AR100", "ECE", "D-ECE")
_INDEXED = {
    "AP": ("mean_average_precision", "AP (IoU 0.50:0.95)"),
    "AP50": ("mean_average_precision", "AP50"),
    "AP75": ("mean_average_precision", "AP75"),
    "AR100": ("mean_average_recall", "AR100"),
    "ECE": ("expected_calibration_error", "ECE"),
    "D-ECE": ("expected_calibration_error", "D-ECE"),
}
_FEW_OBJECTS = 100


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, and how.

    Attributes:
        dataset, dataset_type: its name, and the short one of the model-index.
        split: the one that the numbers of `runs` are of.
        runs: name -> content of metrics.json; the first is that of the model, the others of other seeds.
        how: command, date and machine of the measurement, as Markdown.
        facts: split -> extract of an analysis of the model (`condense_analysis`), may be empty.
    """

    dataset: str
    dataset_type: str
    split: str
    runs: Mapping[str, Mapping[str, Any]]
    how: str
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> the numbers of the model itself."""
        rows = {self.split: {name: value for name, value in _first(self.runs).items() if name in _COLUMNS}}
        for split, facts in self.facts.items():
            measures = facts["calibration"]["measures"]
            values = {**facts["accuracy"]["metrics"], **{name: measures[name]["value"] for name in ("ECE", "D-ECE")}}
            rows.setdefault(split, {name: values[name] for name in _COLUMNS})
        known = {
            split: {name: value for name, value in row.items() if value is not None} for split, row in rows.items()
        }
        return {split: row for split, row in known.items() if row}


def results_text(measured: Measured) -> str:
    """Accuracy and calibration errors, of the model and of the other seeds."""
    rows: list[list[Any]] = [
        [split, _images(measured, split), *(number(row.get(name)) for name in _COLUMNS)]
        for split, row in measured.metrics.items()
    ]
    text = f"On {cell_text(measured.dataset)}:\n\n" + table(("split", "images", *_COLUMNS), rows)
    if len(measured.runs) > 1:
        others = list(measured.runs.items())[1:]
        text += f"\n\nThe same training with other seeds, on {cell_text(measured.split)}, and the mean of all:\n\n"
        mean = {name: sum(run[name] for run in measured.runs.values()) / len(measured.runs) for name in _COLUMNS}
        lines = [*others, ("mean", mean)]
        text += table(
            ("run", *_COLUMNS), [[name, *(number(run[column]) for column in _COLUMNS)] for name, run in lines]
        )
    return (
        f"{text}\n\nAP and AR are COCO's (pycocotools), as fractions of 1. ECE is the expected calibration error over "
        f"the "
        "100 best detections of an image, D-ECE over those with a score of 0.3 or more (IoU 0.5, ten bins): how far "
        "scores "
        f"and precision are apart.\n\n{measured.how}"
    )


def calibration_text(measured: Measured) -> str | None:
    """Reliability diagram and thresholds of the measured split; None without an analysis of it."""
    facts = measured.facts.get(measured.split)
    if facts is None:
        return None
    data, duplicates = facts["data"], {entry["score_threshold"]: entry for entry in facts["duplicates"]["counts"]}
    classes = facts["thresholds"]["per_class"]
    accuracy = facts["accuracy"]["per_class"]
    rows = [
        [
            name,
            entry["objects"],
            *(number(entry[column]) for column in ("score_threshold", "precision", "recall")),
            *(number(accuracy[name][column]) for column in ("AP", "AP50")),
        ]
        for name, entry in classes.items()
    ]
    text = f"""![Reliability diagram: precision against score]({DIAGRAM})

{reading(facts)}

The threshold to use for each class, where missed, false and misplaced boxes together cost least (LRP-optimal, IoU 0.5),
and what it gives on the {cell_text(data["split"])} split, on which it was chosen:

{table(("class", "objects", "threshold", "precision", "recall", "AP", "AP50"), rows)}"""
    if (entry := duplicates.get(0.3)) is not None:
        text += (
            f"\n\nNo NMS is needed: of the detections with a score of 0.3 or more, {entry['per_image']:.2f} an image "
            f"lie on an "
            "object that a higher-scored one has already."
        )
    return text


def reading(facts: Mapping[str, Any]) -> str:
    """The diagram in words: the bins in which scores are furthest from precision."""
    report = facts["calibration"]["reliability"]
    edges, counts = report["bin_edges"], report["bin_counts"]
    bins = [
        (confidence - precision, edges[index], edges[index + 1], counts[index])
        for index, (confidence, precision) in enumerate(
            zip(report["bin_confidences"], report["bin_accuracies"], strict=True)
        )
        if counts[index] and confidence >= 0.3
    ]
    if not bins:
        return "No detection has a score of 0.3 or more."
    gap, low, high, count = max(bins, key=lambda entry: abs(entry[0]) * entry[3])
    side = "too high" if gap > 0 else "too low"
    return (
        f"A score of the model is meant to be the share of such detections that are right. Above 0.3 it is furthest "
        f"from "
        f"that, by number of detections, between {low:.1f} and {high:.1f}: there it is {side} by {abs(gap):.2f} on "
        f"average "
        f"({count} detections)."
    )


def evaluation_results(measured: Measured) -> list[EvalResult]:
    """The model's own numbers for the model-index; nothing but what was measured."""
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type=measured.dataset_type,
            dataset_name=measured.dataset,
            dataset_split=split,
            metric_type=_INDEXED[name][0],
            metric_name=_INDEXED[name][1],
            metric_value=round(value, 4),
        )
        for split, row in measured.metrics.items()
        for name, value in row.items()
    ]


def measured_limits(measured: Measured) -> list[str]:
    """What the numbers do not say."""
    lines = [
        f"It knows what {cell_text(measured.dataset)} shows. Other cameras, places or kinds of picture need a "
        f"measurement of "
        "their own, and so do their scores: calibration does not carry over.",
        "What annotators left out, a detector learns to leave out, and a right detection of it counts as a wrong one "
        "here.",
    ]
    facts = measured.facts.get(measured.split)
    if facts is not None:
        rare = [
            f"{cell_text(name)} ({count})"
            for name, count in facts["data"]["objects_per_class"].items()
            if count < _FEW_OBJECTS
        ]
        if rare:
            shown = ", ".join(rare[:8]) + (f" and {len(rare) - 8} more" if len(rare) > 8 else "")
            lines.append(f"Classes measured on fewer than {_FEW_OBJECTS} objects, so with little certainty: {shown}.")
        lines.append(
            "The thresholds were chosen on the images that they are measured on, so they look a little better."
        )
    return lines


def _images(measured: Measured, split: str) -> Any:
    facts = measured.facts.get(split)
    return None if facts is None else facts["data"]["images"]


def _first(runs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(runs.values()))
