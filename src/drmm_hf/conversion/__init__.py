"""Checkpoints of the authors' D-RMM, mmdet's Sparse R-CNN and AdaMixer as checkpoints of this package, and back."""

from .convert import (
    ConversionReport,
    Converted,
    Deviation,
    convert_checkpoint,
    convert_state_dict,
    read_released_file,
    reference_input,
    released_state_dict,
    verify_golden,
    warm_start,
    write_released_file,
)

__all__ = [
    "ConversionReport",
    "Converted",
    "Deviation",
    "convert_checkpoint",
    "convert_state_dict",
    "read_released_file",
    "reference_input",
    "released_state_dict",
    "verify_golden",
    "warm_start",
    "write_released_file",
]
