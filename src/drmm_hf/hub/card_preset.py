"""Data of a preset's card, `model_cards/data/NAME.yaml`, and the sections that only such cards have."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ..configuration_drmm import DrmmConfig
from ..presets import preset_fields
from ..training.options import read_recipe
from .card_facts import condense_analysis
from .card_recipe import settings_text
from .card_results import Measured, measured_limits
from .card_text import PAPER_URL, general_limits, table
from .export_code import read_json

CARDS = "model_cards"
_PAPER_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "FPS")
_MEASURED = (
    "train", "analyze", "dataset", "dataset_type", "split", "runs", "analyses", "date", "machine", "versions", "page",
)  # fmt: skip
_PROCESSES = 8  # of the recipes for COCO


@dataclass(frozen=True)
class CardData:
    """Fields of the file.

    Attributes:
        preset: name of the preset.
        parameters: in millions, as `scripts/presets.py` counts them.
        recipe: name of the recipe that trains it; it may be left out where `measured` has the command.
        paper: rows of the paper's tables, in the paper's units (percent): `table`, `data` and numbers.
        released: `where` and `url` of weights that others published.
        note: a sentence on the paper's numbers.
        measured: dataset, dataset_type, split, runs, train, analyze, date, machine, versions, page, analyses.
        checkpoint: folder of the repository with the weights that were measured; the card goes there.
        storage: a sentence on how those weights are stored.
        data_license: a sentence on the license of the data that it was trained on.
        limits: sentences on the data.
    """

    preset: str
    parameters: float
    recipe: str | None = None
    paper: Sequence[Mapping[str, Any]] = ()
    released: Mapping[str, str] | None = None
    note: str | None = None
    measured: Mapping[str, Any] | None = None
    checkpoint: str | None = None
    storage: str | None = None
    data_license: str | None = None
    limits: Sequence[str] = ()
    folder: Path = Path()

    @property
    def name(self) -> str:
        """What the model is called: by its checkpoint if there is one, else by its preset."""
        return PurePosixPath(self.checkpoint).name if self.checkpoint else self.preset

    @property
    def card_folder(self) -> PurePosixPath:
        """Where in the repository its card lies."""
        return PurePosixPath(self.checkpoint or f"{CARDS}/{self.preset}")


def read_card_data(path: str | Path) -> CardData:
    """Read and check the file; FileNotFoundError or ValueError that names it and the field."""
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{place}: no such file")
    try:
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("holds no fields; write lines such as `preset: drmm-adamixer-tiny`")
        known = {spec.name for spec in dataclasses.fields(CardData)} - {"folder"}
        for name in content:
            if name not in known:
                raise ValueError(f"unknown field {name!r}; known are {', '.join(sorted(known))}")
        data = CardData(**content, folder=place.parent)
        preset_fields(data.preset)
        for row in data.paper:
            if unknown := set(row) - {"table", "data", *_PAPER_COLUMNS}:
                raise ValueError(f"field paper: unknown column {sorted(unknown)[0]!r}")
        if data.recipe is None and data.measured is None:
            raise ValueError("give recipe, measured or both")
        if data.checkpoint is not None and data.measured is None:
            raise ValueError("field checkpoint: give measured, too")
        for name in _MEASURED:
            if data.measured is not None and name not in data.measured:
                raise ValueError(f"field measured has no {name!r}")
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{place}: {' '.join(str(error).split())}") from error
    return data


def measured_data(data: CardData, root: Path) -> Measured | None:
    """The measurements that the file names; the numbers themselves are in the result files of the repository."""
    entry = data.measured
    if entry is None:
        return None
    try:
        runs = {f"seed {run['seed']}": run for run in (read_json(root / name) for name in entry["runs"])}
        facts = {split: condense_analysis(data.folder / name) for split, name in entry["analyses"].items()}
        others = ", ".join(split for split in facts if split != entry["split"])
        how = (
            f"Weights of seed {next(iter(runs.values()))['seed']}, with the training command above and then\n\n"
            f"    {entry['analyze']}\n\n"
            + (
                f"and the same with `--split {others}`, while settings and thresholds were chosen on {entry['split']}. "
                if others
                else ""
            )
            + f"{entry['date']}, {entry['machine']}, {entry['versions']}; `{entry['page']}` in the repository of "
            f"drmm-hf has "
            "the details and the raw numbers."
        )
        return Measured(entry["dataset"], entry["dataset_type"], entry["split"], runs, how, facts)
    except KeyError as error:
        raise ValueError(f"{data.folder / data.preset}.yaml: field measured has no {error}") from error


def weights_text(data: CardData) -> str:
    """Where weights are to be had."""
    if data.checkpoint is not None:
        return f"`model.safetensors` beside this card, `{data.checkpoint}` in the repository of drmm-hf. {data.storage}"
    text = "**No weights are published here.** "
    if data.released is None:
        how = (
            "train it with the command below"
            if data.measured
            else "none were released by the authors; train it as below"
        )
        return f"{text}{how[0].upper()}{how[1:]}."
    url = data.released["url"]
    command = f"    python scripts/convert.py FILE.pth runs/{data.preset} --preset {data.preset}"
    return (
        f"{text}Convert a checkpoint of the original code ([{data.released['where']}]({url})), or train it as "
        f"below.\n\n"
        f"{command}\n\nA `.pth` file is a pickle: load only files of a source that you trust. (The converter reads "
        f"tensors "
        "alone, and refuses anything else.)"
    )


def training_text(data: CardData) -> str:
    """Recipe and command."""
    if data.measured is not None:
        command = data.measured["train"]
        if data.recipe is None:
            return f"From random weights; the settings are those of the recipe `scratch-small`.\n\n    {command}"
        recipe = read_recipe(data.recipe)
        return (
            f"On {data.measured['dataset']} from random weights, recipe `{data.recipe}`: "
            f"{settings_text(recipe, recipe.get('batch_size', 2))}\n\n    {command}"
        )
    assert data.recipe is not None
    recipe = read_recipe(data.recipe)
    step = recipe.get("batch_size", 2) * recipe.get("gradient_accumulation", 1) * _PROCESSES
    preset = "" if recipe["preset"] == data.preset else f" --preset {data.preset}"
    return f"""On COCO train2017 from ImageNet weights of the backbone, recipe `{data.recipe}`, written for 8 GPUs:
{settings_text(recipe, step)} It was not run at full length for this card.

    accelerate launch scripts/train.py --recipe {data.recipe}{preset} --data coco --output runs/{data.preset}"""


def paper_text(data: CardData) -> str | None:
    """The paper's numbers, marked as such."""
    if not data.paper:
        return None
    columns = [name for name in _PAPER_COLUMNS if any(name in row for row in data.paper)]
    rows = [[row["table"], row["data"], *(row.get(name) for name in columns)] for row in data.paper]
    note = f" {data.note}" if data.note else ""
    return (
        f"**Reported by the paper** ([arXiv 2205.08714]({PAPER_URL})), for its own training and its own code. They "
        f"were not "
        f"reproduced here and are no results of drmm-hf.{note}\n\n{table(('reported in', 'data', *columns), rows)}\n\n"
        "AP in percent; FPS on one NVIDIA TITAN RTX, batch of one, without loading of the data."
    )


def limits(data: CardData, config: DrmmConfig, measured: Measured | None) -> list[str]:
    """What the model cannot do, and what its data makes of it."""
    lines = list(data.limits)
    if measured is not None:
        lines += measured_limits(measured)
    else:
        lines += [
            "COCO's 80 classes are everyday things in pictures of Flickr, taken where its users live; what is rare "
            "there "
            "is found less well.",
            "Small objects are found much less often than large ones.",
            "Real-time detectors (RT-DETR, D-FINE, RF-DETR) are faster and reach a higher AP.",
        ]
    return lines + general_limits(config)
