"""What the tables read off finished runs: one function each, a run to rows."""

import dataclasses
import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.measure import saved_memory
from benchmarks.models import random_labels, training_step
from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.evaluation import (
    CalibrationReport,
    calibration_report,
    count_duplicates,
    evaluate_coco,
    likelihood_report,
    match_detections,
    nms_sweep,
    object_calibration_report,
    part_calibration_report,
    predict_dataset,
    ranking_report,
    split_half_report,
    suppress,
)
from drmm_hf.evaluation.calibration import d_ece_report
from drmm_hf.evaluation.coco_input import prepare_ground_truth, prepare_results
from drmm_hf.evaluation.complexity import count_complexity
from drmm_hf.evaluation.duplicates import DUPLICATE_SCORES, NMS_THRESHOLDS
from drmm_hf.loading import load_detector
from drmm_hf.presets import processor_fields

from .tables import Context, Rows, Run, Table

# Table 3 and Fig. 8 do not say their threshold; Fig. 7 has its best at 0.7 to 0.9.
NMS_IOU = 0.7
NMS_NONE, NMS_BEST = "without NMS", "best threshold"
_PARTS = {"class_probability": "p", "objectness": "o", "score": "p·o"}
# Table 11 gives the memory of two images on a GPU; COCO has 7.3 objects an image.
_MEMORY_IMAGES, _MEMORY_OBJECTS = 2, 8
_GIGABYTE = 1e9


def measure_table(table: Table, runs: Sequence[Run], context: Context) -> dict[str, Any]:
    """Measure the runs of a table; those of other tables' cells are passed over.

    A cell with runs of several learning rates counts with the one of the highest mean AP on the evaluation split, the
    smaller one of equals.

    Returns:
        The parts of the table's json that are measured: `rows` (row -> column -> mean, std over seeds, and seeds ->
        value), `learning_rates` (cell -> learning rate -> seed -> AP, where a cell was trained with several), `runs`.
    """
    own = table_runs(table, runs, context.scale)
    rates: dict[str, dict[float, dict[str, float]]] = {}
    for run in own:
        rates.setdefault(run.cell.name, {}).setdefault(run.learning_rate, {})[str(run.seed)] = run.metric("AP")
    best = {name: max(sorted(scores), key=lambda rate: mean(scores[rate].values())) for name, scores in rates.items()}
    chosen = [run for run in own if run.learning_rate == best[run.cell.name]]
    values: dict[str, dict[str, dict[str, float]]] = {}
    for run in chosen:
        for row, columns in MEASURES[table.measure](run, context).items():
            for column, value in columns.items():
                seeds = values.setdefault(row, {}).setdefault(column, {})
                if math.isfinite(value):
                    seeds[str(run.seed)] = value
    return {
        "rows": {row: {name: summary(seeds) for name, seeds in columns.items()} for row, columns in values.items()},
        "learning_rates": {
            cell: {f"{rate:g}": seeds for rate, seeds in scores.items()}
            for cell, scores in rates.items()
            if len(scores) > 1
        },
        "runs": [
            {"cell": run.cell.name, "seed": run.seed, "learning_rate": run.learning_rate, "folder": str(run.folder)}
            for run in chosen
        ],
    }


def table_runs(table: Table, runs: Sequence[Run], scale: str) -> list[Run]:
    """The runs of its cells, in the table's order, with its labels: another table may have other ones."""
    order = {cell.name: (index, cell) for index, cell in enumerate(table.cells(scale))}
    own = [dataclasses.replace(run, cell=order[run.cell.name][1]) for run in runs if run.cell.name in order]
    return sorted(own, key=lambda run: (order[run.cell.name][0], run.learning_rate, run.seed))


def summary(seeds: dict[str, float]) -> dict[str, Any]:
    """Mean, sample deviation (None of one value) and the value of every seed, as the raw files of tables have them."""
    values = list(seeds.values())
    deviation = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values) if values else None, "std": deviation, "seeds": seeds}


def objectives(run: Run, context: Context) -> Rows:
    """AP, AP50, AP75, AR100, ECE, duplicates an image and what NMS adds to AP (Table 2 has AP only)."""
    values = run.metrics_of("AP", "AP50", "AP75", "AR100", "ECE")
    values["duplicates"] = count_duplicates(context.truth, run.results).duplicates_per_image
    return {run.cell.label: {**values, f"NMS {NMS_IOU:g} gain": _nms_gain(run, context)}}


