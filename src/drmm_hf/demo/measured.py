"""What a report of `scripts/analyze.py` measured, as far as the demo shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

_REMEDY = "write it again with scripts/analyze.py"


@dataclass(frozen=True)
class Measured:
    """Calibration of one checkpoint on one data set.

    Attributes:
        edges: (M+1,) edges of the bins of scores over [0, 1].
        counts: (M,) detections in each bin; confidences: (M,) their mean score; precisions: (M,) the share of them
            that was right. nan in empty bins.
        thresholds: best threshold of each class by name (LRP), None where there is none.
        factor: on γ, for intervals of the edges; 1 if none was fitted.
        coverage: share of edges inside their interval, by level, with that factor on γ.
        images: number of images it was measured on; settings: of the precision, in words.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidences: tuple[float, ...]
    precisions: tuple[float, ...]
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
        counts = np.array(self.counts, dtype=float)
        right = np.where(counts > 0, counts * np.nan_to_num(self.precisions), 0.0)
        above, right_above = (np.cumsum(values[::-1])[::-1] for values in (counts, right))
        filled = above > 0
        if not filled.any() or threshold >= self.edges[int(filled.sum())]:
            return float("nan")
        lower = np.array(self.edges[:-1])[filled]
        return float(np.interp(threshold, lower, right_above[filled] / above[filled]))

    def precision_at(self, scores: Sequence[float]) -> list[float]:
        """Share of right detections with about these scores: the bins' precisions, interpolated between their means."""
        filled = np.array(self.counts) > 0
        if not filled.any():
            return [float("nan")] * len(scores)
        values = np.interp(scores, np.array(self.confidences)[filled], np.array(self.precisions)[filled])
        return [float(value) for value in values]


def load_measured(path: str | PathLike[str], checkpoint: str, classes: Sequence[str]) -> Measured:
    """Read the part of an `analysis.json` that is about one checkpoint.

    Args:
        path: written by `scripts/analyze.py`.
        checkpoint: as it was given there; a report on a single checkpoint may be about any folder or Hub id, since
            checkpoints are moved and published.
        classes: names of the model's classes, which the report must know.

    Raises:
        FileNotFoundError, ValueError: the file is no such report, or one of another model.
    """
    source = Path(path)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{source}: no such report; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: cannot be read as JSON ({error}); {_REMEDY}") from error
    try:
        entry = _entry(content, checkpoint, source)
        measured = _read(entry, content["data"])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{source}: no report of scripts/analyze.py ({type(error).__name__}: {error})") from error
    if not set(classes) <= set(measured.thresholds):
        raise ValueError(
            f"{source}: is about the classes {', '.join(measured.thresholds)}, the model knows {', '.join(classes)}; "
            "give the report of this model"
        )
    return measured


def _entry(content: Any, checkpoint: str, source: Path) -> Mapping[str, Any]:
    entries: list[Mapping[str, Any]] = content["checkpoints"]
    same = [entry for entry in entries if Path(entry["checkpoint"]) == Path(checkpoint)]
    if same or len(entries) < 2:
        return (same or entries)[0]
    raise ValueError(
        f"{source}: is about {', '.join(entry['checkpoint'] for entry in entries)}, not about {checkpoint}; "
        "name the checkpoint as it was named there, or write a report about it alone"
    )


def _read(entry: Mapping[str, Any], data: Mapping[str, Any]) -> Measured:
    bins = entry["calibration"]["reliability"]
    uncertainty = entry["uncertainty"]
    fitted = uncertainty["factor"] is not None and uncertainty["coverage_after"] is not None
    covered = uncertainty["coverage_after" if fitted else "coverage"]
    return Measured(
        edges=_floats(bins["bin_edges"]),
        counts=tuple(int(count) for count in bins["bin_counts"]),
        confidences=_floats(bins["bin_confidences"]),
        precisions=_floats(bins["bin_accuracies"]),
        thresholds={name: one["score_threshold"] for name, one in entry["thresholds"]["per_class"].items()},
        factor=float(uncertainty["factor"]) if fitted else 1.0,
        coverage={
            float(level): float(share)
            for level, share in zip(uncertainty["levels"], covered, strict=True)
            if share is not None
        },
        images=int(data["images"]),
        settings=f"IoU {bins['iou_threshold']:g}",
    )


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in values)
