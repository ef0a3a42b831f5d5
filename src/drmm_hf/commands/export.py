"""`drmm export`: a checkpoint as an ONNX file or a torch.export program, checked against the checkpoint."""

import argparse
import statistics
import time

import torch

from ..cli import positive_int
from ..data import load_detection_dataset
from ..evaluation import evaluate_detections, predict_dataset
from ..export import (
    DEFAULT_OPSET,
    EXPORT_FORMATS,
    PRECISIONS,
    SIDECAR,
    TOLERANCE,
    Export,
    ExportedDetector,
    canvas_size,
    export_detector,
    load_run,
)
from ..export_graph import DetectorGraph, GraphSettings, Run, check_parity, example_inputs, rounding
from ..files import make_output_folder
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import label_names, load_checkpoint
from ..modeling_drmm import DrmmForObjectDetection

_METRICS = ("AP", "AP50", "AP75")
_ROUNDS = 7


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Export a checkpoint to ONNX or torch.export, and compare the file with the checkpoint.",
    )
    parser.add_argument("checkpoint", help="folder written by save_pretrained, or a Hub id")
    parser.add_argument("output", help=f"folder for {' or '.join(EXPORT_FORMATS.values())} and {SIDECAR}")
    parser.add_argument("--format", choices=tuple(EXPORT_FORMATS), required=True)
    parser.add_argument(
        "--with-postprocessing", action="store_true", help="end in ranked detections instead of raw outputs"
    )
    parser.add_argument("--top-k", type=positive_int, default=100, help="detections an image of it (default: 100)")
    parser.add_argument("--batch", type=_batch, default=None, metavar="dynamic|N", help="default: dynamic")
    parser.add_argument(
        "--size", type=_size, default=None, metavar="dynamic|HxW", help="multiples of 32 (default: dynamic)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help=f"of ONNX (default: {DEFAULT_OPSET})")
    parser.add_argument("--data", help="COCO-format folder: measure AP and ECE of checkpoint and file on it")
    parser.add_argument("--split", default="val", help="split of --data (default: val)")
    return parser


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive_int(text)


def _size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    height, separator, width = text.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"give dynamic or HEIGHTxWIDTH such as 800x1344, not {text!r}")
    return int(height), int(width)


def run(arguments: argparse.Namespace) -> int:
    if arguments.data and arguments.with_postprocessing:
        raise ValueError("--data compares raw outputs: leave out --with-postprocessing")
    settings = GraphSettings(
        arguments.batch, arguments.size, arguments.top_k if arguments.with_postprocessing else None
    )
    model, processor = load_checkpoint(arguments.checkpoint)
    model.eval()
    exported = export_detector(
        model,
        processor,
        make_output_folder(arguments.output),
        format=arguments.format,
        settings=settings,
        precision=arguments.precision,
        opset=arguments.opset,
    )
    print(f"{exported.path}: {exported.path.stat().st_size / 1e6:.1f} MB")
    run = load_run(exported.path, exported.graph.output_names)
    within = _print_parity(run, model, exported, arguments.precision)
    _print_latency(run, model, exported)
    if arguments.data:
        _print_accuracy(run, model, exported, arguments)
    return 0 if within else 1


def _print_parity(run: Run, model: DrmmForObjectDetection, exported: Export, precision: str) -> bool:
    """Print the deviations; True if they are allowed, as any are below fp32."""
    reference = DetectorGraph(model)
    print("largest absolute deviation from the checkpoint, boxes and scales as fractions of the image:")
    found = []
    for deviation in check_parity(run, reference, exported.settings, canvas_size(exported.processor)):
        height, width = deviation.size
        values = "  ".join(f"{name} {value:.1e}" for name, value in deviation.values.items())
        print(f"  batch {deviation.batch}, {height}x{width}: {values}", flush=True)
        found.append(deviation)
    if precision != "fp32":
        print(f"  {precision} has no bound: measure what it costs with --data")
        return True
    worst = max(found, key=lambda deviation: deviation.largest)
    if worst.largest <= TOLERANCE:
        print(f"  within {TOLERANCE:.0e}")
        return True
    values = "  ".join(f"{name} {value:.1e}" for name, value in rounding(model, worst).values.items())
    print(f"  EXCEEDS {TOLERANCE:.0e}; the checkpoint itself in float64 deviates from float32 there by {values}")
    return False


def _print_latency(run: Run, model: DrmmForObjectDetection, exported: Export) -> None:
    """Print medians of alternating rounds on one batch of the usual size."""
    size, batch = exported.settings.size or canvas_size(exported.processor), exported.settings.batch or 1
    reference = DetectorGraph(model)
    inputs = example_inputs(exported.graph.input_names, batch, size)
    raw = {name: inputs[name] for name in reference.input_names}
    candidates = {"eager": torch.no_grad()(lambda: reference(**raw)), "exported": lambda: run(inputs)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(1 + _ROUNDS):
        for name, call in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"milliseconds of a batch of {batch}, {size[0]}x{size[1]}, median of {_ROUNDS} rounds, ", end="")
    print(f"{torch.get_num_threads()} threads: ", end="")
    for name, rounds in seconds.items():
        wall, cpu = (statistics.median(values[1:]) * 1e3 for values in zip(*rounds, strict=True))  # the first warms up
        print(f"{name} {wall:.0f} (CPU time {cpu:.0f})", end=", " if name == "eager" else "; ")
    ratios = [one[1] / other[1] for one, other in zip(seconds["exported"][1:], seconds["eager"][1:], strict=True)]
    print(f"ratio of CPU time {statistics.median(ratios):.2f}")


def _print_accuracy(run: Run, model: DrmmForObjectDetection, exported: Export, arguments: argparse.Namespace) -> None:
    """Print AP and ECE of the checkpoint and of the file, one image at a time."""
    dataset = load_detection_dataset(arguments.data, arguments.split, id2label=label_names(model))
    processor = DrmmImageProcessor.from_dict(exported.processor)
    detectors = {"checkpoint": model, "exported": ExportedDetector(run, exported.graph.output_names)}
    batch_size = exported.settings.batch or 1
    if len(dataset) % batch_size:
        raise ValueError(
            f"--batch {batch_size}: the {len(dataset)} images of {arguments.data} are no multiple of it; "
            "--data needs one, or --batch dynamic"
        )
    for name, detector in detectors.items():
        results = predict_dataset(detector, processor, dataset, batch_size=batch_size)
        report = evaluate_detections(dataset.annotations_path, results)
        values = "  ".join(f"{metric} {report.metrics[metric]:.4f}" for metric in _METRICS)
        print(f"{name}: {values}  ECE {report.calibration[0].ece:.4f}  ({len(dataset)} images)")