def merging(run: Run, context: Context) -> Rows:
    """AP, AR and ECE; for the likelihood alone also with NMS and with winner takes all (Table 3)."""
    return _of_variants(run, context, "AP", "AR100", "ECE")


def reliability(run: Run, context: Context) -> Rows:
    """ECE, D-ECE and AP (Fig. 2); for the likelihood alone also with NMS and winner takes all (Fig. 8)."""
    return _of_variants(run, context, "AP", "ECE", "D-ECE")


def accuracy(run: Run, context: Context) -> Rows:
    """AP, AP50 and AP75 (Table 7)."""
    return {run.cell.label: run.metrics_of("AP", "AP50", "AP75")}


def grid(run: Run, context: Context) -> Rows:
    """AP and AP50 at "row | column" of the cell's label (Table 8 and Fig. 11)."""
    row, column = run.cell.label.split(" | ")
    return {row: {f"{name} {column}": value for name, value in run.metrics_of("AP", "AP50").items()}}


def likelihood(run: Run, context: Context) -> Rows:
    """NLL and exp(-MCM) of every stage on the evaluation split (Tables 4 and 9)."""
    model, processor = load_detector(str(run.folder / "model"))
    report = likelihood_report(model, processor, context.dataset, context.batch_size)
    names = [f"stage {index} of {len(report.stages)}" for index in range(1, len(report.stages) + 1)]
    rows = zip((*names, "last stage"), (*report.stages, report.stages[-1]), strict=True)
    return {
        name: {f"NLL {run.cell.label}": stage.nll, f"exp(-MCM) {run.cell.label}": stage.max_share}
        for name, stage in rows
    }


def copies(run: Run, context: Context) -> Rows:
    """AP without and with NMS (Table 10)."""
    before = run.metric("AP")
    return {run.cell.label: {"AP": before, f"AP with NMS {NMS_IOU:g}": before + _nms_gain(run, context)}}


def cost(run: Run, context: Context) -> Rows:
    """AP, trained parameters, training memory and multiply-adds (Table 11)."""
    model, _ = load_detector(str(run.folder / "model"), "cpu")
    size = processor_fields(run.preset)["size"]
    height, width = (800, 1280) if context.scale == "coco" else (size["shortest_edge"], size["longest_edge"])
    counts = count_complexity(model.config, height, width)
    memory = training_memory(model.config, _MEMORY_IMAGES, height, width)
    return {
        run.cell.label: {
            "AP": run.metric("AP"),
            "parameters (M)": counts.trainable / 1e6,
            "training memory (GB)": memory,
            "multiply-adds (G)": counts.multiply_adds / 1e9,
        }
    }


def nms_thresholds(run: Run, context: Context) -> Rows:
    """AP over the threshold of NMS (Fig. 7)."""
    sweep = nms_sweep(context.truth, run.results)
    values = {f"NMS {threshold:g}": sweep[f"{threshold:g}"]["AP"] for threshold in NMS_THRESHOLDS}
    values |= {NMS_BEST: max(values.values()), NMS_NONE: sweep["none"]["AP"]}
    return {name: {run.cell.label: value} for name, value in values.items()}


def parts(run: Run, context: Context) -> Rows:
    """ECE of p, of o and of p·o on the same detections (Fig. 9)."""
    return {row: {"ECE": report.ece} for row, report in part_reports(run, context).items()}


def recalibration(run: Run, context: Context) -> Rows:
    """ECE and D-ECE as they are, and after isotonic regression and temperature fitted on the other half of the images.

    Not in the paper.
    """
    values = split_half_report(context.truth, run.results).values
    names = {"raw": "", "isotonic": ", isotonic", "temperature": ", temperature"}
    return {
        run.cell.label: {
            f"{metric}{names[name]}": values[name][metric] for metric in ("ECE", "D-ECE") for name in names
        }
    }


def duplicates(run: Run, context: Context) -> Rows:
    """Duplicates an image over the lowest score that counts. Not in the paper."""
    truth = prepare_ground_truth(context.truth)
    found = prepare_results(run.results, truth)  # both checked once for all scores
    return {
        f"score {score:g}": {run.cell.label: count_duplicates(truth, found, score_threshold=score).duplicates_per_image}
        for score in DUPLICATE_SCORES
    }


def ranking(run: Run, context: Context) -> Rows:
    """AP as it is, and with the order of the detections put right by the ground truth. Not in the paper."""
    report = ranking_report(context.truth, run.results)
    return {
        run.cell.label: {
            "AP": report.ap,
            "without duplicates": report.without_duplicates,
            "true positives first": report.true_first,
            "and by IoU": report.best_first,
        }
    }


