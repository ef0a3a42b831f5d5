"""Model cards: of the presets, from the data in `model_cards/data/`, and of a trained run, from its own files."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from ..configuration_drmm import DrmmConfig
from ..training.options import read_recipe
from .card_facts import condense_analysis
from .card_preset import CardData, limits, measured_data, paper_text, read_card_data, training_text, weights_text
from .card_recipe import public_name, settings_text, training_command
from .card_results import Measured, calibration_text, evaluation_results, measured_limits, results_text
from .card_text import (
    APACHE,
    bullets,
    cell_text,
    check_license,
    citation,
    description,
    general_limits,
    license_text,
    method_name,
    usage,
)
from .export_code import CONFIG, read_json

_SAME_MODEL = 0.005  # two measurements of one model on different processors

Sections = Sequence[tuple[str, str | None]]


def preset_card(path: str | Path, root: str | Path) -> ModelCard:
    """The card of a preset, or of the checkpoint in the repository that was trained from it.

    Args:
        path: its data, `model_cards/data/NAME.yaml`.
        root: of the repository, in which the data names result files.

    Raises:
        FileNotFoundError, ValueError: a file is missing or a field is wrong; the message names it.
    """
    data = read_card_data(path)
    config = DrmmConfig.from_preset(data.preset)
    measured = measured_data(data, Path(root))
    sections = [
        ("Weights", weights_text(data)),
        ("Use", usage(data.checkpoint or f"runs/{data.preset}" + ("" if data.released else "/model"), revision=False)),
        ("Training", training_text(data)),
        ("Measured results", results_text(measured) if measured else _NOT_MEASURED),
        ("Results that the paper reports", paper_text(data)),
        ("Calibration and thresholds", calibration_text(measured) if measured else _NO_CALIBRATION),
        ("Limits and biases", bullets(limits(data, config, measured))),
        ("License", license_text(_origin(data))),
        ("Citation", citation(config)),
    ]
    domain = f" for {measured.dataset}" if measured and data.checkpoint else ""
    title = f"{method_name(config)}{domain}: `{data.name}`"
    return _card(title, description(config, data.parameters), sections, config, data.name, measured)


def checkpoint_card(
    folder: str | Path,
    *,
    analysis: str | Path | None = None,
    data_name: str | None = None,
    repo_id: str | None = None,
    license_id: str = APACHE,
) -> ModelCard:
    """The card of a trained detector, from what training and analysis left: classes, recipe, command and results.

    Read are `metrics.json`, `recipe.yaml` and `analysis.json`, each from the checkpoint's folder or from the one above;
    what is not there, the card says is not known. Folders of the machine do not get into it.

    Args:
        folder: checkpoint, or the output folder of a training, whose `model/` is taken.
        analysis: analysis.json of `scripts/analyze.py`, if it lies elsewhere.
        data_name: name of the data set; the folder's name by default.
        repo_id: where it will be published.
        license_id: of the weights, as the Hub names it, such as `mit` or `cc-by-4.0`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: one of the files cannot be used, or a license of that form is none; the message names it.
    """
    check_license(license_id)
    checkpoint = checkpoint_folder(folder)
    content = read_json(checkpoint / CONFIG)
    if content.get("model_type") != DrmmConfig.model_type:
        raise ValueError(
            f"{checkpoint / CONFIG}: field model_type is not {DrmmConfig.model_type!r}; not a D-RMM detector"
        )
    config = DrmmConfig.from_dict(content)
    recipe_path = _beside(checkpoint, "recipe.yaml")
    recipe = read_recipe(str(recipe_path)) if recipe_path else None
    dataset = data_name or (
        public_name(recipe["data"]) if recipe and "data" in recipe else "the training data's domain"
    )
    measured = _measured_run(checkpoint, analysis, dataset, str((recipe or {}).get("eval_split", "val")))
    name = repo_id.rsplit("/", 1)[-1] if repo_id else _run_name(checkpoint)
    classes = ", ".join(map(cell_text, dict(sorted((config.id2label or {}).items())).values()))
    sections = [
        ("Use", usage(repo_id or "USER/NAME", revision=True)),
        ("Classes", classes),
        ("Training", _recipe_text(recipe, dataset)),
        ("Measured results", results_text(measured) if measured else _NOT_MEASURED),
        ("Calibration and thresholds", (calibration_text(measured) if measured else None) or _NO_CALIBRATION),
        ("Limits and biases", bullets([*(measured_limits(measured) if measured else ()), *general_limits(config)])),
        ("License", license_text("The data that it was trained on has a license of its own.", license_id)),
        ("Citation", citation(config)),
    ]
    title = f"{cell_text(name)}: {method_name(config)} for {cell_text(dataset)}"
    return _card(title, description(config, _parameters(checkpoint)), sections, config, name, measured, license_id)


def checkpoint_folder(folder: str | Path) -> Path:
    """The folder itself, or its `model/` if that is where the checkpoint lies; FileNotFoundError if there is none."""
    for place in (Path(folder), Path(folder) / "model"):
        if (place / CONFIG).is_file():
            return place
    raise FileNotFoundError(
        f"{folder}: no {CONFIG} in it or in its model/; give a checkpoint or the output of a training"
    )


def checkpoint_analysis(checkpoint: Path, analysis: str | Path | None) -> dict[str, Any] | None:
    """Extract of the analysis that was given, or of one that lies with the checkpoint."""
    path = Path(analysis) if analysis is not None else _beside(checkpoint, "analysis.json")
    if path is None:
        return None
    return condense_analysis(path, checkpoint)


def _card(
    title: str,
    text: str,
    sections: Sections,
    config: DrmmConfig,
    name: str,
    measured: Measured | None,
    license_id: str = APACHE,
) -> ModelCard:
    data = ModelCardData(
        language=None,
        license=license_id,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["drmm", "object-detection", config.decoder.replace("_", "-")]
        + ["calibration"] * (config.head == "mixture"),
        model_name=name,
        eval_results=(evaluation_results(measured) or None) if measured else None,
    )
    parts = [f"# {title}", text, *(f"## {heading}\n{body}" for heading, body in sections if body)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(parts) + "\n")


def _measured_run(checkpoint: Path, analysis: str | Path | None, dataset: str, split: str) -> Measured | None:
    metrics_path = _beside(checkpoint, "metrics.json")
    metrics = read_json(metrics_path) if metrics_path else {}
    facts = checkpoint_analysis(checkpoint, analysis)
    if not any(isinstance(metrics.get(name), float | int) for name in ("AP", "ECE")):
        if facts is None:
            return None
        split, metrics = facts["data"]["split"], {}
    if facts is not None and facts["data"]["split"] == split and "AP" in metrics:
        analyzed = facts["accuracy"]["metrics"]["AP"]
        if abs((analyzed or 0.0) - metrics["AP"]) > _SAME_MODEL:
            raise ValueError(
                f"{analysis or _beside(checkpoint, 'analysis.json')}: its AP is {analyzed}, but {metrics_path} has "
                f"{metrics['AP']}; run scripts/analyze.py with this checkpoint"
            )
    day = datetime.fromtimestamp(metrics_path.stat().st_mtime, UTC).date() if metrics_path else None
    command = "python scripts/analyze.py --checkpoint THIS_FOLDER --data FOLDER --output_dir report"
    how = f"Measured at the end of training (metrics.json of {day}). Measured again by\n\n    {command} --split {split}"
    return Measured(
        dataset,
        re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "data",
        split,
        {"this model": metrics},
        how if metrics else f"Measured by\n\n    {command} --split {split}",
        {facts["data"]["split"]: facts} if facts else {},
    )


def _recipe_text(recipe: Mapping[str, Any] | None, dataset: str) -> str:
    if recipe is None:
        return "The recipe is not known: there was no recipe.yaml with the checkpoint."
    step = recipe.get("batch_size", 2) * recipe.get("gradient_accumulation", 1)
    begin = f"fine-tuned from {cell_text(public_name(recipe['model']))}" if recipe.get("model") else (
        f"from all but the output layers of {cell_text(public_name(recipe['warm_start']))}"
        if recipe.get("warm_start")
        else "from ImageNet weights of the backbone"
        if recipe.get("backbone_weights")
        else "from random weights"
    )  # fmt: skip
    return (
        f"On {cell_text(dataset)}, {begin}: {settings_text(recipe, step)} Images a step are those of one process.\n\n"
        f"    {training_command(recipe)}"
    )


def _origin(data: CardData) -> str | None:
    if data.released is None:
        return data.data_license
    return "Converted weights keep the license of where they come from."


def _run_name(checkpoint: Path) -> str:
    place = checkpoint.resolve()
    return place.parent.name if place.name in ("model", "best") else place.name


def _beside(checkpoint: Path, name: str) -> Path | None:
    """The file in the checkpoint's folder, or in the training's output folder, of which it is `model/` or `best/`."""
    places = [checkpoint, *([checkpoint.resolve().parent] if checkpoint.resolve().name in ("model", "best") else [])]
    return next((place / name for place in places if (place / name).is_file()), None)


def _parameters(checkpoint: Path) -> float:
    """Millions of numbers in the weights, buffers included."""
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return total / 1e6


_NOT_MEASURED = (
    "None: nothing was measured for this card, and so it has no model-index. `scripts/evaluate.py` measures AP and ECE."
)
_NO_CALIBRATION = (
    "Not measured. `scripts/analyze.py` draws the reliability diagram, and gives the threshold to use for each class."
)
