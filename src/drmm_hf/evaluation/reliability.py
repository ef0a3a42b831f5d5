"""Reliability diagrams: precision against confidence, with the number of detections below."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import CalibrationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR, OVER, UNDER, INK, FAINT = "#a9c6e3", "#d1495b", "#1f6f8b", "#333333", "#8a8a8a"


def reliability_figure(reports: Mapping[str, CalibrationReport]) -> "Figure":
    """Reliability diagrams side by side, as in Figs. 2, 8 and 9 of the D-RMM paper.

    Each column shows, over the confidence, the precision of the detections of each bin (bar), how far it is from
    their mean confidence (hatched), and the number of detections on a logarithmic axis. The title has the name,
    the ECE and its settings.

    Args:
        reports: name -> report of `calibration_report`, from left to right.

    Raises:
        ValueError: there are no reports.
        ImportError: matplotlib is missing; the message names the extra.
    """
    if not reports:
        raise ValueError("reports is empty; give at least one name and its CalibrationReport")
    try:
        # Not pyplot: it would keep every figure, and choose a window system.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Reliability diagrams need matplotlib: pip install 'drmm-hf[plots]'") from error
    figure = Figure(figsize=(1.0 + 3.0 * len(reports), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2, len(reports), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": (3, 1)}
    )
    for (name, report), (top, bottom) in zip(reports.items(), axes.T, strict=True):
        _draw_precision(top, report)
        _draw_counts(bottom, report)
        top.set_title(f"{name}\nECE {report.ece:.3f}", fontsize=11, color=INK, pad=28)
        settings = report.settings.replace(", score", ",\nscore").replace(">=", "≥")
        place = {"transform": top.transAxes, "ha": "center", "va": "bottom"}
        top.text(0.5, 1.02, settings, fontsize=8, color=FAINT, **place)
    axes[0, 0].set_ylabel("precision (fraction right)", color=INK)
    axes[1, 0].set_ylabel("detections", color=INK)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, 2 * len(reports)),
        fontsize=8.5, frameon=False, labelcolor=INK,
    )  # fmt: skip
    return figure


def save_reliability_diagram(path: str | PathLike[str], reports: Mapping[str, CalibrationReport]) -> None:
    """Draw `reliability_figure` and save it; the ending of `path` chooses PNG, SVG or PDF.

    Args:
        path: the file to write.
        reports: name -> report of `calibration_report`, from left to right.

    Raises:
        ValueError: there are no reports, or matplotlib cannot write that kind of file.
        ImportError: matplotlib is missing; the message names the extra.
    """
    reliability_figure(reports).savefig(path, dpi=160, facecolor="white")


def _draw_precision(axes: Any, report: CalibrationReport) -> None:
    edges, precision, confidence = map(np.array, (report.bin_edges, report.bin_accuracies, report.bin_confidences))
    axes.bar(edges[:-1], precision, np.diff(edges), align="edge", color=BAR, edgecolor="white", label="precision")
    gap = confidence - precision
    for label, color, wrong in (("too confident", OVER, gap > 0), ("not confident enough", UNDER, gap < 0)):
        # nan draws nothing, and leaves the legend its patch
        axes.bar(
            edges[:-1], np.where(wrong, gap, np.nan), np.diff(edges), bottom=precision, align="edge",
            facecolor="none", edgecolor=color, linewidth=0.6, hatch="////", label=label,
        )  # fmt: skip
    axes.plot((0, 1), (0, 1), "--", color=INK, linewidth=1, label="perfectly calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    _lighten(axes)


def _draw_counts(axes: Any, report: CalibrationReport) -> None:
    edges = np.array(report.bin_edges)
    axes.bar(edges[:-1], report.bin_counts, np.diff(edges), align="edge", color="#c4c4c4", edgecolor="white")
    # linear below 1, so that a bin of one detection has a height and an empty one has none
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    # short numbers, since the last of one column stands next to the first of the next
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("confidence (score)", color=INK)
    _lighten(axes)


def _lighten(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
