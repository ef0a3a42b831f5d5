"""`scripts/analyze.py`: one HTML report on one or several checkpoints, and its numbers as JSON.

Beside each `results-NAME.json` lies a `results-NAME.model.json`: what the results were made from, so that `--reuse`
refuses those of another model or data set, and what only the model itself can tell (density, likelihood).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli import count, positive_int
from ..data import DetectionDataset, load_detection_dataset
from ..evaluation.analyze import analyze_intervals, analyze_results, describe_data, operating_thresholds, result_names
from ..evaluation.coco_input import CocoGroundTruth, prepare_ground_truth, prepare_results
from ..evaluation.html_report import WorstImage, render_report
from ..evaluation.likelihood import likelihood_report
from ..evaluation.predict import predict_dataset
from ..evaluation.worst_images import draw_image, rank_images
from ..files import make_output_folder, read_json, to_plain, write_json, write_text
from ..loading import label_names, load_detector, weights_written

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
        "--checkpoint", nargs="+", required=True, metavar="FOLDER", help="written by save_pretrained, or a Hub id"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the report calls them (default: the folders)")
    parser.add_argument("--data", required=True, help="COCO-format folder")
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument("--annotations", help="annotation file, if not where the split's is looked for")
    parser.add_argument("--images", help="image folder, if not where the split's is looked for")
    parser.add_argument("--output_dir", "--output-dir", required=True, metavar="OUT", help="folder for the report")
    parser.add_argument(
        "--reuse", action="store_true", help="take predictions from OUT/results-NAME.json where it exists"
    )
    parser.add_argument("--worst", type=count, default=6, help="images with the most error to draw (default: 6)")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images at once (default: 8)")
    parser.add_argument("--top-k", type=positive_int, default=100, help="detections an image (default: 100)")
    parser.add_argument("--workers", type=count, default=0, help="processes that read images (default: 0)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(arguments: argparse.Namespace) -> int:
    names = _names(arguments)
    if Path(arguments.output_dir).is_file():
        raise ValueError(f"--output_dir {arguments.output_dir}: a file is in the way; choose another folder")
    output = make_output_folder(arguments.output_dir)
    # Every input is looked at before the first model runs.
    dataset = _load_data(arguments, None)
    truth = prepare_ground_truth(dataset.annotations_path)
    cached = {name: _cached(output, name, checkpoint, arguments) for name, checkpoint in _pairs(arguments, names)}
    for name, found in cached.items():
        if found is not None:
            prepare_results(_results_path(output, name), truth)
    models = []
    drawn: list[tuple[Sequence[Mapping[str, Any]], Mapping[Any, float]]] = []
    for name, checkpoint in _pairs(arguments, names):
        predicted = cached[name] or _predict(output, name, checkpoint, arguments)
        results, facts = predicted.results, predicted.facts
        part = analyze_results(truth, results)
        drawn.append((results, operating_thresholds(part, truth)))
        models.append(
            {
                "name": name,
                "checkpoint": checkpoint,
                "results": _results_path(output, name).name,
                **part,
                "likelihood": facts.get("likelihood", NO_LIKELIHOOD),
                "uncertainty": analyze_intervals(truth, results, **{"density": None, **facts.get("density", {})}),
            }
        )
    worst = rank_images([model["images"] for model in models], arguments.worst)
    data = describe_data(truth, arguments.data, arguments.split)
    analysis = {"data": data, "top_k": arguments.top_k, "checkpoints": models, "worst_images": worst}
    write_json(output / NUMBERS, to_plain(analysis))
    pictures = _draw(dataset, truth, worst, drawn)
    write_text(output / REPORT, render_report(analysis, pictures))
    print(f"{truth.source}: {data['images']} images, {data['objects']} objects, {len(models)} checkpoints")
    for model in models:
        ap = model["accuracy"]["metrics"]["AP"]
        print(f"{model['name']}: AP {'-' if ap is None else format(ap, '.3f')}, {model['detections']} detections")
    print(f"report: {output / REPORT}")
    return 0


def _draw(
    dataset: DetectionDataset,
    truth: CocoGroundTruth,
    worst: Sequence[str],
    drawn: Sequence[tuple[Sequence[Mapping[str, Any]], Mapping[Any, float]]],
) -> list[WorstImage]:
    shown = set(worst)
    needed = [([row for row in results if str(row["image_id"]) in shown], limits) for results, limits in drawn]
    return [WorstImage(image_id, *draw_image(dataset, image_id, truth, needed)) for image_id in worst]


def _names(arguments: argparse.Namespace) -> list[str]:
    if arguments.names is None:
        return result_names(arguments.checkpoint)
    names: list[str] = arguments.names
    if len(names) != len(arguments.checkpoint):
        raise ValueError(f"--names: {len(names)} names for {len(arguments.checkpoint)} checkpoints; give one each")
    for name in names:
        if result_names([name]) != [name]:
            raise ValueError(
                f"--names: {name!r} becomes part of a file name; use letters, digits, '-', '_' and '.' inside it"
            )
    if len({name.lower() for name in names}) != len(names):
        raise ValueError("--names: two names are the same but for the case of their letters; make them different")
    return names


def _pairs(arguments: argparse.Namespace, names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names, arguments.checkpoint, strict=True))


def _load_data(arguments: argparse.Namespace, id2label: Mapping[int, str] | None) -> DetectionDataset:
    return load_detection_dataset(
        arguments.data,
        arguments.split,
        annotations=arguments.annotations,
        images=arguments.images,
        id2label=id2label,
    )


def _results_path(output: Path, name: str) -> Path:
    return output / f"results-{name}.json"


def _model_path(output: Path, name: str) -> Path:
    return output / f"results-{name}.model.json"


def _made_from(checkpoint: str, arguments: argparse.Namespace) -> dict[str, Any]:
    named = ("data", "split", "annotations", "images", "top_k")
    return {
        "checkpoint": checkpoint,
        "weights_written": weights_written(checkpoint),
        **{name: getattr(arguments, name) for name in named},
    }


@dataclass(frozen=True)
class _Predicted:
    """Results, and the facts about the model that made them; no facts for results from elsewhere."""

    results: list[dict[str, Any]]
    facts: Mapping[str, Any]


def _cached(output: Path, name: str, checkpoint: str, arguments: argparse.Namespace) -> _Predicted | None:
    """What an earlier run predicted, or None where there is nothing to use; refuses another model or data set."""
    path, described = _results_path(output, name), _model_path(output, name)
    if not arguments.reuse or not path.is_file():
        return None
    facts: Any = {}
    if described.is_file():
        facts = read_json(described)
        if not isinstance(facts, Mapping) or not isinstance(facts.get("made_from"), Mapping):
            raise ValueError(f"{described}: field made_from is missing; remove the file or leave out --reuse")
        for field, now in _made_from(checkpoint, arguments).items():
            before = facts["made_from"].get(field)
            if before != now:
                raise ValueError(
                    f"{described}: field {field} is {before!r}, now {now!r}; leave out --reuse to predict again, "
                    "or choose another --output_dir"
                )
    return _Predicted(read_json(path), facts)


def _predict(output: Path, name: str, checkpoint: str, arguments: argparse.Namespace) -> _Predicted:
    model, processor = load_detector(checkpoint, arguments.device)
    dataset = _load_data(arguments, label_names(model))
    mixture = model.config.head == "mixture"
    results = predict_dataset(
        model,
        processor,
        dataset,
        batch_size=arguments.batch_size,
        top_k=arguments.top_k,
        num_workers=arguments.workers,
        with_scales=mixture,
        with_parts=mixture,
    )
    facts: dict[str, Any] = {"made_from": _made_from(checkpoint, arguments)}
    if mixture:
        likelihood = likelihood_report(model, processor, dataset, arguments.batch_size)
        named = ("density", "student_t_dof", "min_scale_ratio")
        facts["density"] = {name: getattr(model.config, name) for name in named}
        facts["likelihood"] = {**likelihood.to_dict(), "settings": likelihood.settings, "note": None}
    # The facts first: results without facts would pass for those of another tool.
    write_json(_model_path(output, name), facts)
    write_json(_results_path(output, name), results)
    return _Predicted(results, facts)
