"""Detectors as files that run without this package: torch.export programs and ONNX."""

from .graph import DetectorGraph, GraphSettings, capture
from .onnx_file import quantize_onnx, write_onnx
from .parity import Deviation, check_parity
from .runtime import ExportedDetector, load_run
from .write import EXPORT_FORMATS, PRECISIONS, Export, export_detector

__all__ = [
    "EXPORT_FORMATS",
    "PRECISIONS",
    "DetectorGraph",
    "Deviation",
    "Export",
    "ExportedDetector",
    "GraphSettings",
    "capture",
    "check_parity",
    "export_detector",
    "load_run",
    "quantize_onnx",
    "write_onnx",
]
