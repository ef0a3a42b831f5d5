"""What a table of the paper is made of: cells (one setting each), runs of them, and how a run is read off."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data import DetectionDataset
from ..evaluation import CalibrationReport

# row -> column -> value; nan where there is none
Rows = dict[str, dict[str, float]]
# row -> column -> seed -> value
Values = dict[str, dict[str, dict[int, float]]]


@dataclass(frozen=True)
class Cell:
    """One setting that is trained, with every seed.

    Attributes:
        name: of the folders of its runs. Tables that have the same cell under the same name share the runs.
        label: the row (or column) that it is in the table.
        config: fields of `DrmmConfig` over the preset's.
        training: fields of `TrainConfig` over the recipe's.
        baseline: the preset with the head of the baselines, `set_prediction`, instead of D-RMM's.
        decoder: "sparse-rcnn" or "adamixer" where the table says which; otherwise that of the chosen preset.
    """

    name: str
    label: str
    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    decoder: str | None = None

    def preset(self, chosen: str) -> str:
        """The preset of this cell where the table is made with the D-RMM preset `chosen`.

        Raises:
            ValueError: `chosen` is not one of D-RMM's.
        """
        for decoder in ("sparse-rcnn", "adamixer"):
            if chosen.startswith(f"drmm-{decoder}-"):
                size = chosen.removeprefix(f"drmm-{decoder}-")
                return ("" if self.baseline else "drmm-") + f"{self.decoder or decoder}-{size}"
        raise ValueError(f"--preset {chosen}: give one that starts with drmm-; the baselines follow from it")


@dataclass(frozen=True)
class Run:
    """A finished training of `cell` with this `seed`, `learning_rate` and `preset`.

    `folder` has metrics.json, results.json and model/, as `drmm_hf.training.train` leaves them.
    """

    cell: Cell
    seed: int
    learning_rate: float
    folder: Path
    preset: str

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of metrics.json."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """The detections of the evaluation split, in COCO's results format."""
        return read_json(self.folder / "results.json")

    def metric(self, name: str) -> float:
        """A number of metrics.json; nan where it is None.

        Raises:
            ValueError: metrics.json does not have it.
        """
        if name not in self.metrics:
            raise ValueError(f"{self.folder / 'metrics.json'}: no {name}; the run needs an evaluation split")
        value = self.metrics[name]
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Context:
    """What measuring needs besides a run.

    Attributes:
        dataset: the evaluation split.
        scale: "small" or "coco".
        batch_size: images at once.
        reports: of runs whose model had to run for them, by folder: a figure shows what its table has measured.
    """

    dataset: DetectionDataset
    scale: str
    batch_size: int = 8
    reports: dict[Path, dict[str, CalibrationReport]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A table with its values.

    Attributes:
        values: row -> column -> seed -> value.
        runs: those that were measured, each cell's at its best learning rate.
        learning_rates: cell -> learning rate -> seed -> AP, where a cell was trained with several.
    """

    values: Values
    runs: tuple[Run, ...]
    learning_rates: dict[str, dict[float, dict[int, float]]]


@dataclass(frozen=True)
class Table:
    """A table or a figure of the paper.

    Attributes:
        name: as the command line knows it.
        title: what it shows.
        source: where the paper has it.
        cells: scale ("small", "coco") -> what to train.
        measure: one run -> its rows; rows of several runs make up the table.
        paper: row -> column -> the paper's value on COCO, AP as a fraction of 1.
        notes: lines below the table.
        draw: writes the figure; None where the paper has none.
    """

    name: str
    title: str
    source: str
    cells: Callable[[str], tuple[Cell, ...]]
    measure: Callable[[Run, Context], Rows]
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draw: Callable[["Table", Measured, Context, Path], None] | None = None


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON; the message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the folder is not one of a finished training")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}; train this run again") from error
