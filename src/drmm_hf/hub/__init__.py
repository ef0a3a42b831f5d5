"""Checkpoints that carry their own code, and publishing to the Hugging Face Hub."""

from .export_code import code_files, export_with_code
from .plan import UploadPlan, plan_upload
from .publish import Published, publish

__all__ = ["Published", "UploadPlan", "code_files", "export_with_code", "plan_upload", "publish"]