def anchors(run: Run, context: Context) -> Rows:
    """Accuracy, calibration and false positives on images without boxes, for `objectness_anchor`. Not in the paper."""
    truth = context.truth
    row = run.metrics_of("AP", "AR100", "ECE", "D-ECE")
    row["OCE"] = object_calibration_report(truth, run.results).oce
    for score in (0.3, 0.5):
        row[f"false positives at {score:g}"] = false_positives_without_objects(truth, run.results, score)
    return {run.cell.label: {**row, f"NMS {NMS_IOU:g} gain": _nms_gain(run, context)}}


def variants(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The detections of a run under its label; of the likelihood alone also after NMS and after winner takes all."""
    found = {run.cell.label: run.results}
    if run.cell.config.get("objective") == "nll":
        found[f"{run.cell.label} + NMS"] = suppress(run.results, NMS_IOU)
        found[f"{run.cell.label} + WTA"] = suppress(run.results, NMS_IOU, merge_scores=True)
    return found


def reliability_reports(run: Run, context: Context) -> dict[str, CalibrationReport]:
    """The diagrams' data of every one of `variants`."""
    return {name: calibration_report(context.truth, results) for name, results in variants(run).items()}


def part_reports(run: Run, context: Context) -> dict[str, CalibrationReport]:
    """The diagrams' data of p, o and p·o; results.json has only the product, so the model runs again."""
    if run.folder not in context.reports:
        model, processor = load_detector(str(run.folder / "model"))
        found = predict_dataset(model, processor, context.dataset, batch_size=context.batch_size, with_parts=True)
        reports = part_calibration_report(context.truth, found)
        context.reports[run.folder] = {label: reports[name] for name, label in _PARTS.items()}
    return context.reports[run.folder]


def false_positives_without_objects(
    ground_truth: Any, results: Sequence[dict[str, Any]], score_threshold: float
) -> float:
    """Detections of at least this score per image, over the images without annotations; nan if there are none.

    Images that have crowd regions only are not counted: what is found there may be right.
    """
    truth = prepare_ground_truth(ground_truth)
    empty = {image_id for image_id in truth.image_ids if not truth.coco.imgToAnns.get(image_id)}
    wrong = sum(entry["image_id"] in empty and entry["score"] >= score_threshold for entry in results)
    return wrong / len(empty) if empty else math.nan


def _of_variants(run: Run, context: Context, *names: str) -> Rows:
    found = {}
    for label, results in variants(run).items():
        numbers = evaluate_coco(context.truth, results)
        matches = match_detections(context.truth, results)
        numbers["ECE"] = calibration_report(matches).ece
        numbers["D-ECE"] = d_ece_report(matches).ece
        found[label] = {name: numbers[name] for name in names}
    return found


def _nms_gain(run: Run, context: Context) -> float:
    sweep = nms_sweep(context.truth, run.results, (NMS_IOU,))
    return sweep[f"{NMS_IOU:g}"]["AP"] - sweep["none"]["AP"]


def training_memory(config: DrmmConfig, batch_size: int, height: int, width: int) -> float:
    """Memory of a training step in float32 with AdamW on a random batch (Table 11), 10⁹ bytes.

    On a GPU its peak. Elsewhere what is kept for the backward pass, weights, gradients and AdamW's moments, which does
    not depend on the device and leaves out temporary tensors.

    Args:
        config: of the model, which is made anew with random weights.
        batch_size: images.
        height, width: network input in pixels, multiples of 32.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = DrmmForObjectDetection(config)
        pixels = torch.rand(batch_size, 3, height, width).to(device)
    labels = random_labels(batch_size, device, _MEMORY_OBJECTS, len(config.id2label or {}))
    model.to(device).train()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step = training_step(model, pixels, labels)
        for _ in range(2):  # AdamW's moments are there from the second step on
            step()
        return torch.cuda.max_memory_allocated() / _GIGABYTE
    parameters = list(model.parameters())
    activations = saved_memory(lambda: model(pixel_values=pixels, labels=labels), without=parameters) * 1e6
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return (activations + weights + 3 * trained) / _GIGABYTE


MEASURES = {
    function.__name__: function
    for function in (
        objectives, merging, accuracy, grid, likelihood, copies, cost, nms_thresholds, reliability, parts,
        recalibration, duplicates, ranking, anchors,
    )
}  # fmt: skip
