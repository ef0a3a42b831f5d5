"""Detectors as files that run without this package: torch.export programs and ONNX, each with a JSON beside it."""

import contextlib
import datetime
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.export import ExportedProgram

from .export_graph import AXES, STRIDE, DetectorGraph, GraphSettings, Run, capture
from .files import read_json, require, write_json, writing
from .image_processing_drmm import DrmmImageProcessor
from .loading import label_names
from .modeling_drmm import DrmmForObjectDetection

__all__ = ["EXPORT_FORMATS", "PRECISIONS", "ExportedDetector", "GraphSettings", "export_detector", "processor_settings"]

EXPORT_FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2"}
PRECISIONS = ("fp32", "fp16", "int8")
SIDECAR = "export.json"
# RoiAlign reads half-pixel coordinates from opset 16 on; below 18 torch's exporter converts down, which can fail.
MIN_OPSET, DEFAULT_OPSET = 18, 20
_PACKAGES = ("drmm-hf", "torch", "torchvision", "transformers", "onnx", "onnxscript", "onnxruntime")


def export_detector(
    model: DrmmForObjectDetection,
    processor: DrmmImageProcessor,
    folder: Path,
    *,
    format: str = "onnx",
    settings: GraphSettings | None = None,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
) -> Path:
    """Write `model.onnx` or `model.pt2`, and `export.json` with all that a program needs beside it.

    Args:
        model: on the CPU, in any precision; stays as it is.
        processor: its image processor.
        folder: an existing folder.
        format: `onnx` or `torch_export`.
        settings: dynamic batch and size and raw outputs unless given.
        precision: `fp32`; `fp16`, weights and features in half precision, coordinates in float32; `int8`, weights of
            the linear layers as bytes (ONNX only). Inputs and outputs are float32 in all of them.
        opset: of ONNX's operators, at least 18.

    Returns:
        The model's file.

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
        onnx, *_ = (require(name, "export") for name in ("onnx", "onnxscript", "onnxruntime"))
        newest = onnx.defs.onnx_opset_version()
        if not MIN_OPSET <= opset <= newest:
            raise ValueError(f"opset is {opset}: give one of {MIN_OPSET}..{newest}.")
    # The attention written out: torch's fused operators of a CPU do not all translate to ONNX.
    graph = DetectorGraph(model, settings.top_k, "eager" if format == "onnx" else None)
    if precision == "fp16":
        graph.half()
    program = capture(graph, settings)
    path = folder / EXPORT_FORMATS[format]
    with writing(path):
        if format == "onnx":
            _write_onnx(program, path, graph.output_names, opset)
            if precision == "int8":
                _quantize_onnx(path)
        else:  # in memory first: torch's own writer ends the process when the disk is full
            content = io.BytesIO()
            torch.export.save(program, content)
            path.write_bytes(content.getvalue())
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    sidecar = {
        "file": path.name,
        "format": format,
        "precision": precision,
        **({"opset": str(opset)} if format == "onnx" else {}),
        "inputs": graph.input_names,
        "outputs": graph.output_names,
        "batch": settings.batch or "dynamic",
        "size": list(settings.size) if settings.size else "dynamic",
        "size_multiple": STRIDE,
        "top_k": settings.top_k,
        "id2label": {str(label): name for label, name in label_names(model).items()},
        "image_processor": fields,
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
    write_json(folder / SIDECAR, sidecar)
    return path


def processor_settings(processor: DrmmImageProcessor, settings: GraphSettings) -> dict[str, Any]:
    """The image processor's fields for images that the graph takes: resized to fit into a fixed size, and padded to it.

    Raises:
        ValueError: the processor makes images of other sizes than multiples of 32.
    """
    fields = processor.to_dict()
    if not isinstance(processor, DrmmImageProcessor):
        if settings.size is None or settings.batch is None:
            raise ValueError(
                "the graph of a detector of transformers holds for one batch and one size: fix both (--batch 1 "
                "--size HxW, that of its image processor)."
            )
        if fields["size"].get("height"):  # it stretches images
            return {**fields, "size": dict(zip(("height", "width"), settings.size, strict=True)), "do_resize": True}
    if settings.size is not None:
        height, width = settings.size
        fields["size"] = {"max_height": height, "max_width": width}
        fields["pad_size"] = {"height": height, "width": width}
        return {**fields, "do_resize": True, "do_pad": True}
    name = "do_pad" if not fields["do_pad"] else "pad_size" if fields.get("pad_size") else "size_divisor"
    sides = fields["pad_size"].values() if name == "pad_size" else [fields["size_divisor"]]
    if name == "do_pad" or any(side % STRIDE for side in sides):
        raise ValueError(
            f"preprocessor_config.json: {name} is {fields[name]}, but an exported graph takes sides that are multiples "
            f"of {STRIDE}: change it, or fix the size (--size HxW)."
        )
    return fields


class ExportedDetector(nn.Module):
    """An exported file on the CPU; without ranking it takes the place of a model for `evaluation.predict_dataset`.

    Attributes:
        run: a function from inputs by name to the outputs in order.
        processor: the image processor that makes the inputs.

    Args:
        folder: what `export_detector` wrote.

    Raises:
        ImportError: ONNX without the extra `export`.
    """

    def __init__(self, folder: Path):
        super().__init__()
        sidecar = read_json(folder / SIDECAR)
        kind = sidecar["image_processor"]["image_processor_type"]
        self.processor = getattr(transformers, kind, DrmmImageProcessor).from_dict(sidecar["image_processor"])
        self.output_names: list[str] = sidecar["outputs"]
        load = _load_onnx if sidecar["format"] == "onnx" else _load_program
        self.run: Run = load(folder / sidecar["file"], self.output_names)
        # says where inputs go and in which type
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Any]:
        """`logits`, `pred_boxes` and the other outputs of the file by name, as post-processing takes them."""
        # inference tensors cannot be passed to a captured program
        inputs = {"pixel_values": pixel_values.clone(), "pixel_mask": pixel_mask.clone()}
        return dict(zip(self.output_names, self.run(inputs), strict=True))


def _load_onnx(path: Path, output_names: list[str]) -> Run:
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: its warnings speak of its own optimizations
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(output_names, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value) for value in found]

    return run


def _load_program(path: Path, output_names: list[str]) -> Run:
    module = torch.export.load(path).module()
    return torch.no_grad()(lambda inputs: module(**inputs))


def _write_onnx(program: ExportedProgram, path: Path, output_names: list[str], opset: int) -> None:
    """Write a program as one ONNX file, weights included, whose dynamic axes are called batch, height and width."""
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            output_names=output_names,
            opset_version=opset,
            custom_translation_table={
                torch.ops.aten.log_sigmoid.default: _log_sigmoid,
                torch.ops.aten._is_all_true.default: _is_all_true,
            },
            verbose=False,
        )
        assert exported is not None  # with dynamo=True there is a program
        _name_axes(exported.model.graph)
        exported.save(path)


def _name_axes(graph: Any) -> None:
    """Call the dynamic axes of an onnx_ir graph batch, height and width; the exporter's names are such as 32*s87."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        names |= {str(value.shape[axis]): name for axis, name in AXES[value.name].items()}
    outputs = (value for node in graph.all_nodes() for value in node.outputs if value.shape is not None)
    for shape in (value.shape for value in (*graph.inputs, *outputs)):
        for axis, size in enumerate(shape):
            if not isinstance(size, int) and str(size) in names:
                shape[axis] = names[str(size)]


def _quantize_onnx(path: Path) -> None:
    """Replace the weights of the linear layers in an ONNX file by bytes, one scale per output channel.

    Their inputs are quantized as they come (dynamic quantization), so that no calibration images are needed;
    convolutions stay as they are.
    """
    from onnxruntime.quantization import quantize_dynamic

    with _quiet():
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)


def _log_sigmoid(self: Any) -> Any:
    """-softplus(-x). The exporter's log(sigmoid(x)) is wrong where the sigmoid is rounded: onnxruntime stops at -18."""
    from onnxscript import opset18 as op

    return op.Neg(op.Softplus(op.Neg(self)))


def _is_all_true(self: Any) -> Any:
    """RT-DETR and D-FINE ask for it; the exporter has none."""
    from onnxscript import opset18

    op: Any = opset18
    return op.Cast(op.ReduceMin(op.Cast(self, to=7), keepdims=0), to=9)  # through int64 back to bool


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about their own passes: printed, warned and logged."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
