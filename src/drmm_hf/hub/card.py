"""Model cards: of the presets, from `model_cards/data/NAME.yaml`, and of trained detectors, from their own files.

The text stands in the template `card.md.jinja`; here are the facts that fill it.
"""

import dataclasses
import html
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..configuration_drmm import DrmmConfig
from ..evaluation import save_reliability_diagram
from ..files import read_json
from ..modeling_drmm import DrmmForObjectDetection
from ..training import TrainConfig, parse_config
from .measured import METRICS, Measured, condense_analysis, reliability, worst_bin

CARD, DIAGRAM, APACHE = "README.md", "images/reliability.png", "apache-2.0"
_PAPER_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "FPS")
_PROCESSES = 8  # of the recipes for COCO
_SAME_MODEL = 0.005  # AP of two measurements of one model on different processors
_FEW_OBJECTS = 100
# Settings without effect on the weights, or of one call only.
_NOT_SHOWN = {"resume", "log_every", "report_to", "save_every", "save_total_limit", "num_workers", "timeout", "output"}


@dataclass(frozen=True)
class MeasuredData:
    """Field `measured` of `CardData`: `train` and `analyze` are the options of the two commands, `runs` and `analyses`
    (split -> file) the files with the numbers, `page` the document about them.
    """

    dataset: str
    dataset_type: str
    split: str
    runs: Sequence[str]
    analyses: Mapping[str, str]
    train: str
    analyze: str
    date: str
    machine: str
    versions: str
    page: str


@dataclass(frozen=True)
class CardData:
    """Fields of `model_cards/data/NAME.yaml`.

    Attributes:
        preset: name of the preset.
        recipe: name of the recipe that trains it; it may be left out where `measured` has the options.
        paper: rows of the paper's tables, in the paper's units (percent): `table`, `data` and numbers.
        released: `where` and `url` of weights that others published.
        note: a sentence on the paper's numbers.
        measured: what was measured here, None if nothing was.
        checkpoint: folder of the repository with the weights that were measured; the card goes there.
        storage: a sentence on how those weights are stored.
        data_license: a sentence on the license of the data that it was trained on.
        limits: sentences on the data.
    """

    preset: str
    recipe: str | None = None
    paper: Sequence[Mapping[str, Any]] = ()
    released: Mapping[str, str] | None = None
    note: str | None = None
    measured: MeasuredData | None = None
    checkpoint: str | None = None
    storage: str | None = None
    data_license: str | None = None
    limits: Sequence[str] = ()

    @property
    def folder(self) -> PurePosixPath:
        """Where in the repository its card lies; the last part is the model's name."""
        return PurePosixPath(self.checkpoint or f"model_cards/{self.preset}")


def preset_card(path: str | Path, root: str | Path) -> ModelCard:
    """The card of a preset, or of the checkpoint in the repository that was trained from it.

    Args:
        path: its data, `model_cards/data/NAME.yaml`.
        root: of the repository, in which the data names result files.

    Raises:
        FileNotFoundError, ValueError: a file is missing or a field is wrong; the message names it.
    """
    data = read_card_data(path)
    if data.measured is None:
        command, options = "accelerate launch scripts/train.py", f"--recipe {data.recipe} --data coco"
        options += f" --output runs/{data.preset}"
    else:
        command, options = "drmm train", data.measured.train
    training = parse_config(shlex.split(options))
    if training.preset != data.preset:
        options += f" --preset {data.preset}"
    return _render(
        data.folder.name,
        DrmmConfig.from_preset(data.preset),
        _measured_preset(data, Path(path), Path(root)),
        training,
        data=data,
        domain=data.measured.dataset if data.measured and data.checkpoint else None,
        trained_on=data.measured.dataset if data.measured else "COCO train2017",
        processes=1 if data.measured else _PROCESSES,
        command=f"{command} {options}",
        model=data.checkpoint or f"runs/{data.preset}" + ("" if data.released else "/model"),
    )


