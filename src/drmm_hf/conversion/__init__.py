"""Checkpoints of the authors' D-RMM, mmdet's Sparse R-CNN and AdaMixer as checkpoints of this package, and back."""

from .convert import ConversionReport, Converted, convert_checkpoint, convert_state_dict, released_state_dict
from .files import read_released_file
from .warm_start import warm_start

__all__ = [
    "ConversionReport",
    "Converted",
    "convert_checkpoint",
    "convert_state_dict",
    "read_released_file",
    "released_state_dict",
    "warm_start",
]
