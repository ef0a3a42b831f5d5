"""The paper's tables and figures: train what they compare, measure it, write them (see --help)."""

import argparse
import dataclasses
import gc
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import drmm_hf  # noqa: F401  (before torch, whose waiting threads then sleep)

# isort: split
import torch
from accelerate import PartialState

from drmm_hf.cli import run_command
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.data.splits import VALIDATION_SHARE
from drmm_hf.files import make_output_folder, to_plain, write_json, write_text
from drmm_hf.training import TrainConfig, TrainingStopped, parse_config, train
from markdown_table import PAPER
from reproduction.measurements import measure_table
from reproduction.render import draw_table, machine, to_markdown
from reproduction.runs import FINISHED, UNFINISHED, PlannedRun, differing_settings, find_runs, plan_runs
from reproduction.tables import TABLES, Context, Run, Table

SCENES = "scenes"
_SCENE_SETTINGS: dict[str, Any] = {
    "num_train": 1000,
    "num_val": 150,
    "image_size": (288, 384),
    "min_object_size": 32.0,
    "max_object_size": 120.0,
    "mean_objects": 20.0,
}
_STOPPED = 1
_LEARNED = 0.05
_DEFAULT_PRESETS = {"small": "drmm-sparse-rcnn-tiny", "coco": "drmm-sparse-rcnn-r50"}
# What the cells and the options of this command decide.
_NOT_FOR_TRAINING = ("recipe", "preset", "model", "data", "output", "seed", "train-images", "resume", "eval-split")
_EPILOG = "Options of scripts/train.py may follow after --, such as: -- --vertical-flip 0.5 --mixed-precision bf16"


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the tables need, measure it and write them.

    Exit status 0; 2 with one line on stderr for bad input; 1 where a training could not go on, and the tables are
    without it; 130 where it was interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments = _parser().parse_args(words[:cut])
    arguments.training = words[cut + 1 :]
    arguments.command = shlex.join(["python", "scripts/reproduce.py", *words])
    return run_command(_run, arguments)


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(f"{table.name} ({table.title})" for table in TABLES.values())
    parser = argparse.ArgumentParser(
        description="Make tables and figures of the paper: train what they compare, measure it, write them.",
        epilog=f"{names}. {_EPILOG}",
    )
    parser.add_argument("tables", nargs="+", choices=TABLES, metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--data", required=True, help="COCO-format folder, data set of the Hub, or 'scenes': generated")
    parser.add_argument(
        "--output", default="runs/reproduce", help="folder of the tables, and of runs/ (default: %(default)s)"
    )
    parser.add_argument(
        "--scale", choices=("small", "coco"), default="small",
        help="small: tiny presets, recipe scratch-small (default); coco: the paper's presets and recipes",
    )  # fmt: skip
    parser.add_argument("--preset", help="D-RMM's preset; the baselines follow from it (default: that of the scale)")
    parser.add_argument("--schedule", choices=("1x", "3x"), default="3x", help="coco: 12 or 36 epochs (default: 3x)")
    parser.add_argument("--train-images", type=int, help="length of each training in images (default: the recipe's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="every run with each (default: 0)")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[], metavar="RATE",
        help="every run with each; the table has the best of each cell (default: the recipe's only)",
    )  # fmt: skip
    parser.add_argument("--runs", help="measure the finished runs in this folder; train nothing")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    tables = [TABLES[name] for name in dict.fromkeys(arguments.tables)]
    output = Path(arguments.output)
    data = str(output / SCENES) if arguments.data == SCENES else arguments.data
    base = base_settings(tables, arguments, data)
    stopped: dict[str, PlannedRun] = {}
    if arguments.runs:
        runs = find_runs(tables, base, scale=arguments.scale, folder=Path(arguments.runs))
    else:
        planned = plan_runs(
            tables,
            base,
            scale=arguments.scale,
            runs_folder=output / "runs",
            seeds=arguments.seeds,
            learning_rates=arguments.learning_rates,
        )
        if arguments.dry_run:
            print(list_runs(planned))
            return 0
    check_extras(tables, arguments.scale)
    # the first call decides which processes there are; the trainings join in
    PartialState(cpu=base[0].cpu, timeout=timedelta(seconds=base[0].timeout))
    if PartialState().is_main_process:
        make_output_folder(arguments.output)
        if arguments.data == SCENES:
            generate_scenes(data, **_SCENE_SETTINGS)
    PartialState().wait_for_everyone()
    if not arguments.runs:
        stopped = train_runs(planned, arguments.resume)
        runs = [run for one in planned if one.state == FINISHED for run in one.finished()]
    if PartialState().is_main_process:
        _write_tables(tables, runs, base[0], arguments, stopped)
    for line in stopped:
        print(f"error: {line}", file=sys.stderr)
    return _STOPPED if stopped else 0


def check_extras(tables: Sequence[Table], scale: str) -> None:
    """Find out before the hours of training that an optional library is missing; a ValueError names the extra."""
    matched = any(cell.baseline or "bipartite" in cell.name for table in tables for cell in table.cells(scale))
    drawn = any(table.draw is not None for table in tables)
    for library, extra, needed in (("matplotlib", "plots", drawn), ("scipy", "baselines", matched)):
        if needed and importlib.util.find_spec(library) is None:
            names = ", ".join(table.name for table in tables)
            raise ValueError(f"{names}: needs {library}: pip install 'drmm-hf[{extra}]'")


def base_settings(tables: Sequence[Table], arguments: argparse.Namespace, data: str) -> list[TrainConfig]:
    """The settings of every preset that the tables need, the chosen one first.

    Raises:
        ValueError: a training option that this command decides itself.
    """
    for word in arguments.training:
        name = word.split("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and name in _NOT_FOR_TRAINING:
            raise ValueError(f"{word} after --: this command sets it itself; see --help for its own options")
    chosen = arguments.preset or _DEFAULT_PRESETS[arguments.scale]
    presets = [cell.preset(chosen) for table in tables for cell in table.cells(arguments.scale)]
    configs = []
    for preset in dict.fromkeys((chosen, *presets)):
        recipe = "scratch-small" if arguments.scale == "small" else f"{preset}-{arguments.schedule}"
        words = ["--recipe", recipe, "--preset", preset, "--data", data]
        if arguments.train_images is not None:
            words += ["--train-images", str(arguments.train_images)]
            words += ["--schedule", "cosine"] if arguments.scale == "coco" else []
        configs.append(parse_config([*words, *arguments.training]))
    return configs


def list_runs(planned: Sequence[PlannedRun]) -> str:
    """The runs that a command needs, with state and length, and what is left to do."""
    lines = []
    for run in planned:
        changes = ", ".join(f"{name}={value}" for name, value in (run.config.config or {}).items())
        lines.append(
            f"{run.state:10}  {run.folder.name:36}  {run.config.preset:24}  {_length(run.config):>15}  {changes}"
        )
    left = [run for run in planned if run.state != FINISHED]
    total = f"{len(planned)} runs, {len(left)} to train"
    images = sum(run.config.train_images or 0 for run in left)
    epochs = sum(run.config.epochs or 0 for run in left)
    length = [f"{images:,} images"] * bool(images) + [f"{epochs:g} epochs"] * bool(epochs)
    return "\n".join([*lines, f"{total}: {' and '.join(length)}" if left else total])


def train_runs(planned: Sequence[PlannedRun], resume: bool) -> dict[str, PlannedRun]:
    """Train the runs that are not finished, one after the other.

    Returns:
        The runs that could not go on, by a line that says why.

    Raises:
        ValueError: a run was interrupted and `resume` is False; nothing has been trained then.
    """
    # every process decides alike, before any of them changes something
    left = [(run, run.state) for run in planned if run.state != FINISHED]
    interrupted = [run.folder for run, state in left if state == UNFINISHED]
    if interrupted and not resume:
        raise ValueError(f"{interrupted[0]}: was interrupted; add --resume to go on, or remove the folder")
    stopped = {}
    for number, (run, state) in enumerate(left, start=1):
        if PartialState().is_main_process:
            print(f"run {number} of {len(left)}: {run.folder.name} ({_length(run.config)})", flush=True)
        try:
            train(dataclasses.replace(run.config, resume=state == UNFINISHED))
        except TrainingStopped as error:
            stopped[f"{run.folder.name}: {error}"] = run
        else:
            if PartialState().is_main_process:
                shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return stopped


def _write_tables(
    tables: Sequence[Table],
    runs: Sequence[Run],
    base: TrainConfig,
    arguments: argparse.Namespace,
    stopped: Mapping[str, PlannedRun],
) -> None:
    dataset = load_detection_dataset(base.data, base.eval_split, validation_share=VALIDATION_SHARE)
    context = Context(dataset, arguments.scale, base.eval_batch_size)
    for table in tables:
        names = {cell.name for cell in table.cells(arguments.scale)}
        own = [run for run in runs if run.cell.name in names]
        missing = sorted(names - {run.cell.name for run in own})
        notes = [f"Not here, because there is no finished run: {', '.join(missing)}."] if missing else []
        notes += [f"Stopped: {line}" for line, run in stopped.items() if names & {cell.name for cell in run.cells}]
        if not own:
            print(f"{table.name}: no finished run; nothing written", flush=True)
            continue
        if differing := differing_settings(own):
            notes.append(f"Not the same in all runs, so they do not compare one to one: {', '.join(differing)}.")
        if all(run.metric("AP") < _LEARNED for run in own):
            notes.append(f"Every AP is below {_LEARNED:g}: the trainings were too short to compare anything.")
        print(f"measuring {table.name}: {len(own)} runs ...", flush=True)
        content = {
            "table": table.name,
            "title": table.title,
            "source": table.source,
            "command": arguments.command,
            "data": f"{arguments.data}, {len(dataset)} images of the split {base.eval_split!r}",
            "training": f"{_length(base) if not arguments.runs else 'as found in ' + arguments.runs}, {base.preset}",
            "machine": machine(),
            **measure_table(table, own, context),
            PAPER: table.paper,
            "notes": [*table.notes, *notes],
        }
        target = Path(arguments.output) / table.name
        text, written = to_markdown(content), [".md", ".json"]
        write_text(target.with_suffix(".md"), text)
        write_json(target.with_suffix(".json"), to_plain(content))
        if table.draw is not None:
            draw_table(table, content, own, context, target.with_suffix(".png"))
            written.append(".png")
        print(f"\n{text}\nwritten: {', '.join(str(target.with_suffix(ending)) for ending in written)}\n", flush=True)


def _length(config: TrainConfig) -> str:
    return f"{config.train_images:,} images" if config.train_images else f"{config.epochs:g} epochs"


if __name__ == "__main__":
    raise SystemExit(main())
