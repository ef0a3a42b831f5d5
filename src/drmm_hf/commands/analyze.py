"""`drmm analyze`: one HTML page on one or several checkpoints, and its numbers as JSON.

Beside each `results-NAME.json` lies a `results-NAME.model.json`: what the results were made from, so that `--reuse`
refuses those of another model or data set, and what only the model itself can tell (density, likelihood).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import add_data_arguments, add_model_arguments, count
from ..data import DetectionDataset, load_detection_dataset
from ..evaluation import likelihood_report, predict_dataset
from ..evaluation.analysis import (
    analyze_intervals,
    analyze_results,
    describe_data,
    rank_images,
    result_names,
)
from ..evaluation.coco_input import CocoResults, prepare_ground_truth, prepare_results
from ..evaluation.report import draw_images, render_report
from ..files import make_output_folder, read_json, require, to_plain, write_json, write_text
from ..loading import label_names, load_detector, predicted, weights_written

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
    parser.add_argument(
        "--reuse", action="store_true", help="take predictions from OUT/results-NAME.json where it exists"
    )
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
    dataset = _load_data(arguments)
    truth = prepare_ground_truth(dataset.annotations_path)
    chosen: list[tuple[str, str, Path, Mapping[str, Any] | None]] = []
    found: dict[Path, CocoResults] = {}
    for name, checkpoint in zip(names, arguments.model, strict=False):
        saved = output / f"results-{name}.json"
        facts = _saved_facts(saved, checkpoint, arguments)
        if facts is not None:
            found[saved] = prepare_results(saved, truth)
        chosen.append((name, checkpoint, saved, facts))
    for name, file in zip(names[len(chosen) :], arguments.results, strict=True):
        found[Path(file)] = prepare_results(file, truth)
        chosen.append((name, file, Path(file), {}))
    models, drawn = [], []
    for name, checkpoint, saved, known in chosen:
        facts = _predict(saved, checkpoint, arguments) if known is None else known
        results = found.get(saved) or prepare_results(saved, truth)
        parts, thresholds = analyze_results(truth, results)
        model = {"name": name, "checkpoint": checkpoint, "results": saved.name, **parts}
        model["likelihood"] = facts.get("likelihood", NO_LIKELIHOOD)
        model["uncertainty"] = analyze_intervals(truth, results, **{"density": None, **facts.get("density", {})})
        models.append(model)
        drawn.append((results.rows, thresholds))
    worst = rank_images([model["images"] for model in models], arguments.worst)
    data = describe_data(truth, arguments.data, arguments.split)
    analysis = to_plain({"data": data, "top_k": arguments.top_k, "checkpoints": models, "worst_images": worst})
    write_json(output / NUMBERS, analysis)
    write_text(output / REPORT, render_report(analysis, draw_images(dataset, worst, truth, drawn)))
    print(f"{truth.source}: {data['images']} images, {data['objects']} objects, {len(models)} checkpoints")
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
    return load_detection_dataset(arguments.data, arguments.split, **where, id2label=id2label)


def _made_from(checkpoint: str, arguments: argparse.Namespace) -> dict[str, Any]:
    named = ("data", "split", "annotations", "images", "image_frame", "top_k")
    settings = {name: getattr(arguments, name) for name in named}
    return {"checkpoint": checkpoint, "weights_written": weights_written(checkpoint), **settings}


def _saved_facts(saved: Path, checkpoint: str, arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    """What is known of the model behind saved results, nothing of another tool's; None where there are none to use.

    Raises:
        ValueError: they are those of another model or data set.
    """
    if not arguments.reuse or not saved.is_file():
        return None
    described = saved.with_suffix(".model.json")
    if not described.is_file():
        return {}
    facts = read_json(described)
    made_from = facts.get("made_from") if isinstance(facts, Mapping) else None
    if not isinstance(made_from, Mapping):
        raise ValueError(f"{described}: field made_from is missing; remove the file or leave out --reuse")
    for field, now in _made_from(checkpoint, arguments).items():
        if made_from.get(field) != now:
            raise ValueError(
                f"{described}: field {field} is {made_from.get(field)!r}, now {now!r}; leave out --reuse to predict "
                "again, or choose another --output"
            )
    return facts


def _predict(saved: Path, checkpoint: str, arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Write results and what is known of the model, which is returned."""
    model, processor = load_detector(checkpoint, arguments.device)
    dataset = _load_data(arguments, label_names(model))
    parts = predicted(model)
    options = {"batch_size": arguments.batch_size, "top_k": arguments.top_k, "num_workers": arguments.workers}
    results = predict_dataset(
        model, processor, dataset, **options, with_scales="scales" in parts, with_parts="objectness" in parts
    )
    facts: dict[str, Any] = {"made_from": _made_from(checkpoint, arguments)}
    if "scales" in parts:
        named = ("density", "student_t_dof", "min_scale_ratio")
        facts["density"] = {name: getattr(model.config, name) for name in named}
    if "objectness" in parts:
        likelihood = likelihood_report(model, processor, dataset, arguments.batch_size)
        facts["likelihood"] = {**likelihood.to_dict(), "settings": likelihood.settings, "note": None}
    # The facts first: results without facts would pass for those of another tool.
    write_json(saved.with_suffix(".model.json"), facts)
    write_json(saved, results)
    return facts
