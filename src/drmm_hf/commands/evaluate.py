"""`drmm evaluate`: COCO AP and calibration of a detector, or of a file of results.

Under `torchrun` or `accelerate launch` each process predicts its share, and the first one evaluates.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import PartialState

from ..cli import add_data_arguments, add_model_arguments, positive_int
from ..data import load_detection_dataset, load_streaming_dataset
from ..data.load import find_ground_truth
from ..data.splits import VALIDATION_SHARE
from ..evaluation import DetectionReport, evaluate_detections, predict_dataset
from ..evaluation.coco import METRICS
from ..evaluation.predict import predict_stream
from ..files import make_output_folder, read_json, to_plain, write_json
from ..loading import label_names, load_detector

MAX_DETECTIONS = 100


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="COCO AP and calibration of a detector on a data set.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder written by save_pretrained, or a Hub id")
    source.add_argument(
        "--results", help="evaluate this results.json (COCO results) again, without a model and without the images"
    )
    add_model_arguments(parser)
    add_data_arguments(parser, "folder of a labeled data set, or a Hub id", required=False)
    parser.add_argument("--streaming", action="store_true", help="read --data (a Hub id, parquet, tars) as a stream")
    parser.add_argument("--bins", type=positive_int, default=10, help="score bins of the ECE (default: 10)")
    parser.add_argument("--per-class", action="store_true", help="print AP and AR of every class")
    parser.add_argument(
        "--max-detections",
        type=positive_int,
        default=MAX_DETECTIONS,
        help="report AP and AR also at this number of detections an image and class, such as 300; raises --top-k "
        "to it, and calibration counts as many (default: 100)",
    )
    parser.add_argument("--with-scales", action="store_true", help="keep the scale of each box edge in results.json")
    parser.add_argument(
        "--with-parts",
        action="store_true",
        help="keep the objectness in results.json, and report the calibration of p and o by themselves",
    )
    parser.add_argument(
        "--output", help="folder for metrics.json, results.json (COCO results), and the ground truth of a stream"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    if arguments.max_detections < MAX_DETECTIONS:
        raise ValueError(
            f"--max-detections is {arguments.max_detections}; 1, 10 and 100 are reported anyway, give more than 100"
        )
    arguments.more = arguments.max_detections if arguments.max_detections > MAX_DETECTIONS else None
    arguments.top_k = max(arguments.top_k, arguments.more or 0)
    if arguments.data is None and not (arguments.results and arguments.annotations):
        raise ValueError("--data is required: the data set to evaluate on")
    if not arguments.results:
        _predict(arguments, _processes(arguments))
        return
    if arguments.streaming:
        raise ValueError("--streaming: saved results need the ground truth as a file; give it as --annotations")
    output = make_output_folder(arguments.output) if arguments.output else None
    annotations = _ground_truth(arguments)
    _report(arguments, output, annotations, annotations, arguments.results, ("results", "data", "split"))


def format_report(report: DetectionReport) -> str:
    """The COCO numbers and calibration errors as a small table; "-" where there is no ground truth."""
    lines = _table(report.metrics, METRICS[:6]) + _table(report.metrics, METRICS[6:])
    more = [name for name in report.metrics if "@" in name and "/" not in name]
    if more:
        limit = more[0].partition("@")[2]
        lines += _table(report.metrics, [name for name in more if name.startswith("AP")])
        lines += _table(report.metrics, [f"AR{limit}", *(name for name in more if name.startswith("AR"))])
    for name, part in report.named_calibration.items():
        lines.append(f"{name} {part.ece:.4f}  ({part.settings}; {part.num_detections} detections)")
    for located in report.localization:
        lines.append(f"LaECE{'' if located.iou_threshold else '_0'} {located.laece:.4f}  ({located.settings})")
    if report.lrp is not None:
        lines.append(f"LRP {report.lrp.lrp:.4f}  ({report.lrp.settings})")
    if report.parts:
        share, own = report.parts["class_probability"], report.parts["objectness"]
        lines.append(f"ECE of p alone {share.ece:.4f}, of o alone {own.ece:.4f}  ({own.settings})")
    if report.brier is not None:
        lines.append(f"Brier {report.brier.brier:.4f}  ({report.brier.settings})")
    names = [name[3:] for name in report.metrics if name.startswith("AP/")]
    width = max(map(len, names), default=0)
    for name in names:
        values = (report.metrics[f"{kind}/{name}"] for kind in ("AP", "AR"))
        shown = ("     -" if value < 0 else f"{value:6.3f}" for value in values)
        lines.append(f"AP {name:<{width}} " + "  AR ".join(shown))
    return "\n".join(lines)


def _table(metrics: Mapping[str, float], names: Sequence[str]) -> list[str]:
    width = max(8, max(map(len, names)) + 2)
    values = ("-" if metrics[name] < 0 else f"{metrics[name]:.3f}" for name in names)
    return ["".join(f"{name:>{width}}" for name in names), "".join(f"{value:>{width}}" for value in values)]


def _predict(arguments: argparse.Namespace, processes: PartialState | None) -> None:
    """Predict, and on the main process write and evaluate."""
    if arguments.streaming and (arguments.annotations or arguments.images):
        raise ValueError("--streaming: the shards hold images and annotations; leave out --annotations and --images")
    boxless = _boxless_path(arguments)
    if boxless and not arguments.output:
        raise ValueError(f"{boxless}: has no annotations, so that results.json is all there is; give --output")
    output = make_output_folder(arguments.output) if arguments.output else None
    model, processor = load_detector(arguments.model, processes.device if processes else arguments.device)
    options = {name: getattr(arguments, name) for name in ("batch_size", "top_k", "with_scales", "with_parts")}
    options |= {"accelerator": processes, "num_workers": arguments.workers}
    truth: Path | dict[str, Any]
    if arguments.streaming:
        stream = load_streaming_dataset(
            arguments.data, arguments.split, id2label=label_names(model), image_frame=arguments.image_frame
        )
        results, truth = predict_stream(model, processor, stream, **options)
        source = output / "ground_truth.json" if output else Path(stream.name)
    else:
        files = _files(arguments)
        with TemporaryDirectory() as folder:
            if boxless:
                files["annotations"] = Path(folder) / boxless.name
                write_json(files["annotations"], {**read_json(boxless), "annotations": []})
            dataset = load_detection_dataset(arguments.data, arguments.split, **files, id2label=label_names(model))
        results, truth = predict_dataset(model, processor, dataset, **options), dataset.annotations_path
        source = boxless or dataset.annotations_path
    if processes and not processes.is_main_process:
        return
    if output:
        write_json(output / "results.json", results)
        if arguments.streaming:
            write_json(source, truth)
    if boxless:
        print(f"{boxless}: {len(dataset)} images without annotations, {len(results)} detections")
        print(f"{arguments.output}/results.json is what COCO's server takes (zipped, under the name that it asks for)")
        return
    named = ("model", "data", "split", "annotations", "images", "streaming", "batch_size", "with_scales", "with_parts")
    _report(arguments, output, truth, source, results, (*named, "top_k"))


def _report(
    arguments: argparse.Namespace,
    output: Path | None,
    truth: Path | Mapping[str, Any],
    source: Path,
    results: str | list[dict[str, Any]],
    named: Sequence[str],
) -> None:
    """Evaluate, print the numbers and write them to `output`, with the arguments that are `named`."""
    options = {"num_bins": arguments.bins, "also_at": arguments.more}
    report = evaluate_detections(truth, results, per_class=True, details=True, **options)
    if output:
        counts = {"images": report.num_images, "detections": report.num_detections}
        errors = to_plain({name: part.ece for name, part in report.named_calibration.items()})
        settings = {name: getattr(arguments, name) for name in named}
        content = {**settings, "annotations": str(source), **counts, **errors, **report.to_dict()}
        write_json(output / "metrics.json", content)
    if not arguments.per_class:
        report = replace(report, metrics={name: value for name, value in report.metrics.items() if "/" not in name})
    name = arguments.annotations or f"{arguments.data} ({arguments.split})"
    print(f"{name}: {report.num_images} images, {report.num_detections} detections")
    print(format_report(report))


def _processes(arguments: argparse.Namespace) -> PartialState | None:
    """The processes that a launcher started; None for one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if arguments.device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {arguments.device}: several processes need one each; give cpu, cuda or nothing")
    return PartialState(cpu=arguments.device == "cpu" or not torch.cuda.is_available())


def _boxless_path(arguments: argparse.Namespace) -> Path | None:
    """The file of `--annotations` if it has images but no annotations."""
    if not arguments.annotations:
        return None
    path = _ground_truth(arguments)
    content = read_json(path)
    return path if isinstance(content, Mapping) and "images" in content and "annotations" not in content else None


def _ground_truth(arguments: argparse.Namespace) -> Path:
    return find_ground_truth(arguments.data or ".", arguments.split, **_files(arguments))


def _files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where the data are, as options of `load_detection_dataset`."""
    named = {name: getattr(arguments, name) for name in ("annotations", "images", "image_frame")}
    return {**named, "validation_share": VALIDATION_SHARE}
