"""A page in the browser that shows detections, their uncertainty, and how much of them to expect to be right."""

from .measured import Measured, load_measured
from .view import Options, View, detect, show

__all__ = ["Measured", "Options", "View", "detect", "load_measured", "show"]
