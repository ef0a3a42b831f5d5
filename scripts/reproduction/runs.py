"""From tables to trainings: which runs a command needs, and which of them are there already."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drmm_hf import DrmmConfig
from drmm_hf.training import TrainConfig
from drmm_hf.training.checkpoints import NOT_THE_MODEL

from .tables import TABLES, Cell, Run, Table

FINISHED, UNFINISHED, OPEN = "finished", "unfinished", "to train"

# Fields of TrainConfig that change how a run is computed or kept, but not what is trained.
_FREE = {
    *("output", "resume", "num_workers", "save_every", "save_total_limit", "log_every"),
    *("report_to", "eval_every", "eval_every_epochs", "eval_batch_size", "cpu", "gradient_checkpointing", "compile"),
    "timeout",
}
_BACKBONE = ("model_type", "backbone", "out_indices")
# Objectives to which the settings of MCM do nothing.
_WITHOUT_MCM = ("nll", "nll_max", "nll_bipartite", "set_prediction")


@dataclass(frozen=True)
class PlannedRun:
    """A training that tables need, one seed of `cells`, which differ in name alone; `config` has all its settings."""

    cells: tuple[Cell, ...]
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return Path(self.config.output)

    @property
    def state(self) -> str:
        """`FINISHED` (its metrics are there), `UNFINISHED` (it has checkpoints to go on from) or `OPEN`."""
        if (self.folder / "metrics.json").is_file():
            return FINISHED
        return UNFINISHED if any((self.folder / "checkpoints").glob("step-*")) else OPEN

    def finished(self) -> list[Run]:
        """The run of every cell, once it is there."""
        config = self.config
        return [Run(cell, config.seed, config.learning_rate, self.folder, config.preset) for cell in self.cells]


def plan_runs(
    tables: Sequence[Table],
    base: Sequence[TrainConfig],
    *,
    scale: str,
    runs_folder: Path,
    seeds: Sequence[int],
    learning_rates: Sequence[float] = (),
) -> list[PlannedRun]:
    """The runs of some tables, each once under the name of the first cell of all tables that is the same training, so
    that one command finds the runs of another.

    Args:
        tables: what to make.
        base: the settings of a preset each, the chosen one first, without cell, seed and output.
        scale: "small" or "coco".
        runs_folder: the parent of the runs' folders.
        seeds, learning_rates: every cell is trained with each; without learning rates at the base's own.

    Raises:
        ValueError: a cell cannot be built, or a run that is there was made with other settings; the message names the
            run and the field.
    """
    wanted: dict[str, tuple[dict[str, Cell], TrainConfig]] = {}
    for cell, own in _cells(tables, base, scale):
        wanted.setdefault(_training_of(cell, own), ({}, own))[0].setdefault(cell.name, cell)
    first: dict[str, Cell] = {}
    for cell, own in _cells(TABLES.values(), base, scale):
        with contextlib.suppress(ValueError):  # a cell that was not asked for need not fit the user's options
            first.setdefault(_training_of(cell, own), cell)
    planned = []
    for training, (cells, own) in wanted.items():
        cell = first[training]
        for rate, seed in itertools.product(learning_rates or (own.learning_rate,), seeds):
            middle = "" if rate == own.learning_rate else f"-lr{rate:g}"
            config = dataclasses.replace(
                own,
                config={**(own.config or {}), **cell.config},
                learning_rate=rate,
                seed=seed,
                output=str(runs_folder / f"{cell.name}{middle}-seed{seed}"),
                **cell.training,
            )
            planned.append(PlannedRun(tuple(cells.values()), config))
            _check_same_settings(planned[-1])
    return planned


def find_runs(tables: Sequence[Table], base: Sequence[TrainConfig], *, scale: str, folder: Path) -> list[Run]:
    """Finished runs below a folder that are a cell of one of the tables: their models have its configuration.

    Args:
        tables, base, scale: as in `plan_runs`.
        folder: its sub-folders are runs, as `drmm_hf.training.train` leaves them.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no run of it belongs to the tables, or two are the same.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--runs {folder}: no such folder")
    cells = {cell.name: (cell, own.preset, _model_of(cell, own)) for cell, own in _cells(tables, base, scale)}
    found: dict[tuple[str, int, float], Run] = {}
    nearest: list[tuple[int, str]] = []
    needed = ("metrics.json", "recipe.yaml", "model/config.json")
    for path in sorted(path for path in folder.iterdir() if all((path / name).is_file() for name in needed)):
        fields, recipe = _model_fields(DrmmConfig.from_pretrained(str(path / "model"))), saved_settings(path)
        rate, seed = recipe.get("learning_rate", base[0].learning_rate), recipe.get("seed", 0)
        for cell, preset, wanted in cells.values():
            if differing := [name for name in wanted if fields.get(name) != wanted[name]]:
                name = differing[0]
                text = f"{path.name} has {name}={fields.get(name)} where {cell.name} has {wanted[name]}"
                nearest.append((len(differing), text))
                continue
            other = found.setdefault((cell.name, seed, rate), Run(cell, seed, rate, path, preset))
            if other.folder != path:
                raise ValueError(
                    f"--runs {folder}: {other.folder.name} and {path.name} are both {cell.name} with seed {seed} and "
                    f"learning rate {rate:g}; leave one of them there"
                )
    if not found:
        reason = f"the nearest: {min(nearest)[1]}" if nearest else f"no folder in it has {', '.join(needed)}"
        raise ValueError(f"--runs {folder}: no finished run of {', '.join(t.name for t in tables)}; {reason}")
    return list(found.values())


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Fields of the trainings that are not the same in all runs, besides seed, learning rate and model."""
    expected = {"seed", "learning_rate", "preset", "config", "data"} | _FREE
    recipes = [saved_settings(run.folder) for run in runs]
    names = sorted({name for recipe in recipes for name in recipe} - expected)
    return [name for name in names if len({json.dumps(recipe.get(name), default=str) for recipe in recipes}) > 1]


def saved_settings(folder: Path) -> Mapping[str, Any]:
    """The recipe.yaml of a run as it stands there (an older version may have had other fields); a ValueError that
    names the file where it holds no fields.
    """
    path = folder / "recipe.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no fields; train this run again")
    return content


def _cells(tables: Iterable[Table], base: Sequence[TrainConfig], scale: str) -> Iterator[tuple[Cell, TrainConfig]]:
    """The cells of some tables with the settings of their presets; those of presets without settings are left out."""
    settings = {config.preset: config for config in base}
    for cell in (cell for table in tables for cell in table.cells(scale)):
        if own := settings.get(cell.preset(base[0].preset)):
            yield cell, own


def _training_of(cell: Cell, own: TrainConfig) -> str:
    """What a cell trains, as a text: equal for cells that differ in name alone."""
    training = {name: value for name, value in cell.training.items() if getattr(own, name) != value}
    return json.dumps([own.preset, _model_of(cell, own), training], sort_keys=True)


def _model_of(cell: Cell, own: TrainConfig) -> dict[str, Any]:
    """Fields of the model that a cell trains with the settings of its preset; ValueError where there is none."""
    try:
        return _model_fields(DrmmConfig.from_preset(own.preset, **{**(own.config or {}), **cell.config}))
    except Exception as error:  # the strict configuration classes have an error of their own
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"cell {cell.name} ({own.preset}): {reason}") from error


def _model_fields(config: DrmmConfig) -> dict[str, Any]:
    """What tells one trained model from another, without the settings of MCM where the objective has none."""
    fields = json.loads(json.dumps(config.to_dict(), default=str))
    # building the backbone fills in the rest
    fields["backbone_config"] = {name: fields["backbone_config"].get(name) for name in _BACKBONE}
    left_out = ("_", "mcm_") if config.objective in _WITHOUT_MCM else "_"
    return {
        name: value for name, value in fields.items() if name not in NOT_THE_MODEL and not name.startswith(left_out)
    }


def _check_same_settings(run: PlannedRun) -> None:
    if not (run.folder / "recipe.yaml").is_file():
        if run.state == FINISHED:
            raise ValueError(f"{run.folder}: has metrics.json but no recipe.yaml, so nothing tells what it is of")
        return
    for name, saved in saved_settings(run.folder).items():
        wanted = getattr(run.config, name, saved)
        if name not in _FREE and _comparable(name, saved) != _comparable(name, wanted):
            raise ValueError(
                f"{run.folder}: this run has {name}={saved}, but this command asks for {wanted}; give the same "
                "options, choose another --output, or remove the folder"
            )


def _comparable(name: str, value: Any) -> Any:
    if name == "data" and value and Path(value).exists():
        return str(Path(value).resolve())
    return json.loads(json.dumps(value, default=list))
