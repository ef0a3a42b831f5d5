"""The tables of the paper from tables.yaml: cells (one setting each), and runs of them."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from drmm_hf.data import DetectionDataset
from drmm_hf.evaluation import CalibrationReport
from drmm_hf.files import read_json

Rows = dict[str, dict[str, float]]
"""row -> column -> value; nan where there is none"""


@dataclass(frozen=True)
class Cell:
    """One setting that is trained; the head of tables.yaml says what the fields are."""

    name: str
    label: str
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    training: dict[str, Any] = field(default_factory=dict, hash=False)
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
class Table:
    """A table or a figure of the paper; the head of tables.yaml says what the fields are."""

    name: str
    title: str
    source: str
    measure: str
    all_cells: dict[str, tuple[Cell, ...]]
    paper: Rows = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draw: str | None = None
    unit: str = "AP"

    def cells(self, scale: str) -> tuple[Cell, ...]:
        """What to train at the scale "small" or "coco"."""
        return self.all_cells[scale]


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
        """A number of metrics.json, nan where it is None; ValueError if it is not there."""
        if name not in self.metrics:
            raise ValueError(f"{self.folder / 'metrics.json'}: no {name}; the run needs an evaluation split")
        value = self.metrics[name]
        return math.nan if value is None else float(value)

    def metrics_of(self, *names: str) -> dict[str, float]:
        """Several of them by name."""
        return {name: self.metric(name) for name in names}


@dataclass(frozen=True)
class Context:
    """What measuring needs besides a run: the evaluation split, "small" or "coco", images at once, and the reports of
    runs whose model had to run for them, by folder: a figure shows what its table has measured."""

    dataset: DetectionDataset
    scale: str
    batch_size: int = 8
    reports: dict[Path, dict[str, CalibrationReport]] = field(default_factory=dict)

    @property
    def truth(self) -> Any:
        """The annotations of the split, as `drmm_hf.evaluation` takes them."""
        return self.dataset.annotations_path


def read_tables() -> dict[str, Table]:
    """All tables by name, in the order of tables.yaml."""
    content = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
    settings, sentences = content["settings"], content["notes"]
    tables = {}
    for name, fields in content["tables"].items():
        cells, grids, paper = fields.pop("cells", None), fields.pop("grid", {}), fields.pop("paper", {})
        own = {}
        for scale in ("small", "coco"):
            if grids:
                own[scale] = _grid(**grids[scale])
                continue
            names = cells.get(scale, cells) if isinstance(cells, dict) else {cell: cell for cell in cells}
            own[scale] = tuple(Cell(setting, label, **settings[setting]) for label, setting in names.items())
        if grids:  # a list of the paper has one value for each number of proposals
            proposals = grids["coco"]["proposals"]
            paper = {
                row: {
                    f"{metric} K {count}": value
                    for metric, values in metrics.items()
                    for count, value in zip(proposals, values, strict=False)
                }
                for row, metrics in paper.items()
            }
        notes = tuple(sentences.get(note, note) for note in fields.pop("notes", ()))
        tables[name] = Table(name, all_cells=own, paper=paper, notes=notes, **fields)
    return tables


def _grid(field: str, name: str, label: str, values: list[float | None], proposals: list[int]) -> tuple[Cell, ...]:
    """Every value with every number of proposals; without a value, all of the proposals are kept."""
    cells = []
    for count in proposals:
        for value in values:
            text = f"{1 if value is None else value:g}"
            config = {field: value, "num_proposals": count}
            cells.append(Cell(f"{name}{text}-k{count}", f"{label} {text} | K {count}", config))
    return tuple(cells)


TABLES = read_tables()
