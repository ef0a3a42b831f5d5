"""`scripts/evaluate.py`: COCO AP and calibration of a trained detector.

While it predicts, OUTPUT/results.partial holds what is there so far; it is removed when the metrics are written. With
`torchrun` each process predicts its share, and the first one evaluates.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cli import add_model_arguments, count, positive_int
from ..data import DetectionDataset, StreamingDetectionDataset, load_detection_dataset, load_streaming_dataset
from ..data.coco import build_detection_dataset
from ..data.coco_layout import check_images_exist, find_annotations, find_images_dir
from ..data.coco_tables import read_coco_tables
from ..data.objects_sources import is_objects_source
from ..evaluation.batches import Dataset
from ..evaluation.processes import Processes
from ..evaluation.report import DetectionReport, evaluate_detections
from ..evaluation.spool import ResultsSpool
from ..evaluation.spooled import predict_to_spool, spooled_results, streamed_ground_truth
from ..files import make_output_folder, read_json, write_json, write_json_lines
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import label_names, load_detector, weights_written
from ..modeling_drmm import DrmmForObjectDetection

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
MAX_DETECTIONS = 100


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


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="COCO AP and calibration of a detector on a data set.",
    )
    results_help = "evaluate this results.json (COCO results) again, without a model and without the images"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder written by save_pretrained, or a Hub id")
    source.add_argument("--results", help=results_help)
    add_model_arguments(parser)
    parser.add_argument("--data", help="COCO-format folder, or a data set with an objects column")
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument(
        "--annotations",
        help="annotation file, if not where the split's is looked for; for one without annotations, such as COCO's "
        "image_info_test-dev2017.json, only results.json is written",
    )
    parser.add_argument("--images", help="image folder, if not where the split's is looked for")
    parser.add_argument("--workers", type=count, default=0, help="processes that read images (default: 0)")
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
    parser.add_argument(
        "--with-parts",
        action="store_true",
        help="keep the objectness in results.json, and report the calibration of p and o by themselves",
    )
    parser.add_argument("--output", help="folder for metrics.json and results.json (COCO results)")
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="read --data (a Hub id, parquet shards, WebDataset tars) as a stream; OUTPUT gets its ground truth",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run of the same command in OUTPUT"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.max_detections < MAX_DETECTIONS:
        raise ValueError(
            f"--max-detections is {arguments.max_detections}; 1, 10 and 100 are reported anyway, give more than 100"
        )
    if arguments.resume and not arguments.output:
        raise ValueError("--resume: give the --output of the interrupted run, where its detections are")
    if arguments.results:
        if arguments.streaming:
            raise ValueError("--streaming: saved results need the ground truth as a file; give it as --annotations")
        output = make_output_folder(arguments.output) if arguments.output else None
        return _report(arguments, output, arguments.results, _annotations_path(arguments))
    processes = Processes(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        # All write to one folder, and all but the main process leave when they have.
        folder = Path(processes.share(arguments.output or scratch))
        return _predict_and_report(arguments, processes, folder)


def _predict_and_report(arguments: argparse.Namespace, processes: Processes, folder: Path) -> int:
    boxless, dataset, model, processor = processes.all_do(lambda: _load(arguments, processes))
    make_output_folder(str(folder))
    partial = folder / "results.partial"
    settings = {**_settings(arguments), "weights_written": weights_written(arguments.model)}
    processes.all_do(
        lambda: ResultsSpool.begin(partial, settings, arguments.resume) if processes.is_main else None,
    )
    spool = ResultsSpool(partial, processes.index)
    finished = processes.share(spool.finished() if processes.is_main else set())
    processes.all_do(
        lambda: predict_to_spool(
            spool,
            model,
            processor,
            dataset,
            processes,
            finished=finished,
            batch_size=arguments.batch_size,
            top_k=_top_k(arguments),
            num_workers=arguments.workers,
            with_scales=arguments.with_scales,
            with_parts=arguments.with_parts,
        )
    )
    if not processes.is_main:
        return 0
    saved, image_ids = folder / "results.json", None
    if isinstance(dataset, StreamingDetectionDataset):
        truth = streamed_ground_truth(spool, dataset)
        annotations, image_ids = folder / "ground_truth.json", [image["id"] for image in truth["images"]]
        write_json(annotations, truth)
    else:
        annotations = dataset.annotations_path
    write_json_lines(saved, spooled_results(spool, image_ids))
    if boxless:
        found = sum(entry["count"] for entry in spool.entries())
        print(f"{boxless}: {len(dataset)} images, {found} detections")  # type: ignore[arg-type]
        print(
            f"the file has no annotations to evaluate with; the detections are in {saved}, with the file's own image "
            "and category ids, as COCO's server takes them (zip the file under the name that it asks for)"
        )
    else:
        _report(arguments, folder if arguments.output else None, str(saved), annotations)
    spool.remove()
    return 0


def _report(arguments: argparse.Namespace, output: Path | None, results: str, annotations: Path) -> int:
    """Evaluate saved results, print the numbers and write them to `output`."""
    report = evaluate_detections(
        annotations,
        results,
        num_bins=arguments.bins,
        per_class=True,
        also_at=arguments.max_detections if arguments.max_detections > MAX_DETECTIONS else None,
        details=True,
    )
    if output:
        settings = {**_settings(arguments), "annotations": str(annotations)}
        if arguments.results:
            settings = {"results": results, **{name: settings[name] for name in ("data", "split", "annotations")}}
        counts = {"images": report.num_images, "detections": report.num_detections}
        write_json(output / "metrics.json", {**settings, **counts, **report.to_dict()})
    if not arguments.per_class:
        report = replace(report, metrics={name: value for name, value in report.metrics.items() if "/" not in name})
    print(f"{annotations}: {report.num_images} images, {report.num_detections} detections")
    print(format_report(report))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the detections depend on, besides the files."""
    named = ("model", "data", "split", "annotations", "images", "streaming", "batch_size", "with_scales", "with_parts")
    return {**{name: getattr(arguments, name) for name in named}, "top_k": _top_k(arguments)}


def _load(
    arguments: argparse.Namespace, processes: Processes
) -> tuple[Path | None, Dataset, DrmmForObjectDetection, DrmmImageProcessor]:
    """The annotation file if it has no annotations, the data set, the model and its image processor."""
    if arguments.streaming and (arguments.annotations or arguments.images):
        raise ValueError("--streaming: the shards hold images and annotations; leave out --annotations and --images")
    boxless = _boxless_path(arguments)
    if boxless and not arguments.output:
        raise ValueError(f"{boxless}: has no annotations, so that results.json is all there is; give --output")
    if arguments.output:
        make_output_folder(arguments.output)
    model, processor = load_detector(arguments.model, processes.device)
    for option in ("with_scales", "with_parts"):
        if getattr(arguments, option) and model.config.head != "mixture":
            raise ValueError(f"--{option.replace('_', '-')}: a model with head={model.config.head!r} predicts none")
    dataset: Dataset
    if arguments.streaming:
        dataset = load_streaming_dataset(arguments.data, arguments.split, id2label=label_names(model))
    elif boxless:
        dataset = _load_boxless(arguments, boxless, label_names(model))
    else:
        dataset = load_detection_dataset(
            arguments.data,
            arguments.split,
            annotations=arguments.annotations,
            images=arguments.images,
            id2label=label_names(model),
        )
    return boxless, dataset, model, processor


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
