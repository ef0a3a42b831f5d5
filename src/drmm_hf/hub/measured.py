"""What was measured of a model, as its card shows it: metrics, and the extract of an analysis."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation import CalibrationReport
from ..files import read_json

# columns of the tables of results, and their type and name in a model-index
METRICS = {
    "AP": ("mean_average_precision", "AP (IoU 0.50:0.95)"),
    "AP50": ("mean_average_precision", "AP50"),
    "AP75": ("mean_average_precision", "AP75"),
    "AR100": ("mean_average_recall", "AR100"),
    "ECE": ("expected_calibration_error", "ECE"),
    "D-ECE": ("expected_calibration_error", "D-ECE"),
}


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        dataset, dataset_type: its name, and the short one of the model-index.
        split: the one that the numbers of `runs` are of.
        runs: contents of metrics.json; the first is that of the model, the others of other seeds.
        facts: split -> extract of an analysis of the model (`condense_analysis`), may be empty.
    """

    dataset: str
    dataset_type: str
    split: str
    runs: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> the numbers of the model itself."""
        rows: dict[str, Mapping[str, Any]] = {self.split: self.runs[0]} if self.runs[0] else {}
        for split, facts in self.facts.items():
            measures = {name: measure["value"] for name, measure in facts["calibration"]["measures"].items()}
            rows.setdefault(split, {**facts["accuracy"]["metrics"], **measures})
        return {
            split: {name: row[name] for name in METRICS if row.get(name) is not None} for split, row in rows.items()
        }

    @property
    def model_index(self) -> list[EvalResult]:
        """The same for the header of the card."""
        return [
            EvalResult(
                task_type="object-detection",
                dataset_type=self.dataset_type,
                dataset_name=self.dataset,
                dataset_split=split,
                metric_type=METRICS[name][0],
                metric_name=METRICS[name][1],
                metric_value=round(value, 4),
            )
            for split, row in self.metrics.items()
            for name, value in row.items()
        ]


def condense_analysis(path: str | Path, model: str | Path | None = None) -> dict[str, Any]:
    """What a card shows of an `analysis.json` of `drmm analyze`; such an extract is returned as it is.

    Args:
        path: analysis.json, or an extract of one.
        model: folder of the checkpoint, where the analysis compares several.

    Returns:
        Parts `data`, `accuracy`, `calibration`, `thresholds` and `duplicates` as `analyze_results` has them, without
        the images and the paths.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an analysis, or one of several other checkpoints.
    """
    content = read_json(path)
    try:
        parts = content.get("checkpoints", [{}])
        if len(parts) > 1:
            wanted = {Path(model).resolve(), Path(model).resolve() / "model"} if model is not None else set()
            parts = [part for part in parts if Path(part["checkpoint"]).resolve() in wanted]
        if len(parts) != 1:
            raise ValueError(f"has not one part about {model}")
        content = {**content, **parts[0]}
        facts = {
            "data": {name: content["data"][name] for name in ("split", "images", "objects", "objects_per_class")},
            "accuracy": content["accuracy"],
            "calibration": {name: content["calibration"][name] for name in ("measures", "reliability")},
            "thresholds": content["thresholds"],
            "duplicates": {"counts": content["duplicates"]["counts"]},
        }
        reliability(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"has no field {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {reason}; give the analysis.json of this model that drmm analyze wrote") from error
    return facts


def worst_bin(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """The bin, of scores from 0.3, with the most detections times distance of score and precision."""
    report = reliability(facts)
    bins = [
        {"gap": confidence - precision, "low": report.bin_edges[i], "high": report.bin_edges[i + 1], "count": count}
        for i, (count, confidence, precision) in enumerate(
            zip(report.bin_counts, report.bin_confidences, report.bin_accuracies, strict=True)
        )
        if count and confidence >= 0.3
    ]
    return max(bins, key=lambda entry: abs(entry["gap"]) * entry["count"], default=None)


def reliability(facts: Mapping[str, Any]) -> CalibrationReport:
    """The report behind the reliability diagram of an extract."""
    # JSON has None for the nan of an empty bin
    values: dict[str, Any] = {
        name: tuple(math.nan if entry is None else entry for entry in value) if isinstance(value, list) else value
        for name, value in facts["calibration"]["reliability"].items()
    }
    return CalibrationReport(**values)
