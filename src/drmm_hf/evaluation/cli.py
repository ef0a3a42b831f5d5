"""`scripts/evaluate.py`: COCO AP and calibration of a trained detector on a COCO-format data set."""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import DetectionDataset, load_detection_dataset
from ..data.coco import build_detection_dataset
from ..data.coco_layout import check_images_exist, find_annotations, find_images_dir
from ..data.coco_tables import read_coco_tables
from ..data.objects import is_objects_source
from .coco_input import read_json
from .command_line import add_model_arguments, make_output_folder, positive_int, run_command, write_json
from .loading import label_names, load_detector
from .predict import predict_dataset
from .report import DetectionReport, evaluate_detections

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETECTIONS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after one line on stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.data is None and not (arguments.results and arguments.annotations):
        parser.error("--data is required (only --results with --annotations can do without)")
    return run_command(_run, arguments)


def format_report(report: DetectionReport) -> str:
    """The COCO numbers and calibration errors as a small table; "-" where there is no ground truth."""
    lines = _table(report.metrics, COLUMNS[:6]) + _table(report.metrics, COLUMNS[6:])
    more = [name for name in report.metrics if "@" in name and "/" not in name]
    if more:
        limit = more[0].partition("@")[2]
        lines += _table(report.metrics, [name for name in more if name.startswith("AP")])
        lines += _table(report.metrics, [f"AR{limit}", *(name for name in more if name.startswith("AR"))])
    for part in report.calibration:
        lines.append(f"ECE {part.ece:.4f}  ({part.settings}; {part.num_detections} detections)")
    for localization in report.localization:
        name = "LaECE" if localization.iou_threshold > 0 else "LaECE_0"
        lines.append(f"{name} {localization.laece:.4f}  ({localization.settings})")
    if report.lrp is not None:
        lines.append(f"LRP {report.lrp.lrp:.4f}  ({report.lrp.settings})")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="COCO AP and calibration of a detector on a COCO-format data set.",
    )
    results_help = "evaluate this results.json (COCO results) again, without a model and without the images"
    add_model_arguments(parser, {"--results": results_help})
    parser.add_argument("--data", help="COCO-format folder")
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument(
        "--annotations",
        help="annotation file, if not where the split's is looked for; for one without annotations, such as COCO's "
        "image_info_test-dev2017.json, only results.json is written",
    )
    parser.add_argument("--images", help="image folder, if not where the split's is looked for")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0)")
    parser.add_argument("--bins", type=positive_int, default=10, help="score bins of the ECE (default: 10)")
    parser.add_argument("--per-class", action="store_true", help="print AP and AR of every class")
    parser.add_argument(
        "--max-detections",
        type=positive_int,
        default=MAX_DETECTIONS,
        help="report AP and AR also at this number of detections an image and class, such as 300; raises --top-k "
        "to it, and calibration counts as many (default: 100)",
    )
    parser.add_argument(
        "--with-scales", action="store_true", help="keep the predicted scale of each box edge in results.json"
    )
    parser.add_argument("--output", help="folder for metrics.json and results.json (COCO results)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.max_detections < MAX_DETECTIONS:
        raise ValueError(
            f"--max-detections is {arguments.max_detections}; 1, 10 and 100 are reported anyway, give more than 100"
        )
    output = make_output_folder(arguments.output) if arguments.output else None
    if arguments.results:
        annotations = _annotations_path(arguments)
        results = read_json(arguments.results)
        source: dict[str, Any] = {"results": arguments.results}
    else:
        boxless = _boxless_path(arguments)
        if boxless and not output:
            raise ValueError(f"{boxless}: has no annotations, so that results.json is all there is; give --output")
        dataset, results = _predict(arguments, boxless)
        annotations = dataset.annotations_path
        source = {"model": arguments.model, "top_k": _top_k(arguments)}
        if output:
            # Before scoring: the results are what took the time.
            write_json(output / "results.json", results)
        if boxless:
            print(f"{boxless}: {len(dataset)} images, {len(results)} detections")
            print(f"the file has no annotations to evaluate with; the detections are in {output}/results.json")
            return 0
    report = evaluate_detections(
        annotations,
        arguments.results or results,
        num_bins=arguments.bins,
        per_class=True,
        also_at=arguments.max_detections if arguments.max_detections > MAX_DETECTIONS else None,
        details=True,
    )
    num_images = len(read_json(annotations)["images"])
    if output:
        settings = {**source, "data": arguments.data, "split": arguments.split, "annotations": str(annotations)}
        counts = {"images": num_images, "detections": len(results)}
        write_json(output / "metrics.json", {**settings, **counts, **report.to_dict()})
    if not arguments.per_class:
        report = replace(report, metrics={name: value for name, value in report.metrics.items() if "/" not in name})
    print(f"{annotations}: {num_images} images, {len(results)} detections")
    print(format_report(report))
    return 0


def _predict(arguments: argparse.Namespace, boxless: Path | None) -> tuple[DetectionDataset, list[dict[str, Any]]]:
    """The data set, that of the file `boxless` if given, and the model's results on it."""
    model, processor = load_detector(arguments.model, arguments.device)
    if boxless:
        dataset = _load_boxless(arguments, boxless, label_names(model))
    else:
        dataset = load_detection_dataset(
            arguments.data,
            arguments.split,
            annotations=arguments.annotations,
            images=arguments.images,
            id2label=label_names(model),
        )
    results = predict_dataset(
        model,
        processor,
        dataset,
        batch_size=arguments.batch_size,
        top_k=_top_k(arguments),
        num_workers=arguments.workers,
        with_scales=arguments.with_scales,
    )
    return dataset, results


def _boxless_path(arguments: argparse.Namespace) -> Path | None:
    """The file of `--annotations` if it has images but no annotations."""
    if not arguments.annotations:
        return None
    path = find_annotations(arguments.data, arguments.split, arguments.annotations)
    content = read_json(path)
    return path if isinstance(content, Mapping) and "images" in content and "annotations" not in content else None


def _load_boxless(arguments: argparse.Namespace, path: Path, id2label: Mapping[int, str]) -> DetectionDataset:
    """The data set of a file that has images and categories but no annotations."""
    with tempfile.TemporaryDirectory() as folder:
        # The reader of instances files checks the rest.
        completed = Path(folder) / path.name
        completed.write_text(json.dumps({**read_json(path), "annotations": []}), encoding="utf-8")
        tables = read_coco_tables(completed)
    images_dir = find_images_dir(arguments.data, arguments.split, arguments.images, tables.file_names)
    check_images_exist(images_dir, tables.file_names, path)
    return build_detection_dataset(tables, id2label, path, annotations_path=path, images_dir=images_dir)


def _annotations_path(arguments: argparse.Namespace) -> Path:
    if arguments.data is None:
        return Path(arguments.annotations)
    if arguments.annotations is None and is_objects_source(arguments.data):
        return load_detection_dataset(arguments.data, arguments.split).annotations_path
    return find_annotations(arguments.data, arguments.split, arguments.annotations)


def _top_k(arguments: argparse.Namespace) -> int:
    more = arguments.max_detections if arguments.max_detections > MAX_DETECTIONS else 0
    return max(arguments.top_k, more)
