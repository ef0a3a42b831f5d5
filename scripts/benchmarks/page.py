"""The page of the results, from the json files of the suites."""

import json
import math
import os
import platform
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drmm_hf.files import require
from markdown_table import markdown_table

from .measure import steady_clock

ORDER = ("loss", "inference", "training", "postprocessing", "evaluation", "data", "scaling")
_HEAD = """# Speed

Made by `scripts/benchmark.py`; each section names its command and holds what that measured. Candidates take turns, each
round beginning with another, and every number is the median of the rounds with the lowest and the highest. "Wall" is
by the clock, "CPU" of the process, all threads together. Ratios are taken within a round; the one in a table divides by
the row that is marked with 1. It, curves and parts go by CPU time where one thread computes, which other work on the
machine changes little, and by the clock with several threads or on a GPU. All models have random weights, which the
time does not depend on.
"""
_CLOCKS = {"wall": "wall (ms)", "cpu": "CPU (ms)", "device": "on the GPU (ms)"}


def render(folder: Path, page: Path) -> None:
    """Write the page of all suites in a folder, with a PNG beside their json files where they have curves.

    Raises:
        ValueError: the folder has no results, or a file is none.
        ImportError: matplotlib is missing.
    """
    order = {name: index for index, name in enumerate(ORDER)}
    files = sorted(folder.glob("*.json"), key=lambda file: (order.get(file.stem, len(order)), file.stem))
    if not files:
        raise ValueError(f"{folder}: has no results; name a suite to run")
    parts = [_HEAD]
    for file in files:
        try:
            suite = json.loads(file.read_text(encoding="utf-8"))
            image = draw(file.with_suffix(".png"), suite["figures"]) if suite["figures"] else None
            parts.append(_section(suite, image and Path(os.path.relpath(image, page.parent))))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no result of scripts/benchmark.py ({type(error).__name__}: {error})"
            raise ValueError(f"{file}: {reason}; remove it or run the suite") from error
    page.write_text("\n".join(parts), encoding="utf-8")


def processor_name() -> str:
    """Model of the processor as Linux gives it, or the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _section(suite: dict[str, Any], image: Path | None) -> str:
    name, environment = suite["suite"], suite["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    threads = "" if environment["device"].startswith("cuda") else f", {environment['threads']} thread(s)"
    made = (
        f"{environment['machine']} ({environment['cores']} cores), {environment['device']}{threads}, "
        f"{environment['rounds']} rounds, {environment['date']}; {versions}."
    )
    lines = [f"## Suite `{name}`\n", f"    {command(name, environment)}\n", _wrapped(made)]
    if environment["quick"]:
        lines.append("**Quick run: small sizes, only to see that everything works.**")
    clock = steady_clock(environment["device"], environment["threads"])
    for table in suite["tables"]:
        lines += [f"\n### {table['title']}", _wrapped(table["note"]) + "\n", suite_table(table, clock)]
        if table["comparisons"]:
            lines += ["", markdown_table(("ratio", "by the clock", "by CPU time"), _comparisons(table))]
    if image is not None:
        lines.append(f"\n![Curves of the suite {name}]({image.as_posix()})\n")
        lines.append(markdown_table(("curve", "exponent"), _exponents(suite["figures"])))
    return "\n".join([*lines, ""])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def command(name: str, environment: dict[str, Any]) -> str:
    """The command that made a suite's results, without its folder."""
    parts = [f"python scripts/benchmark.py {name} --output DIR --rounds {environment['rounds']}"]
    cuda = environment["device"].startswith("cuda")
    parts.append(f"--device {environment['device']}" if cuda else f"--threads {environment['threads']}")
    parts += [f"--{flag}" for flag in ("quick", "compile") if environment[flag]]
    return " ".join(parts)


def suite_table(table: dict[str, Any], clock: str) -> str:
    """A suite's table in Markdown: times where rows have them, the ratio to the base by `clock`, further columns."""
    rows, base = table["rows"], table["base"]
    clocks = [clock for clock in _CLOCKS if any((row["timing"] or {}).get(clock) for row in rows.values())]
    extra = list(dict.fromkeys(column for row in rows.values() for column in row["extra"]))
    header = ["", *(_CLOCKS[name] for name in clocks), *(["ratio"] if base else []), *extra]
    lines = []
    for name, row in rows.items():
        cells = [name, *(_times((row["timing"] or {}).get(c)) for c in clocks)]
        if base:
            cells.append("1" if name == base else _ratio(row["timing"], rows[base]["timing"], clock))
        lines.append([*cells, *(_number(row["extra"].get(column)) for column in extra)])
    return markdown_table(header, lines)


def _comparisons(table: dict[str, Any]) -> Iterator[list[str]]:
    for what, over, under in table["comparisons"]:
        a, b = (table["rows"][name]["timing"] for name in (over, under))
        spreads = [ratios(a[clock], b[clock]) for clock in ("wall", "cpu")]
        yield [what, *(f"{middle:.2f} ({low:.2f}, {high:.2f})" for middle, low, high in spreads)]


def _exponents(figures: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for figure in figures:
        for name, points in figure["curves"].items():
            if len(points) > 1:
                yield [f"{figure['title']}: {name}", f"{exponent(*zip(*points, strict=True)):.2f}"]


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios of the rounds."""
    values = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return statistics.median(values), min(values), max(values)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through (log size, log value): 1 is proportional, 2 is quadratic."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope


def _times(seconds: list[float] | None) -> str:
    if not seconds:
        return ""
    middle, low, high = (_number(v * 1e3) for v in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle} ({low}, {high})"


def _ratio(timing: Any, base: Any, clock: str) -> str:
    if timing is None or base is None:
        return ""
    clock = clock if timing["wall"] else "cpu"  # what runs in a process of its own has only that
    return f"{ratios(timing[clock], base[clock])[0]:,.2f}"


def _number(value: Any) -> str:
    """A number with about three digits."""
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value)
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def draw(path: Path, figures: Sequence[dict[str, Any]]) -> Path:
    """The curves on logarithmic axes, side by side, as a PNG."""
    canvas = require("matplotlib.figure", "plots").Figure(figsize=(6 * len(figures), 4.5), layout="constrained")
    for axes, figure in zip(canvas.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        for name, points in figure["curves"].items():
            axes.loglog(*zip(*points, strict=True), marker="o", label=name)
        ticks = sorted({x for points in figure["curves"].values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" if tick >= 10 else f"{tick:.2f}" for tick in ticks])
        axes.minorticks_off()
        axes.set(title=figure["title"], xlabel=figure["x_label"], ylabel=figure["y_label"])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    canvas.savefig(path, dpi=110)
    return path
