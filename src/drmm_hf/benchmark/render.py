"""The page of the results, from the json files of the suites."""

import os
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .results import Figure, Row, Suite, Table, read_suite
from .timing import exponent, ratios, steady_clock

_HEAD = """# Speed

Made by `scripts/benchmark.py`; each section names its command and holds what that measured. Candidates take turns, each
round beginning with another, and every number is the median of the rounds with the lowest and the highest. "Wall" is
by the clock, "CPU" of the process, all threads together. Ratios are taken within a round; the one in a table divides by
the row that is marked with 1. It, curves and parts go by CPU time where one thread computes, which other work on the
machine changes little, and by the clock with several threads or on a GPU. All models have random weights, which the
time does not depend on.
"""


def render(folder: Path, page: Path) -> None:
    """Write the page of all suites in a folder, with a PNG beside their json files where they have curves.

    Raises:
        ValueError: the folder has no results, or a file is none; or matplotlib is missing.
    """
    files = sorted(folder.glob("*.json"), key=lambda file: (_ORDER.get(file.stem, len(_ORDER)), file.stem))
    if not files:
        raise ValueError(f"{folder}: has no results; name a suite to run")
    parts = [_HEAD]
    for file in files:
        name, environment, suite = read_suite(file)
        image = _draw(folder / f"{name}.png", suite.figures) if suite.figures else None
        parts.append("\n".join(_section(name, environment, suite, image, page)))
    page.write_text("\n".join(parts), encoding="utf-8")


_ORDER = {
    n: i for i, n in enumerate(("loss", "inference", "training", "postprocessing", "evaluation", "data", "scaling"))
}


def _section(name: str, environment: dict[str, Any], suite: Suite, image: Path | None, page: Path) -> Iterator[str]:
    yield f"## Suite `{name}`"
    yield ""
    yield f"    {command(name, environment)}"
    yield ""
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    threads = "" if environment["device"].startswith("cuda") else f", {environment['threads']} thread(s)"
    yield _wrapped(
        f"{environment['machine']} ({environment['cores']} cores), {environment['device']}{threads}, "
        f"{environment['rounds']} rounds, {environment['date']}; {versions}."
    )
    if environment["quick"]:
        yield "**Quick run: small sizes, only to see that everything works.**"
    clock = steady_clock(environment["device"], environment["threads"])
    for table in suite.tables:
        yield ""
        yield f"### {table.title}"
        yield _wrapped(table.note)
        yield ""
        yield from table_lines(table, clock)
        if table.comparisons:
            yield ""
            yield from _comparison_lines(table)
    if image is not None:
        yield ""
        yield f"![Curves of the suite {name}]({Path(os.path.relpath(image, page.parent)).as_posix()})"
        yield ""
        yield from _exponent_lines(suite.figures)
    yield ""


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def command(name: str, environment: dict[str, Any]) -> str:
    """The command that made a suite's results, without its folder."""
    parts = [f"python scripts/benchmark.py {name} --output DIR --rounds {environment['rounds']}"]
    cuda = environment["device"].startswith("cuda")
    parts.append(f"--device {environment['device']}" if cuda else f"--threads {environment['threads']}")
    parts += [f"--{flag}" for flag in ("quick", "compile") if environment[flag]]
    return " ".join(parts)


def table_lines(table: Table, clock: str) -> Iterator[str]:
    """A table in Markdown: times where rows have them, further columns, and the ratio to the base by `clock`."""
    rows = table.rows
    clocks = [
        name
        for name in ("wall", "cpu", "device")
        if any(row.timing is not None and getattr(row.timing, name) for row in rows.values())
    ]
    extra = list(dict.fromkeys(column for row in rows.values() for column in row.extra))
    titles = {"wall": "wall (ms)", "cpu": "CPU (ms)", "device": "on the GPU (ms)"}
    header = ["", *(titles[name] for name in clocks), *(["ratio"] if table.base else []), *extra]
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for name, row in rows.items():
        cells = [name, *(_times(getattr(row.timing, c) if row.timing else []) for c in clocks)]
        if table.base:
            cells.append(_ratio(row, rows[table.base], clock) if name != table.base else "1")
        cells += [_number(row.extra.get(column)) for column in extra]
        yield f"| {' | '.join(cells)} |"


def _comparison_lines(table: Table) -> Iterator[str]:
    yield "| ratio | by the clock | by CPU time |"
    yield "|---|---|---|"
    for what, over, under in table.comparisons:
        a, b = table.rows[over].timing, table.rows[under].timing
        if a is None or b is None:
            raise ValueError(f"{table.title}: {over} and {under} are compared, but have no times")
        yield f"| {what} | {_spread(*ratios(a.wall, b.wall))} | {_spread(*ratios(a.cpu, b.cpu))} |"


def _exponent_lines(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| curve | exponent |"
    yield "|---|---|"
    for figure in figures:
        for name, points in figure.curves.items():
            if len(points) > 1:
                xs, ys = zip(*points, strict=True)
                yield f"| {figure.title}: {name} | {exponent(list(xs), list(ys)):.2f} |"


def _times(seconds: list[float]) -> str:
    if not seconds:
        return ""
    middle, low, high = (_number(v * 1e3) for v in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle} ({low}, {high})"


def _ratio(row: Row, base: Row, clock: str) -> str:
    if row.timing is None or base.timing is None:
        return ""
    clock = clock if row.timing.wall else "cpu"  # what runs in a process of its own has only that
    return _number(ratios(getattr(row.timing, clock), getattr(base.timing, clock))[0], digits=2)


def _spread(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} ({low:.2f}, {high:.2f})"


def _number(value: Any, digits: int | None = None) -> str:
    """A number with about three digits."""
    if value is None:
        return ""
    if isinstance(value, (str, int)):
        return str(value)
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _draw(path: Path, figures: Sequence[Figure]) -> Path:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ValueError("the plots need matplotlib: pip install drmm-hf[plots]") from error
    canvas = Canvas(figsize=(6 * len(figures), 4.5), layout="constrained")
    for axes, figure in zip(canvas.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        for name, points in figure.curves.items():
            axes.loglog(*zip(*points, strict=True), marker="o", label=name)
        ticks = sorted({x for points in figure.curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" if tick >= 10 else f"{tick:.2f}" for tick in ticks])
        axes.minorticks_off()
        axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    canvas.savefig(path, dpi=110)
    return path