def checkpoint_card(
    folder: str | Path,
    *,
    analysis: str | Path | None = None,
    data_name: str | None = None,
    repo_id: str | None = None,
    license_id: str = APACHE,
    converted_from: str | None = None,
) -> ModelCard:
    """The card of a trained detector, from what training and analysis left: classes, recipe and results.

    Read are `metrics.json`, `recipe.yaml` and `analysis.json`, each from the checkpoint's folder or from the one above;
    what is not there, the card says is not known. Folders of the machine do not get into it.

    Args:
        folder: checkpoint, or the output folder of a training, whose `model/` is taken.
        analysis: analysis.json of `drmm analyze`, if it lies elsewhere.
        data_name: name of the data set; the folder's name by default.
        repo_id: where it will be published.
        license_id: of the weights, as the Hub names it, such as `mit` or `cc-by-4.0`.
        converted_from: words on the released file, where the weights are not trained but converted.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: one of the files cannot be used, or a license of that form is none; the message names it.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
        raise ValueError(f"license {license_id!r}: give the Hub's name of it, such as apache-2.0, mit or cc-by-4.0")
    checkpoint = _checkpoint_folder(folder)
    content = read_json(checkpoint / "config.json")
    if not isinstance(content, dict) or content.get("model_type") != DrmmConfig.model_type:
        raise ValueError(f"{checkpoint / 'config.json'}: field model_type is not 'drmm'; not a D-RMM detector")
    recipe = _beside(checkpoint, "recipe.yaml")
    training = parse_config(["--recipe", str(recipe)]) if recipe else None
    dataset = data_name or (_public_name(training.data) if training else None)
    place = checkpoint.resolve()
    name = repo_id.rsplit("/", 1)[-1] if repo_id else (place.parent if place.name in ("model", "best") else place).name
    return _render(
        re.sub(r"[^\w.-]+", "-", name),
        DrmmConfig.from_dict(content),
        _measured_run(checkpoint, analysis, dataset or "its data", training.eval_split if training else "val"),
        training,
        license_id,
        data=None,
        domain=dataset,
        trained_on=dataset,
        processes=1,
        recipe=_public_recipe(training) if training else None,
        model=repo_id or "USER/NAME",
        converted_from=converted_from,
    )


def write_preset_cards(root: str | Path, output: str | Path) -> list[Path]:
    """Write the card, and its diagram, of every `model_cards/data/NAME.yaml` of a repository.

    It goes to `model_cards/NAME/README.md`, or into the folder of the checkpoint that the data names.

    Args:
        root: of the repository.
        output: the same, or another folder to write them to.

    Raises:
        FileNotFoundError, ValueError: the data of a card is missing or wrong.
    """
    sources = sorted((Path(root) / "model_cards" / "data").glob("*.yaml"))
    if not sources:
        raise FileNotFoundError(f"{Path(root) / 'model_cards' / 'data'}: no data of cards; run this in the repository")
    written = []
    for source in sources:
        data = read_card_data(source)
        measured = _measured_preset(data, source, Path(root))
        facts = measured.facts.get(measured.split) if measured else None
        written.append(_write(preset_card(source, root), Path(output) / data.folder, data.folder.name, facts))
    return written


def write_checkpoint_card(
    folder: str | Path, *, analysis: str | Path | None = None, overwrite: bool = False, **options: Any
) -> Path:
    """Write README.md, and images/reliability.png if there is an analysis, into the folder of a checkpoint.

    Args:
        folder, analysis, options: see `checkpoint_card`.
        overwrite: replace a README.md that is there.

    Raises:
        FileExistsError: there is one.
        FileNotFoundError, ValueError: see `checkpoint_card`.
    """
    checkpoint = _checkpoint_folder(folder)
    if (checkpoint / CARD).exists() and not overwrite:
        raise FileExistsError(f"{checkpoint / CARD} is there already; --overwrite replaces it")
    card = checkpoint_card(folder, analysis=analysis, **options)
    name = options.get("repo_id") or Path(folder).resolve().name
    return _write(card, checkpoint, name, _analysis(checkpoint, analysis))


def read_card_data(path: str | Path) -> CardData:
    """Read and check the file; FileNotFoundError or ValueError that names it and the field."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if content.get("measured"):
            content["measured"] = MeasuredData(**content["measured"])
        data = CardData(**content)
        DrmmConfig.from_preset(data.preset)
        for row in data.paper:
            if unknown := sorted(set(row) - {"table", "data", *_PAPER_METRICS}):
                raise ValueError(f"field paper: unknown column {unknown[0]!r}")
        if data.measured is None and (data.recipe is None or data.checkpoint is not None):
            raise ValueError("give the field measured, or recipe and no checkpoint")
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return data


