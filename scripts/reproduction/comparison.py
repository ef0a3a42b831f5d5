"""Ways to train one detector, each with a learning rate of its own, measured side by side on the split `test`.

A side is trained with every learning rate, and with the one of the best AP on `val` under every seed. What is measured
is measured raw, after isotonic regression fitted on `val` and, where the likelihood has taught γ, with it as a part of
the score; raw and isotonic on images under shift, too (`shifts.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_convert

from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import (
    ScoreCalibration,
    count_duplicates,
    evaluate_detections,
    object_calibration_report,
    predict_dataset,
)
from drmm_hf.evaluation.coco import rescored
from drmm_hf.evaluation.predict import predict_batches
from drmm_hf.files import read_json, to_plain, write_json
from drmm_hf.loading import load_detector
from drmm_hf.training import TrainConfig, read_recipe, train
from markdown_table import PAPER

from .measurements import summary
from .render import machine
from .shifts import shifted_split

MEASURES = ("AP", "AP50", "AP75", "AR100", "ECE", "D-ECE", "OCE", "Brier", "LRP", "duplicates/object")
UNDER_SHIFT = ("AP", "AP50", "ECE", "D-ECE", "OCE", "Brier")
FOREIGN = ("foreign, sum of scores", "foreign, scores above 0.5")
"""Measures of images without any object of the data set, an image: what a detector claims to be there."""

KINDS = {"raw": "", "isotonic": ", isotonic", "localized": ", × E[IoU]"}
"""What is measured of a run -> what a table adds to the name of its side."""

Measured = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Condition -> kind -> measure -> value; conditions are `test` and the names of shifts."""


@dataclass(frozen=True)
class Side:
    """A way to train.

    Args:
        title: its row in a table.
        config: settings of the training with a learning rate and a seed; its `output` is the run's own.
    """

    title: str
    config: Callable[[float, int], TrainConfig]


def trained(config: TrainConfig) -> Path:
    """The folder of a run, trained if it is not there.

    Raises:
        ValueError: what is there was trained with other settings.
    """
    folder = Path(config.output)
    if not (folder / "metrics.json").is_file():
        train(config)
    there = TrainConfig(**read_recipe(str(folder / "recipe.yaml"))).to_dict()
    other = [name for name, value in config.to_dict().items() if there[name] != value]
    if other:
        raise ValueError(f"{folder}: was trained with another {other[0]}; choose another --output")
    return folder


