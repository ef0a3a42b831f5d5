"""Speed and memory, measured beside the peers in one run: `scripts/benchmark.py`."""

from .results import Figure, Row, Settings, Suite, Table
from .timing import Timing, alternate

__all__ = ["Figure", "Row", "Settings", "Suite", "Table", "Timing", "alternate"]
