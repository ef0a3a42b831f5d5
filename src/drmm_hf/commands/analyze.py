"""`drmm analyze`: one HTML page on one or several checkpoints, and its numbers as JSON."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import add_data_arguments, add_model_arguments, count
from ..data import DetectionDataset, load_detection_dataset
from ..data.splits import VALIDATION_SHARE
from ..evaluation import likelihood_report, predict_dataset
from ..evaluation.analysis import (
    analyze_intervals,
    analyze_results,
    describe_data,
    rank_images,
    result_names,
)
from ..evaluation.coco_input import prepare_ground_truth, prepare_results
from ..evaluation.report import draw_images, render_report
from ..files import make_output_folder, require, to_plain, write_json, write_text
from ..loading import label_names, load_detector, predicted

REPORT, NUMBERS = "report.html", "analysis.json"
NO_LIKELIHOOD: dict[str, Any] = {
    "stages": [],
    "settings": None,
    "note": "Not measured: the model predicts no density, or is not at hand.",
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Accuracy, calibration, thresholds, duplicates and the worst images of one or several "
        f"checkpoints, side by side: {REPORT} (one file, nothing else needed) and {NUMBERS}.",
    )
    parser.add_argument(
        *("--model", "--checkpoint"),
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="written by save_pretrained, or a Hub id",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="JSON",
        help="detections of any detector (COCO results), beside the checkpoints or without any",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the report calls them (default: the folders)")
    add_data_arguments(parser, "folder of a labeled data set, or a Hub id")
    outputs = ("--output", "--output_dir", "--output-dir")
    parser.add_argument(*outputs, required=True, metavar="OUT", help="folder for the report")
    parser.add_argument("--worst", type=count, default=6, help="images with the most error to draw (default: 6)")
    add_model_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    require("matplotlib", "plots")
    if not arguments.model and not arguments.results:
        raise ValueError("--model or --results is required: what to analyze")
    names = _names(arguments)
    output = make_output_folder(arguments.output)
    # Every input is looked at before the first model runs.
    dataset = _load_data(arguments, label_names(arguments.model[0]) if arguments.model else None)
    truth = prepare_ground_truth(dataset.annotations_path)
    found = {file: prepare_results(file, truth) for file in arguments.results}
    models, drawn = [], []
    for name, source in zip(names, [*arguments.model, *arguments.results], strict=True):
        results, saved, density, likelihood = found.get(source), Path(source), None, None
        if results is None:
            saved = output / f"results-{name}.json"
            rows, density, likelihood = _predict(source, arguments)
            write_json(saved, rows)
            results = prepare_results(rows, truth)
        parts, thresholds = analyze_results(truth, results)
        model = {"name": name, "checkpoint": source, "results": saved.name, **parts}
        model["likelihood"] = likelihood or NO_LIKELIHOOD
        model["uncertainty"] = analyze_intervals(truth, results, **(density or {"density": None}))
        models.append(model)
        drawn.append((results.rows, thresholds))
    worst = rank_images([model["images"] for model in models], arguments.worst)
    data = describe_data(truth, arguments.data, arguments.split)
    analysis = to_plain({"data": data, "top_k": arguments.top_k, "checkpoints": models, "worst_images": worst})
    write_json(output / NUMBERS, analysis)
    write_text(output / REPORT, render_report(analysis, draw_images(dataset, worst, truth, drawn)))
    print(f"{truth.source}: images: {data['images']}, objects: {data['objects']}, models: {len(models)}")
    for model in analysis["checkpoints"]:
        ap = model["accuracy"]["metrics"]["AP"]
        print(f"{model['name']}: AP {'-' if ap is None else format(ap, '.3f')}, {model['detections']} detections")
    print(f"report: {output / REPORT}")


def _names(arguments: argparse.Namespace) -> Sequence[str]:
    sources = [*arguments.model, *(str(Path(file).with_suffix("")) for file in arguments.results)]
    if arguments.names is None:
        return result_names(sources)
    names: list[str] = arguments.names
    if len(names) != len(sources):
        raise ValueError(f"--names: {len(names)} names for {len(sources)} checkpoints and results; give one each")
    if odd := [name for name in names if result_names([name]) != [name]]:
        raise ValueError(
            f"--names: {odd[0]!r} becomes part of a file name; use letters, digits, '-', '_', '.' inside it"
        )
    if len({name.lower() for name in names}) != len(names):
        raise ValueError("--names: two names are the same but for the case of their letters; make them different")
    return names


def _load_data(arguments: argparse.Namespace, id2label: Mapping[int, str] | None = None) -> DetectionDataset:
    where = {name: getattr(arguments, name) for name in ("annotations", "images", "image_frame")}
    return load_detection_dataset(
        arguments.data, arguments.split, **where, id2label=id2label, validation_share=VALIDATION_SHARE
    )


def _predict(
    checkpoint: str, arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, Any] | None]:
    """Results, and of a model that predicts one its density (as `analyze_intervals` takes it) and its likelihood."""
    model, processor = load_detector(checkpoint, arguments.device)
    dataset = _load_data(arguments, label_names(model))
    parts = predicted(model)
    options = {"batch_size": arguments.batch_size, "top_k": arguments.top_k, "num_workers": arguments.workers}
    results = predict_dataset(
        model, processor, dataset, **options, with_scales="scales" in parts, with_parts="objectness" in parts
    )
    density = likelihood = None
    if "scales" in parts:
        named = ("density", "student_t_dof", "min_scale_ratio")
        density = {name: getattr(model.config, name) for name in named}
    if "objectness" in parts:
        report = likelihood_report(model, processor, dataset, arguments.batch_size)
        likelihood = {**report.to_dict(), "settings": report.settings, "note": None}
    return results, density, likelihood
