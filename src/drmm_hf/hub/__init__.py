"""Checkpoints that carry their own code, model cards, and publishing to the Hugging Face Hub."""

from .card import write_checkpoint_card
from .publish import UploadPlan, code_files, export_with_code, plan_upload, publish

__all__ = [
    "UploadPlan",
    "code_files",
    "export_with_code",
    "plan_upload",
    "publish",
    "write_checkpoint_card",
]
