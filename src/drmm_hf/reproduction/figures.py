"""The figures of the tables: lines over the rows, and reliability diagrams."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..evaluation import CalibrationReport, save_reliability_diagram
from ..evaluation.reliability import FAINT, INK
from .cells import Context, Measured, Run, Table
from .measurements import NMS_BEST, reliability_reports

_COLORS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f")


def draw_lines(table: Table, measured: Measured, context: Context, path: Path, unit: str = "AP") -> None:
    """One line for each column of AP, or whatever else, over the rows; the standard deviation over seeds is a band.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'drmm-hf[plots]'") from error
    rows = [row for row in measured.values if row != NMS_BEST]
    columns = list(dict.fromkeys(c for row in rows for c in measured.values[row] if not c.startswith("AP50")))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, color in zip(columns, _COLORS * len(columns), strict=False):
        seeds = [list(measured.values[row].get(column, {}).values()) or [np.nan] for row in rows]
        mean = np.array([np.mean(values) for values in seeds])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in seeds])
        axes.plot(range(len(rows)), mean, "o-", color=color, label=column, linewidth=1.8, markersize=5)
        axes.fill_between(range(len(rows)), mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(rows)), rows)
    axes.set_ylabel(unit, color=INK)
    axes.set_title(f"{table.title[0].upper()}{table.title[1:]} ({table.source})", fontsize=10.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path, dpi=160, facecolor="white")


def draw_reliability(
    table: Table,
    measured: Measured,
    context: Context,
    path: Path,
    reports_of: Callable[[Run, Context], dict[str, CalibrationReport]] = reliability_reports,
) -> None:
    """The reliability diagrams that `reports_of` gives for each cell, at its first seed.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    first: dict[str, Run] = {}
    for run in measured.runs:
        first.setdefault(run.cell.name, run)
    reports: dict[str, CalibrationReport] = {}
    for run in first.values():
        reports |= reports_of(run, context)
    save_reliability_diagram(path, reports)