def _render(
    name: str,
    config: DrmmConfig,
    measured: Measured | None,
    training: TrainConfig | None,
    license_id: str = APACHE,
    **context: Any,
) -> ModelCard:
    facts = measured.facts.get(measured.split) if measured else None
    decoder = {"sparse_rcnn": "Sparse R-CNN", "adamixer": "AdaMixer"}[config.decoder]
    tags = ["drmm", "object-detection", config.decoder.replace("_", "-")]
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in DrmmForObjectDetection(config).parameters())
    header = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=tags + ["calibration"] * (config.head == "mixture"),
        model_name=name,
        eval_results=(measured.model_index or None) if measured else None,
    )
    return ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        plain=_plain,
        public_name=_public_name,
        name=name,
        method=decoder if config.head == "set_prediction" else f"D-RMM on {decoder}",
        config=config,
        backbone=getattr(config.backbone_config, "backbone", None),
        parameters=parameters / 1e6,
        classes=[_plain(label) for _, label in sorted((config.id2label or {}).items())],
        training=training,
        measured=measured,
        facts=facts,
        worst_bin=worst_bin(facts) if facts else None,
        metrics=list(METRICS),
        paper_metrics=list(_PAPER_METRICS),
        paper_url="https://arxiv.org/abs/2205.08714",
        diagram=DIAGRAM,
        few_objects=_FEW_OBJECTS,
        **context,
    )


def _write(card: ModelCard, folder: Path, name: str, facts: Mapping[str, Any] | None) -> Path:
    if facts is not None:
        (folder / DIAGRAM).parent.mkdir(parents=True, exist_ok=True)
        save_reliability_diagram(folder / DIAGRAM, {name: reliability(facts)})
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder / CARD)
    return folder / CARD


def _measured_preset(data: CardData, path: Path, root: Path) -> Measured | None:
    """The measurements that the data name; the numbers themselves are in the result files of the repository."""
    entry = data.measured
    if entry is None:
        return None
    facts = {split: condense_analysis(path.parent / name) for split, name in entry.analyses.items()}
    runs = [read_json(root / name) for name in entry.runs]
    return Measured(entry.dataset, entry.dataset_type, entry.split, runs, facts)


def _measured_run(checkpoint: Path, analysis: str | Path | None, dataset: str, split: str) -> Measured | None:
    path, facts = _beside(checkpoint, "metrics.json"), _analysis(checkpoint, analysis)
    metrics = read_json(path) if path else {}
    if not isinstance(metrics, dict) or not {"AP", "ECE"} & set(metrics):
        if facts is None:
            return None
        split, metrics = facts["data"]["split"], {}
    if facts is not None and facts["data"]["split"] == split and "AP" in metrics:
        analyzed = facts["accuracy"]["metrics"]["AP"]
        if abs((analyzed or 0.0) - metrics["AP"]) > _SAME_MODEL:
            raise ValueError(
                f"{analysis or _beside(checkpoint, 'analysis.json')}: its AP is {analyzed}, but {path} has "
                f"{metrics['AP']}; run drmm analyze with this checkpoint"
            )
    dataset_type = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "data"
    return Measured(dataset, dataset_type, split, [metrics], {facts["data"]["split"]: facts} if facts else {})


def _public_recipe(training: TrainConfig) -> str:
    """Settings other than the defaults as YAML; folders by their last part, so that it tells nothing of the machine."""
    shown = {
        spec.name: _public_name(value) if spec.name in ("data", "model", "warm_start", "backbone_weights") else value
        for spec in dataclasses.fields(training)
        if (value := getattr(training, spec.name)) != spec.default and spec.name not in _NOT_SHOWN
    }
    start = {} if training.model else {"preset": training.preset}
    return yaml.safe_dump({**start, **shown, "seed": training.seed}, sort_keys=False).strip()


def _public_name(path: str) -> str:
    """The name of a data set or model: its Hub id, or the last part of its folder."""
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not Path(path).exists()
    return path if is_hub_id else Path(path).name or path


def _checkpoint_folder(folder: str | Path) -> Path:
    """The folder itself, or its `model/` if that is where the checkpoint lies."""
    for place in (Path(folder), Path(folder) / "model"):
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"{folder}: no config.json in it or in its model/; give a checkpoint or the output of a training"
    )


def _beside(checkpoint: Path, name: str) -> Path | None:
    """The file in the checkpoint's folder, or in the training's output folder, of which it is `model/` or `best/`."""
    place = checkpoint.resolve()
    places = [checkpoint, *([place.parent] if place.name in ("model", "best") else [])]
    return next((place / name for place in places if (place / name).is_file()), None)


def _analysis(checkpoint: Path, analysis: str | Path | None) -> dict[str, Any] | None:
    path = Path(analysis) if analysis is not None else _beside(checkpoint, "analysis.json")
    return condense_analysis(path, checkpoint) if path else None


def _plain(value: Any) -> str:
    """A text that is only text: no markup, one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\`*_\[\]|#]", r"\\\g<0>", text)
