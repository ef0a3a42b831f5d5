"""`scripts/evaluate.py`: COCO AP and calibration of a trained detector on a COCO-format data set."""

import argparse
from collections.abc import Sequence

from ..data import load_detection_dataset
from .command_line import add_model_arguments, make_output_folder, positive_int, run_command, write_json
from .loading import label_names, load_detector
from .predict import predict_dataset
from .report import DetectionReport, evaluate_detections

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after one line on stderr."""
    return run_command(_run, _parser().parse_args(argv))


def format_report(report: DetectionReport) -> str:
    """The COCO numbers and calibration errors as a small table; "-" where there is no ground truth."""
    lines = []
    for names in (COLUMNS[:6], COLUMNS[6:]):
        lines.append("".join(f"{name:>8}" for name in names))
        values = [report.metrics[name] for name in names]
        lines.append("".join("       -" if value < 0 else f"{value:8.3f}" for value in values))
    for part in report.calibration:
        lines.append(f"ECE {part.ece:.4f}  ({part.settings}; {part.num_detections} detections)")
    per_class = {name[3:]: value for name, value in report.metrics.items() if name.startswith("AP/")}
    width = max((len(name) for name in per_class), default=0)
    for name, value in per_class.items():
        lines.append(f"AP {name:<{width}} " + ("     -" if value < 0 else f"{value:6.3f}"))
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="COCO AP and calibration of a detector on a COCO-format data set.",
    )
    add_model_arguments(parser)
    parser.add_argument("--data", required=True, help="COCO-format folder")
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument("--annotations", help="annotation file, if not where the split's is looked for")
    parser.add_argument("--images", help="image folder, if not where the split's is looked for")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: 0)")
    parser.add_argument("--bins", type=positive_int, default=10, help="score bins of the ECE (default: 10)")
    parser.add_argument("--per-class", action="store_true", help="print the AP of every class")
    parser.add_argument("--output", help="folder for metrics.json and results.json (COCO results)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    output = make_output_folder(arguments.output) if arguments.output else None
    model, processor = load_detector(arguments.model, arguments.device)
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
        top_k=arguments.top_k,
        num_workers=arguments.workers,
    )
    if output:
        # Before scoring: the results are what took the time.
        write_json(output / "results.json", results)
    report = evaluate_detections(dataset.annotations_path, results, num_bins=arguments.bins, per_class=True)
    if output:
        settings = {"model": arguments.model, "data": arguments.data, "split": arguments.split}
        settings |= {"annotations": str(dataset.annotations_path), "top_k": arguments.top_k}
        counts = {"images": len(dataset), "detections": len(results)}
        write_json(output / "metrics.json", {**settings, **counts, **report.to_dict()})
    if not arguments.per_class:
        totals = {name: value for name, value in report.metrics.items() if not name.startswith("AP/")}
        report = DetectionReport(totals, report.calibration)
    print(f"{dataset.annotations_path}: {len(dataset)} images, {len(results)} detections")
    print(format_report(report))
    return 0
