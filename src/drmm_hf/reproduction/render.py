"""A measured table as Markdown and as plain values for JSON."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .cells import Measured, Table

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
    lines += ["", "| " + " | ".join(("", *names)) + " |", "|" + "---|" * (len(names) + 1)]
    for row, values in measured.values.items():
        texts = []
        for column, paper in columns:
            known = table.paper.get(row, {}).get(column)
            seeds = list(values.get(column, {}).values())
            texts.append(("–" if known is None else _number(known)) if paper else _mean_and_spread(seeds))
        lines.append(f"| {row} | " + " | ".join(texts) + " |")
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()} (CPU)"
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "transformers"))
    return f"{device}, {versions}, {date.today().isoformat()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
    yield "| | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|" + "---|" * (len(rates) + 1)
    used = {run.cell.name: run.learning_rate for run in measured.runs}
    for cell, scores in measured.learning_rates.items():
        texts = [_mean_and_spread(list(scores.get(rate, {}).values())) for rate in rates]
        bold = [f"**{text}**" if rate == used[cell] else text for rate, text in zip(rates, texts, strict=True)]
        yield f"| {cell} | " + " | ".join(bold) + " |"


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
