"""Tables of Markdown, for the pages of `benchmark.py`, `reproduce.py` and `docs/tables.py`; needs no library."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

PAPER = "paper (COCO)"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line break at its end."""
    first, *others = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([first, "|" + "---|" * len(header), *others])


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; the mean alone of one value, or of a count, which has no spread.

    Three decimals for fractions, fewer for large numbers.
    """
    if not values:
        return "–"
    middle = mean(values)
    digits = 1 if abs(middle) >= 100 else 2 if abs(middle) >= 20 else 3
    text = f"{middle:.{digits}f}"
    return text if len(set(values)) == 1 else f"{text} ± {stdev(values):.{digits}f}"


def reproduced_table(content: dict[str, Any]) -> str:
    """The rows of a json of `reproduce.py`, with the paper's numbers in columns of their own where it has some."""
    rows, paper = content["rows"], content[PAPER]
    columns: list[tuple[str, bool]] = []
    for column in dict.fromkeys(column for values in rows.values() for column in values):
        columns.append((column, False))
        if any(column in paper.get(row, {}) for row in rows):
            columns.append((column, True))
    lines = []
    for row, values in rows.items():
        texts = [row]
        for column, from_paper in columns:
            known = [paper[row][column]] if column in paper.get(row, {}) else []
            texts.append(spread(known if from_paper else list(values.get(column, {}).get("seeds", {}).values())))
        lines.append(texts)
    names = [f"{column}, {PAPER}" if from_paper else column for column, from_paper in columns]
    return markdown_table(["", *names], lines)