def compare(
    sides: Sequence[Side],
    rates: Sequence[float],
    seeds: Sequence[int],
    shifts: Sequence[str],
    measure: Callable[[Path], Measured],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train and measure all sides; runs that are there are not trained again.

    Args:
        shifts: names of the conditions besides `test`.
        measure: from the folder of a run, as `measured` does; what it finds is kept there.

    Returns:
        Rows of a table on the split `test`, of one under shift, and the AP on `val` that chose the learning rates.
    """
    clean: dict[str, Any] = {}
    shift: dict[tuple[str, str], Any] = {}
    tuning: dict[str, Any] = {}
    for side in sides:
        tried = {rate: read_json(trained(side.config(rate, seeds[0])) / "metrics.json")["AP"] for rate in rates}
        chosen = max(tried, key=tried.__getitem__)
        tuning[side.title] = {"AP on val, first seed": tried, "chosen": chosen}
        found: dict[int, Measured] = {}
        for seed in seeds:
            folder = trained(side.config(chosen, seed))
            kept = folder / "measured.json"
            found[seed] = read_json(kept) if kept.is_file() else {}
            if not {"test", *shifts} <= found[seed].keys():
                found[seed] = measure(folder)
                write_json(kept, found[seed])
        for kind, name in KINDS.items():
            label = f"{side.title}{name}"
            for condition in (name for name in ("test", *shifts) if kind in found[seeds[0]][name]):
                values = {seed: one[condition][kind] for seed, one in found.items()}
                if condition == "test":
                    clean[label] = with_seeds(values, (*MEASURES, *FOREIGN))
                else:
                    shift[condition, label] = with_seeds(values, UNDER_SHIFT)
    conditions = list(dict.fromkeys(condition for condition, _ in shift))
    ordered = sorted(shift.items(), key=lambda item: conditions.index(item[0][0]))
    return clean, {f"{condition}: {label}": values for (condition, label), values in ordered}, tuning


def write_tables(
    output: Path,
    clean: Mapping[str, Any],
    shift: Mapping[str, Any],
    tuning: Mapping[str, Any],
    settings: dict[str, str],
) -> None:
    """clean.json and shift.json from what `compare` gives, with the `settings` that a reader needs to know."""
    for name, rows in (("clean", clean), ("shift", shift)):
        write_table(output / f"{name}.json", rows, {**settings, "learning rates": tuning})


def write_table(path: Path, rows: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """A json that `docs/tables.py` reads."""
    about = {**settings, "source": "not in the paper", "machine": machine(), PAPER: {}}
    path.parent.mkdir(parents=True, exist_ok=True)  # found missing now, a long measurement would be lost
    write_json(path, {**about, "rows": rows})


def measured(
    model: Path, data: str, shifts: Sequence[str], shifted: Path, *, top_k: int, foreign: Sequence[str] = ()
) -> Measured:
    """Any detector measured on the split `test`, as it is and changed.

    Args:
        model: its checkpoint.
        data: data set with the splits val and test.
        shifts, shifted: names of `SHIFTS`, and the folder of the data sets under shift.
        top_k: detections an image. As many for all that are compared: more, with scores of about 0, flatter ECE and
            Brier score.
        foreign: data sets without an object of `data`, of which the split `test` is shown to the detector, too.
    """
    detector, processor = load_detector(str(model), "cpu")

    with_scales = getattr(detector.config, "objective", "").startswith("nll")
    localize = with_scales and detector.config.density == "cauchy"

    def found(path: str, split: str) -> tuple[Path, list[dict[str, Any]]]:
        dataset = load_detection_dataset(path, split, id2label=detector.config.id2label)
        options: dict[str, Any] = {"top_k": top_k, "progress": False, "with_scales": with_scales}
        return dataset.annotations_path, predict_dataset(detector, processor, dataset, **options)

    isotonic = ScoreCalibration.fit(*found(data, "val"))
    measures: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("test", *shifts):
        path = data if name == "test" else str(shifted_split(data, "test", name, shifted))
        truth, results = found(path, "test")
        measures[name] = {
            "raw": _measures(truth, results),
            "isotonic": _measures(truth, isotonic.apply(results)),
        }
        if localize and name == "test":
            measures[name]["localized"] = _measures(truth, localized(results))
    if foreign:
        rows = [row for path in foreign for row in load_detection_dataset(path, "test").dataset]
        batches = predict_batches(detector, processor, rows, top_k=top_k, progress=False)
        scores = torch.cat([one["scores"] for _, found_there in batches for one in found_there]).double().numpy()
        for kind, values in (("raw", scores), ("isotonic", isotonic.curve(scores))):
            claims = (values.sum().item() / len(rows), (values > 0.5).sum().item() / len(rows))
            measures["test"][kind].update(zip(FOREIGN, claims, strict=True))
    return to_plain(measures)  # without NaN, which stands where nothing was there to be measured


def localized(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """COCO results with `scales`, their scores times the expected IoU of the box under its own density.

    Each edge is drawn from its Cauchy density, independently, as Eq. 5 of the paper has it; the draws are the same for
    all boxes.
    """
    draws = torch.rand(256, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = torch.tan(torch.pi * (draws - 0.5))
    corners = box_convert(torch.tensor([one["bbox"] for one in results], dtype=torch.float64), "xywh", "xyxy")
    scales = torch.tensor([one["scales"] for one in results], dtype=torch.float64)
    drawn = corners[:, None] + scales[:, None] * units
    low, high = drawn.maximum(corners[:, None]), drawn.minimum(corners[:, None])
    shared = (high[..., 2:] - low[..., :2]).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (drawn, corners[:, None])]
    expected = (shared / (areas[0] + areas[1] - shared).clamp(min=1e-9)).mean(-1)
    return [rescored(one, one["score"] * iou) for one, iou in zip(results, expected.tolist(), strict=True)]


def _measures(truth: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    report = evaluate_detections(truth, results, details=True)
    assert report.lrp is not None
    assert report.brier is not None
    return {
        **{name: report.metrics[name] for name in ("AP", "AP50", "AP75", "AR100")},
        **{name: part.ece for name, part in report.named_calibration.items()},
        "OCE": object_calibration_report(truth, results).oce,
        "Brier": report.brier.brier,
        "LRP": report.lrp.lrp,
        "duplicates/object": count_duplicates(truth, results).duplicates_per_object,
    }


def with_seeds(found: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[str, Any]:
    """Measure -> mean, deviation and the value of every seed; left out where nothing was there to be measured."""
    values = {
        name: {str(seed): round(one[name], 4) for seed, one in found.items() if one.get(name) is not None}
        for name in names
    }
    return {name: summary(seeds) for name, seeds in values.items() if seeds}
