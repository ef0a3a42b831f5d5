"""The JSON beside an exported file: all that a program without this package needs to use it."""

import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from ..canvas_drmm import STRIDE
from ..files import write_json
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import label_names
from ..modeling_drmm import DrmmForObjectDetection
from .graph import DetectorGraph, GraphSettings

SIDECAR = "export.json"
_PACKAGES = ("drmm-hf", "torch", "torchvision", "transformers", "onnx", "onnxscript", "onnxruntime")


def processor_settings(processor: DrmmImageProcessor, settings: GraphSettings) -> dict[str, Any]:
    """The image processor's fields for images that the graph takes.

    A graph of a fixed size gets images resized to fit into it, the aspect ratio kept, and padded to it.

    Raises:
        ValueError: the processor makes images of other sizes than multiples of 32.
    """
    fields = processor.to_dict()
    if settings.size is not None:
        height, width = settings.size
        fields["size"] = {"max_height": height, "max_width": width}
        fields["pad_size"] = {"height": height, "width": width}
        return {**fields, "do_resize": True, "do_pad": True}
    padded = fields.get("pad_size")
    sides = [padded["height"], padded["width"]] if padded else [fields["size_divisor"]]
    if not fields["do_pad"] or any(side % STRIDE for side in sides):
        name = "do_pad" if not fields["do_pad"] else "pad_size" if padded else "size_divisor"
        raise ValueError(
            f"preprocessor_config.json: {name} is {fields[name]}, but an exported graph takes sides that are multiples "
            f"of {STRIDE}: change it, or fix the size (--size HxW)."
        )
    return fields


def canvas_size(fields: dict[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of the canvas that the processor's fields make of a 4:3 image."""
    image = Image.new("RGB", (640, 480))
    height, width = DrmmImageProcessor.from_dict(fields)(image, return_tensors="pt")["pixel_values"].shape[-2:]
    return height, width


def write_sidecar(
    path: Path,
    graph: DetectorGraph,
    model: DrmmForObjectDetection,
    fields: dict[str, Any],
    settings: GraphSettings,
    **more: Any,
) -> None:
    """Write the JSON: names, what is dynamic, labels, the processor's fields and versions.

    Args:
        path: file to write.
        graph, settings: what was exported.
        model: where the labels come from.
        fields: see `processor_settings`.
        more: written as they are: file, format, precision, opset, tolerances.
    """
    content = {
        **more,
        "inputs": graph.input_names,
        "outputs": graph.output_names,
        "batch": settings.batch or "dynamic",
        "size": list(settings.size) if settings.size else "dynamic",
        "size_multiple": STRIDE,
        "top_k": settings.top_k,
        "id2label": {str(label): name for label, name in label_names(model).items()},
        "image_processor": fields,
        "versions": _versions(),
        "date": datetime.date.today().isoformat(),
    }
    write_json(path, content)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
