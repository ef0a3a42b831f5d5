"""A measured table as Markdown, as plain values for JSON, and as a picture."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page import markdown_table, processor_name
from drmm_hf.evaluation import save_reliability_diagram

from .measurements import NMS_BEST, part_reports, reliability_reports
from .tables import Context, Measured, Table

_COLORS = ("#1f6f8b", "#d1495b", "#edae49", "#66a182", "#8d6a9f")
_INK = "#333333"
_PAPER = "paper (COCO)"


def to_markdown(table: Table, measured: Measured, header: Mapping[str, str], notes: Sequence[str]) -> str:
    """The table with mean and spread, the paper's numbers in columns of their own, and how it was made.

    Args:
        table, measured: what to show. A cell with several seeds is shown as mean ± sample standard deviation.
        header: what stands above the table, such as command, data and versions.
        notes: what to say below it besides the table's own notes.
    """
    columns = list(_columns(table, measured))
    lines = [f"# {table.title[0].upper()}{table.title[1:]} ({table.source})", ""]
    lines += [f"    {header['command']}", ""] if "command" in header else []
    lines += [f"- {name}: {text}" for name, text in header.items() if name != "command"]
    names = [f"{column}, {_PAPER}" if paper else column for column, paper in columns]
    rows = []
    for row, values in measured.values.items():
        texts = [row]
        for column, paper in columns:
            known = table.paper.get(row, {}).get(column)
            seeds = list(values.get(column, {}).values())
            texts.append(("–" if known is None else _number(known)) if paper else _mean_and_spread(seeds))
        rows.append(texts)
    lines += ["", *markdown_table(("", *names), rows)]
    lines += ["", *_seed_line(measured)]
    lines += [f"- {note}" for note in (*table.notes, *notes)]
    missing = {row: cells for row, cells in table.paper.items() if row not in measured.values}
    if missing and not any(row in measured.values for row in table.paper):
        lines += ["", f"The {_PAPER} has other settings:", ""]
        lines += [
            f"- {row}: " + ", ".join(f"{c} {_number(v)}" for c, v in cells.items()) for row, cells in missing.items()
        ]
    if measured.learning_rates:
        lines += ["", *_learning_rates(measured)]
    return "\n".join(lines) + "\n"


def to_plain_values(
    table: Table, measured: Measured, header: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
    """Everything that `to_markdown` shows, with the value of every seed, as plain values for JSON.

    `table`, `measured`, `header` and `notes` are those given to `to_markdown`.
    """
    rows = {
        row: {
            column: {
                "mean": float(np.mean(list(seeds.values()))) if seeds else None,
                "std": float(np.std(list(seeds.values()), ddof=1)) if len(seeds) > 1 else None,
                "seeds": {str(seed): value for seed, value in seeds.items()},
            }
            for column, seeds in columns.items()
        }
        for row, columns in measured.values.items()
    }
    rates = {
        cell: {f"{rate:g}": {str(seed): ap for seed, ap in seeds.items()} for rate, seeds in rates.items()}
        for cell, rates in measured.learning_rates.items()
    }
    runs = [
        {"cell": run.cell.name, "seed": run.seed, "learning_rate": run.learning_rate, "folder": str(run.folder)}
        for run in measured.runs
    ]
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        **header,
        "rows": rows,
        _PAPER: {row: dict(columns) for row, columns in table.paper.items()},
        "learning_rates": rates,
        "runs": runs,
        "notes": [*table.notes, *notes],
    }


def machine() -> str:
    """Device and versions that the numbers were made with, and the day."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor_name()} (CPU)"
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers"))
    return f"{device}, {versions}, {date.today().isoformat()}"


def _columns(table: Table, measured: Measured) -> Iterator[tuple[str, bool]]:
    """The measured columns, each followed by the paper's where the paper has a value for one of the rows."""
    for column in dict.fromkeys(column for columns in measured.values.values() for column in columns):
        yield column, False
        if any(column in table.paper.get(row, {}) for row in measured.values):
            yield column, True


def _learning_rates(measured: Measured) -> Iterator[str]:
    rates = sorted({rate for scores in measured.learning_rates.values() for rate in scores})
    yield "AP by learning rate; the table has the best of each (bold), chosen on the same evaluation split:"
    yield ""
    used = {run.cell.name: run.learning_rate for run in measured.runs}
    rows = []
    for cell, scores in measured.learning_rates.items():
        texts = [_mean_and_spread(list(scores.get(rate, {}).values())) for rate in rates]
        bold = [f"**{text}**" if rate == used[cell] else text for rate, text in zip(rates, texts, strict=True)]
        rows.append([cell, *bold])
    yield from markdown_table(("", *(f"{rate:g}" for rate in rates)), rows)


def _seed_line(measured: Measured) -> list[str]:
    counts: dict[str, int] = {}
    for run in measured.runs:
        counts[run.cell.name] = counts.get(run.cell.name, 0) + 1
    if set(counts.values()) == {1}:
        return ["- One seed each, so there is no spread: small differences mean nothing."]
    if len(set(counts.values())) == 1:
        return [f"- Mean ± standard deviation over {next(iter(counts.values()))} seeds."]
    return ["- Mean ± standard deviation over the seeds: " + ", ".join(f"{c} {n}" for c, n in counts.items()) + "."]


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = float(np.mean(values))
    if len(set(values)) == 1:  # a count, such as the parameters, has no spread
        return _number(mean)
    return f"{_number(mean)} ± {_number(float(np.std(values, ddof=1)), mean)}"


def _number(value: float, like: float | None = None) -> str:
    """Three decimals for fractions, fewer for large numbers; as many as `like` has."""
    size = abs(value if like is None else like)
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 20 else f"{value:.3f}"


def draw_table(table: Table, measured: Measured, context: Context, path: Path) -> None:
    """The figure of a table as a PNG: lines over its rows, or reliability diagrams of each cell at its first seed.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    if table.draw == "lines":
        _draw_lines(table, measured, path)
        return
    reports_of = part_reports if table.draw == "reliability_of_parts" else reliability_reports
    first = {run.cell.name: run for run in reversed(measured.runs)}
    runs = [run for run in measured.runs if run is first[run.cell.name]]
    save_reliability_diagram(path, {name: report for run in runs for name, report in reports_of(run, context).items()})


def _draw_lines(table: Table, measured: Measured, path: Path) -> None:
    """One line for each column of AP, or whatever else; the standard deviation over seeds is a band."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'drmm-hf[plots]'") from error
    rows = [row for row in measured.values if row != NMS_BEST]
    columns = list(dict.fromkeys(c for row in rows for c in measured.values[row] if not c.startswith("AP50")))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for column, color in zip(columns, _COLORS * len(columns), strict=False):
        seeds = [list(measured.values[row].get(column, {}).values()) or [np.nan] for row in rows]
        mean = np.array([np.mean(values) for values in seeds])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in seeds])
        axes.plot(range(len(rows)), mean, "o-", color=color, label=column, linewidth=1.8, markersize=5)
        axes.fill_between(range(len(rows)), mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(rows)), rows)
    axes.set_ylabel(table.unit, color=_INK)
    axes.set_title(f"{table.title[0].upper()}{table.title[1:]} ({table.source})", fontsize=10.5, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    figure.savefig(path, dpi=160, facecolor="white")
