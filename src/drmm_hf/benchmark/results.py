"""What a suite returns and what its json holds: settings, tables of timings, and curves."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from .timing import Timing, steady_clock

PACKAGES = ("torch", "torchvision", "transformers", "timm")


@dataclass(frozen=True)
class Settings:
    """What holds for all suites of a run.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        threads: of torch's operators on a CPU.
        rounds: numbers for each candidate.
        quick: small sizes, to see that everything runs; the numbers mean little.
        compile: also measure compiled forms, which takes minutes.
    """

    device: str = "cpu"
    threads: int = 1
    rounds: int = 7
    quick: bool = False
    compile: bool = False

    def milliseconds(self, timing: Timing) -> float:
        """Median by the clock that this run's curves go by."""
        return statistics.median(getattr(timing, steady_clock(self.device, self.threads))) * 1e3


@dataclass
class Row:
    """One line of a table: a `timing`, further columns in `extra` by their headings, or both."""

    timing: Timing | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Table:
    """Candidates that took turns in one run.

    Attributes:
        title, note: heading and what was measured.
        rows: name to line.
        base: the row that the others are divided by; None if rows are not compared.
        comparisons: (what, numerator, denominator) of further rows.
    """

    title: str
    note: str
    rows: dict[str, Row]
    base: str | None = None
    comparisons: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass
class Figure:
    """Curves on logarithmic axes: `title`, `x_label`, `y_label`, and `curves`, name to points (x, y)."""

    title: str
    x_label: str
    y_label: str
    curves: dict[str, list[tuple[float, float]]]


@dataclass
class Suite:
    """All `tables` and `figures` of one suite."""

    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)


def rows_of(timings: Mapping[str, Timing], extra: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Row]:
    """Rows of timings, with further columns by name."""
    return {name: Row(timing, dict((extra or {}).get(name, {}))) for name, timing in timings.items()}


def environment(settings: Settings) -> dict[str, Any]:
    """Machine, versions and date of a run."""
    cuda = settings.device.startswith("cuda")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": torch.cuda.get_device_name(settings.device) if cuda else _processor_name(),
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **asdict(settings),
    }


def write_suite(path: Path, name: str, suite: Suite, settings: Settings) -> None:
    """Write a suite's json."""
    write_json(path, {"suite": name, "environment": environment(settings), **asdict(suite)})


def read_suite(path: Path) -> tuple[str, dict[str, Any], Suite]:
    """Name, environment and content of a json that `write_suite` wrote.

    Raises:
        ValueError: it is something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tables = [
            Table(**{**table, "rows": {name: _row(row) for name, row in table["rows"].items()}})
            for table in content["tables"]
        ]
        figures = [Figure(**figure) for figure in content["figures"]]
        return content["suite"], content["environment"], Suite(tables, figures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no result of scripts/benchmark.py ({error}); remove it or run the suite") from error


def _row(content: dict[str, Any]) -> Row:
    timing = content["timing"]
    return Row(None if timing is None else Timing(**timing), content["extra"])


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
