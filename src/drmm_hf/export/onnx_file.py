"""A captured detector as an ONNX file, and sessions of onnxruntime on one."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

# RoiAlign reads half-pixel coordinates from opset 16 on; below 18 torch's exporter converts down, which can fail.
MIN_OPSET, DEFAULT_OPSET = 18, 20


def require_onnx() -> None:
    """Import what ONNX files need.

    Raises:
        ImportError: one of them is missing; the message names the extra.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({error}): pip install 'drmm-hf[export]'"
        ) from error


def write_onnx(program: ExportedProgram, path: Path, output_names: list[str], opset: int = DEFAULT_OPSET) -> None:
    """Write a program as one ONNX file, weights included.

    Args:
        program: captured from a `DetectorGraph` with `attention="eager"`: the fused attention operators that torch
            inserts on a CPU do not all translate.
        path: file to write.
        output_names: `DetectorGraph.output_names`.
        opset: version of the operators, at least 18.

    Raises:
        ImportError: see `require_onnx`.
        ValueError: an opset that is too old, or that the exporter does not know.
    """
    require_onnx()
    from onnx.defs import onnx_opset_version

    newest = onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset}: give one of {MIN_OPSET}..{newest}.")
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            output_names=output_names,
            opset_version=opset,
            custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid},
            verbose=False,
        )
        assert exported is not None  # with dynamo=True there is a program
        exported.save(path)


def quantize_onnx(path: Path) -> None:
    """Replace the weights of the linear layers in the ONNX file `path` by bytes, one scale per output channel.

    Their inputs are quantized as they come (dynamic quantization), so that no calibration images are needed;
    convolutions stay as they are.
    """
    require_onnx()
    from onnxruntime.quantization import quantize_dynamic

    with _quiet():
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)


def session(path: Path | str, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, with as many threads as torch uses unless given."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors: its warnings speak of its own optimizations
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _log_sigmoid(self: Any) -> Any:
    """-softplus(-x). The exporter's log(sigmoid(x)) is wrong where the sigmoid is rounded: onnxruntime stops at -18."""
    from onnxscript import opset18 as op

    return op.Neg(op.Softplus(op.Neg(self)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks about their own passes: printed, warned and logged."""
    # onnxruntime's quantization speaks through the root logger
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", None)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
