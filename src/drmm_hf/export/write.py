"""A detector and its image processor to an export folder."""

import io
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import writing
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from .graph import DetectorGraph, GraphSettings, capture
from .onnx_file import DEFAULT_OPSET, quantize_onnx, require_onnx, write_onnx
from .sidecar import SIDECAR, processor_settings, write_sidecar

EXPORT_FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2"}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Export:
    """What `export_detector` wrote.

    Attributes:
        path: the model's file; `export.json` lies beside it.
        graph: what it computes.
        settings: what is dynamic.
        processor: fields of the image processor that makes its inputs.
    """

    path: Path
    graph: DetectorGraph
    settings: GraphSettings
    processor: dict


def export_detector(
    model: DrmmForObjectDetection,
    processor: DrmmImageProcessor,
    folder: Path,
    *,
    format: str = "onnx",
    settings: GraphSettings | None = None,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
) -> Export:
    """Write `model.onnx` or `model.pt2`, and `export.json` with all that a program needs beside it.

    Args:
        model: on the CPU; stays as it is.
        processor: its image processor.
        folder: an existing folder.
        format: `onnx` or `torch_export`.
        settings: dynamic batch and size and raw outputs unless given.
        precision: `fp32`; `fp16`, weights and features in half precision, coordinates in float32; `int8`, weights of
            the linear layers as bytes (ONNX only). Inputs and outputs are float32 in all of them.
        opset: ONNX operators.

    Raises:
        ImportError: ONNX without the extra `export`.
        ValueError: settings that do not fit the model, the processor or each other.
    """
    settings = settings or GraphSettings()
    if format not in EXPORT_FORMATS or precision not in PRECISIONS:
        raise ValueError(
            f"format {format!r}, precision {precision!r}: formats are {', '.join(EXPORT_FORMATS)}, "
            f"precisions {', '.join(PRECISIONS)}."
        )
    if precision == "int8" and format != "onnx":
        raise ValueError("precision int8 is onnxruntime's: it needs format onnx.")
    fields = processor_settings(processor, settings)
    if format == "onnx":
        require_onnx()
    # The attention written out: torch's fused operators of a CPU do not all translate to ONNX.
    graph = DetectorGraph(model, settings.top_k, "eager" if format == "onnx" else None)
    if precision == "fp16":
        graph.half()
    program = capture(graph, settings)
    path = folder / EXPORT_FORMATS[format]
    more = {"file": path.name, "format": format, "precision": precision}
    if format == "onnx":
        with writing(path):
            write_onnx(program, path, graph.output_names, opset)
            if precision == "int8":
                quantize_onnx(path)
        more["opset"] = str(opset)
    else:
        # In memory first: torch's own writer ends the process when the disk is full.
        content = io.BytesIO()
        torch.export.save(program, content)
        with writing(path):
            path.write_bytes(content.getbuffer())
    write_sidecar(folder / SIDECAR, graph, model, fields, settings, **more)
    return Export(path, graph, settings, fields)
