"""A measured table as Markdown and as a picture."""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page import processor_name
from drmm_hf.evaluation import save_reliability_diagram
from drmm_hf.files import require
from markdown_table import PAPER, markdown_table, reproduced_table, spread

from .measurements import NMS_BEST, part_reports, reliability_reports, table_runs
from .tables import Context, Run, Table

_COLORS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f")
_INK = "#333333"


def to_markdown(content: dict[str, Any]) -> str:
    """The page of a table's json: mean and spread, the paper's numbers in columns of their own, how it was made."""
    rows, paper = content["rows"], content[PAPER]
    lines = [f"# {_heading(content['title'], content['source'])}", "", f"    {content['command']}", ""]
    lines += [f"- {name}: {content[name]}" for name in ("data", "training", "machine")]
    lines += ["", reproduced_table(content), "", _seed_line(Counter(run["cell"] for run in content["runs"]))]
    lines += [f"- {note}" for note in content["notes"]]
    if paper and not set(paper) & set(rows):
        lines += ["", f"The {PAPER} has other settings:", ""]
        lines += [
            f"- {row}: " + ", ".join(f"{column} {spread([value])}" for column, value in columns.items())
            for row, columns in paper.items()
        ]
    if content["learning_rates"]:
        lines += ["", *_learning_rates(content)]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Device and versions that the numbers were made with, and the day."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor_name()} (CPU)"
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers"))
    return f"{device}, {versions}, {date.today().isoformat()}"


def _heading(title: str, source: str) -> str:
    return f"{title[0].upper()}{title[1:]} ({source})"


def _learning_rates(content: dict[str, Any]) -> list[str]:
    used = {run["cell"]: f"{run['learning_rate']:g}" for run in content["runs"]}
    rates = sorted({rate for scores in content["learning_rates"].values() for rate in scores}, key=float)
    rows = []
    for cell, scores in content["learning_rates"].items():
        texts = [spread(list(scores.get(rate, {}).values())) for rate in rates]
        rows.append([cell, *(f"**{t}**" if rate == used[cell] else t for rate, t in zip(rates, texts, strict=True))])
    words = "AP by learning rate; the table has the best of each (bold), chosen on the same evaluation split:"
    return [words, "", markdown_table(["", *rates], rows)]


def _seed_line(counts: Counter[str]) -> str:
    if set(counts.values()) == {1}:
        return "- One seed each, so there is no spread: small differences mean nothing."
    if len(set(counts.values())) == 1:
        return f"- Mean ± standard deviation over {next(iter(counts.values()))} seeds."
    return "- Mean ± standard deviation over the seeds: " + ", ".join(f"{c} {n}" for c, n in counts.items()) + "."


def draw_table(table: Table, content: dict[str, Any], runs: Sequence[Run], context: Context, path: Path) -> None:
    """The figure of a table as a PNG: lines over its rows, or reliability diagrams of each cell at its first seed.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    if table.draw == "lines":
        _draw_lines(content["rows"], _heading(table.title, table.source), table.unit, path)
        return
    reports_of = part_reports if table.draw == "reliability_of_parts" else reliability_reports
    first: dict[str, str] = {}
    for run in content["runs"]:
        first.setdefault(run["cell"], run["folder"])
    shown = [run for run in table_runs(table, runs, context.scale) if first.get(run.cell.name) == str(run.folder)]
    save_reliability_diagram(path, {name: report for run in shown for name, report in reports_of(run, context).items()})


def _draw_lines(rows: dict[str, Any], title: str, unit: str, path: Path) -> None:
    """One line for each column of AP, or whatever else; the standard deviation over seeds is a band."""
    rows = {row: columns for row, columns in rows.items() if row != NMS_BEST}
    names = dict.fromkeys(name for columns in rows.values() for name in columns if not name.startswith("AP50"))
    figure = require("matplotlib.figure", "plots").Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(names):
        cells, color = [columns.get(name, {}) for columns in rows.values()], _COLORS[index % len(_COLORS)]
        mean = np.array([cell.get("mean") for cell in cells], dtype=float)  # None becomes nan
        band = np.array([cell.get("std") or 0.0 for cell in cells])
        axes.plot(range(len(rows)), mean, "o-", color=color, label=name, linewidth=1.8, markersize=5)
        axes.fill_between(range(len(rows)), mean - band, mean + band, color=color, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(rows)), rows)
    axes.set_ylabel(unit, color=_INK)
    axes.set_title(title, fontsize=10.5, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    figure.savefig(path, dpi=160, facecolor="white")
