"""`drmm export`: a checkpoint as an ONNX file or a torch.export program, checked against the checkpoint."""

import argparse

from PIL import Image

from ..cli import positive_int
from ..data import load_detection_dataset
from ..data.splits import VALIDATION_SHARE
from ..detectors import adapter_for
from ..evaluation import evaluate_detections, predict_dataset
from ..export import DEFAULT_OPSET, EXPORT_FORMATS, PRECISIONS, SIDECAR, ExportedDetector, export_detector
from ..export_graph import MIN_SIDE, STRIDE, DetectorGraph, GraphSettings, deviations
from ..files import make_output_folder
from ..loading import label_names, load_checkpoint
from ..modeling_drmm import DrmmForObjectDetection
from ..modeling_drmm_detr import DrmmDetrForObjectDetection

TOLERANCE = 1e-4  # largest deviation of an fp32 file from the checkpoint that counts as the same model
_METRICS = ("AP", "AP50", "AP75")


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
    parser.add_argument("--batch", type=_batch, metavar="dynamic|N", help="default: dynamic")
    parser.add_argument("--size", type=_size, metavar="dynamic|HxW", help="multiples of 32 (default: dynamic)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    parser.add_argument("--opset", type=int, default=DEFAULT_OPSET, help=f"of ONNX (default: {DEFAULT_OPSET})")
    parser.add_argument("--data", help="folder of a labeled data set: measure AP and ECE of checkpoint and file on it")
    parser.add_argument("--split", default="val", help="split of --data (default: val)")
    return parser


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else positive_int(text)


def _size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"give dynamic or HEIGHTxWIDTH such as 800x1344, not {text!r}") from None
    return height, width


def run(arguments: argparse.Namespace) -> int:
    if arguments.data and arguments.with_postprocessing:
        raise ValueError("--data compares raw outputs: leave out --with-postprocessing")
    top_k = arguments.top_k if arguments.with_postprocessing else None
    settings = GraphSettings(arguments.batch, arguments.size, top_k)
    model, processor = load_checkpoint(arguments.checkpoint)
    own = isinstance(model, DrmmForObjectDetection)
    if not own and not isinstance(model, DrmmDetrForObjectDetection):
        adapter_for(model.config.model_type)
    if arguments.data and not own:
        raise ValueError("--data is for this package's own decoders: measure the checkpoint with drmm evaluate")
    model.float().eval()
    folder = make_output_folder(arguments.output)
    options = {"format": arguments.format, "precision": arguments.precision, "opset": arguments.opset}
    try:
        path = export_detector(model, processor, folder, settings=settings, **options)
        exported, reference = ExportedDetector(folder), DetectorGraph(model)
    except (ValueError, ImportError, OSError):
        raise
    except Exception as error:  # torch and onnxruntime raise whatever a family leads to
        if own:
            raise
        raise ValueError(
            f"{arguments.checkpoint}: this family cannot be written as {arguments.format} ({type(error).__name__}); "
            "torch_export in fp32 takes every family, with torch 2.14 or newer"
        ) from error
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    within = _print_parity(exported, reference, settings, arguments.precision)
    if arguments.data:
        _print_accuracy(exported, model, settings.batch or 1, arguments)
    return 0 if within else 1


def _print_parity(
    exported: ExportedDetector, reference: DetectorGraph, settings: GraphSettings, precision: str
) -> bool:
    """Print the deviations of batches of 1 and 2, on a quarter, half and all of the canvas of a 4:3 image, unless the
    settings fix them; True if they are allowed, as any are below fp32.
    """
    sizes = [settings.size] if settings.size else []
    if not sizes:
        canvas = exported.processor(Image.new("RGB", (640, 480)), return_tensors="pt")["pixel_values"].shape[-2:]
        for share in (0.25, 0.5, 1.0):
            height, width = (max(MIN_SIDE, round(side * share / STRIDE) * STRIDE) for side in canvas)
            sizes.append((height, width))
    places = [(batch, size) for size in sizes for batch in ([settings.batch] if settings.batch else [1, 2])]
    print("largest absolute deviation from the checkpoint, boxes and scales as fractions of the image:")
    found = {}
    for batch, size in places:
        found[batch, size] = values = deviations(exported.run, reference, batch, size, settings.top_k)
        print(f"  batch {batch}, {size[0]}x{size[1]}: {_format(values)}", flush=True)
    if precision != "fp32":
        print(f"  {precision} has no bound: measure what it costs with --data")
        return True
    worst = max(found, key=lambda place: max(found[place].values()))
    if max(found[worst].values()) <= TOLERANCE:
        print(f"  within {TOLERANCE:.0e}")
        return True
    # A deviation of that order is the rounding of another order of sums, not a fault.
    precise = DetectorGraph(reference.model).double()
    rounding = deviations(lambda inputs: precise(**inputs), reference, *worst)
    print(f"  EXCEEDS {TOLERANCE:.0e}; the checkpoint itself in float64 deviates from float32 there by ", end="")
    print(_format(rounding))
    return False


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.1e}" for name, value in values.items())


def _print_accuracy(
    exported: ExportedDetector, model: DrmmForObjectDetection, batch_size: int, arguments: argparse.Namespace
) -> None:
    """Print AP and ECE of the checkpoint and of the file, one image at a time unless the batch is fixed."""
    dataset = load_detection_dataset(
        arguments.data, arguments.split, id2label=label_names(model), validation_share=VALIDATION_SHARE
    )
    if len(dataset) % batch_size:
        raise ValueError(
            f"--batch {batch_size}: the {len(dataset)} images of {arguments.data} are no multiple of it; "
            "--data needs one, or --batch dynamic"
        )
    for name, detector in {"checkpoint": model, "exported": exported}.items():
        results = predict_dataset(detector, exported.processor, dataset, batch_size=batch_size)
        report = evaluate_detections(dataset.annotations_path, results)
        values = "  ".join(f"{metric} {report.metrics[metric]:.4f}" for metric in _METRICS)
        print(f"{name}: {values}  ECE {report.calibration[0].ece:.4f}  ({len(dataset)} images)")
