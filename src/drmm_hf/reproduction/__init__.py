"""The paper's tables and figures as commands: train what they compare, measure it, write them."""

from .cells import Cell, Context, Measured, Run, Table
from .collect import measure_table
from .plan import PlannedRun, find_runs, plan_runs
from .render import to_markdown, to_plain_values
from .tables import TABLES

__all__ = [
    "TABLES",
    "Cell",
    "Context",
    "Measured",
    "PlannedRun",
    "Run",
    "Table",
    "find_runs",
    "measure_table",
    "plan_runs",
    "to_markdown",
    "to_plain_values",
]
