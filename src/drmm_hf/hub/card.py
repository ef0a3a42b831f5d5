"""Model cards: of the presets, from `model_cards/data/NAME.yaml`, and of trained detectors, from their own files.

The text stands in the template `card.md.jinja`; here are the facts that fill it.
"""

import dataclasses
import html
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForObjectDetection

from ..configuration_drmm import DrmmConfig
from ..configuration_drmm_detr import DrmmDetrConfig
from ..evaluation import CalibrationReport, save_reliability_diagram
from ..evaluation.analysis import read_analysis
from ..files import read_json
from ..loading import read_config
from ..training import TrainConfig, parse_config

CARD, DIAGRAM, APACHE = "README.md", "images/reliability.png", "apache-2.0"
# columns of the tables of results, and their type and name in a model-index
_METRICS = {
    "AP": ("mean_average_precision", "AP (IoU 0.50:0.95)"),
    "AP50": ("mean_average_precision", "AP50"),
    "AP75": ("mean_average_precision", "AP75"),
    "AR100": ("mean_average_recall", "AR100"),
    "ECE": ("expected_calibration_error", "ECE"),
    "D-ECE": ("expected_calibration_error", "D-ECE"),
}
_PAPER_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "FPS")
_PROCESSES = 8  # of the recipes for COCO
_SAME_MODEL = 0.005  # AP of two measurements of one model on different processors
_FEW_OBJECTS = 100
_NAMES = {
    "sparse_rcnn": "Sparse R-CNN",
    "adamixer": "AdaMixer",
    "rt_detr": "RT-DETR",
    "rt_detr_v2": "RT-DETR v2",
    "d_fine": "D-FINE",
    "lw_detr": "LW-DETR",
    "rf_detr": "RF-DETR",
    "deformable_detr": "Deformable DETR",
    "conditional_detr": "Conditional DETR",
    "detr": "DETR",
}
# Settings without effect on the weights, or of one call only.
_NOT_SHOWN = {"resume", "log_every", "report_to", "save_every", "save_total_limit", "num_workers", "timeout", "output"}


def write_checkpoint_card(
    folder: str | Path,
    *,
    analysis: str | Path | None = None,
    data_name: str | None = None,
    repo_id: str | None = None,
    license_id: str = APACHE,
    converted_from: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the card of a trained detector from what training and analysis left: classes, recipe and results.

    Read are `metrics.json`, `recipe.yaml` and `analysis.json`, each from the checkpoint's folder or from the one above;
    what is not there, the card says is not known. Folders of the machine do not get into it. The reliability diagram of
    an analysis is drawn into `images/`.

    Args:
        folder: checkpoint, or the output folder of a training, whose `model/` is taken.
        analysis: analysis.json of `drmm analyze`, if it lies elsewhere.
        data_name: name of the data set; the folder's name by default.
        repo_id: where it will be published.
        license_id: of the weights, as the Hub names it, such as `mit` or `cc-by-4.0`.
        converted_from: words on the released file, where the weights are not trained but converted.
        overwrite: replace a README.md that is there.

    Returns:
        The README.md.

    Raises:
        FileExistsError: there is a README.md.
        FileNotFoundError: no checkpoint there.
        ValueError: one of the files cannot be used, or a license of that form is none; the message names it.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
        raise ValueError(f"license {license_id!r}: give the Hub's name of it, such as apache-2.0, mit or cc-by-4.0")
    checkpoint = _checkpoint_folder(folder)
    if (checkpoint / CARD).exists() and not overwrite:
        raise FileExistsError(f"{checkpoint / CARD} is there already; --overwrite replaces it")
    content = read_config(checkpoint)
    recipe = _beside(checkpoint, "recipe.yaml")
    training = parse_config(["--recipe", str(recipe)]) if recipe else None
    dataset = data_name or (_public_name(training.data) if training else None)
    place = Path(analysis) if analysis is not None else _beside(checkpoint, "analysis.json")
    facts = condense_analysis(place, checkpoint) if place else None
    split = training.eval_split if training else "val"
    measured = _measured_run(_beside(checkpoint, "metrics.json"), place, facts, dataset or "its data", split)
    home = checkpoint.resolve()
    name = repo_id.rsplit("/", 1)[-1] if repo_id else (home.parent if home.name in ("model", "best") else home).name
    card = _render(
        re.sub(r"[^\w.-]+", "-", name),
        (DrmmConfig if content["model_type"] == DrmmConfig.model_type else DrmmDetrConfig).from_dict(content),
        measured,
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
    return _write(card, checkpoint, repo_id or Path(folder).resolve().name, facts)


def write_preset_cards(root: str | Path, output: str | Path) -> list[Path]:
    """Write the card, and its diagram, of every `model_cards/data/NAME.yaml` of a repository.

    It goes to `model_cards/NAME/README.md`, or into the folder of the checkpoint that the data names.

    Args:
        root: of the repository.
        output: the same, or another folder to write them to.

    Raises:
        FileNotFoundError, ValueError: the data of a card is missing or wrong.
    """
    folder = Path(root) / "model_cards" / "data"
    if not (sources := sorted(folder.glob("*.yaml"))):
        raise FileNotFoundError(f"{folder}: no data of cards; run this in the repository")
    return [_write_preset_card(source, Path(root), Path(output)) for source in sources]


def condense_analysis(path: str | Path, model: str | Path = "") -> dict[str, Any]:
    """What a card shows of an `analysis.json`, or of such an extract: no images and no paths; see `read_analysis`."""
    shown: dict[str, Sequence[str]] = {
        "data": ("split", "images", "objects", "objects_per_class"),
        "accuracy": ("settings", "metrics", "per_class"),
        "calibration": ("measures", "reliability"),
        "thresholds": ("settings", "moLRP", "per_class"),
        "duplicates": ("counts",),
    }
    facts = read_analysis(path, model, tuple(shown))
    return {part: {name: facts[part][name] for name in names} for part, names in shown.items()}


def _write_preset_card(source: Path, root: Path, output: Path) -> Path:
    """The card of a preset, or of the checkpoint in the repository that was trained from it.

    Fields of the source: `preset`; `recipe`, which may be left out where `measured` has the options; `paper`, rows of
    its tables in percent; `released`, where others published weights; `checkpoint`, the folder of the measured weights,
    where the card goes; others are sentences. In `measured`: the options of `train` and `analyze`, the files of the
    `runs` (the first is the model's) and of the `analyses` of each split, and the `page` about them.
    """
    try:
        data = yaml.safe_load(source.read_text(encoding="utf-8"))
        preset, entry = data["preset"], data.get("measured")
        config = DrmmConfig.from_preset(preset)
        options = entry["train"] if entry else f"--recipe {data['recipe']} --data coco --output runs/{preset}"
        runs = [root / name for name in entry["runs"]] if entry else []
        analyses = entry["analyses"].items() if entry else []
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{source}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    facts = {split: condense_analysis(source.parent / name) for split, name in analyses}
    training = parse_config(shlex.split(options))
    if training.preset != preset:
        options += f" --preset {preset}"
    place = Path(data.get("checkpoint") or f"model_cards/{preset}")
    card = _render(
        place.name,
        config,
        _measured(entry, [read_json(run) for run in runs], facts) if entry else None,
        training,
        data=data,
        domain=entry["dataset"] if entry and "checkpoint" in data else None,
        trained_on=entry["dataset"] if entry else "COCO train2017",
        processes=1 if entry else _PROCESSES,
        command=f"{'drmm train' if entry else 'accelerate launch scripts/train.py'} {options}",
        model=data.get("checkpoint") or f"runs/{preset}" + ("" if data.get("released") else "/model"),
    )
    return _write(card, output / place, place.name, facts[entry["split"]] if entry else None)


def _render(
    name: str,
    config: DrmmConfig | DrmmDetrConfig,
    measured: dict[str, Any] | None,
    training: TrainConfig | None,
    license_id: str = APACHE,
    **context: Any,
) -> ModelCard:
    facts = measured["facts"].get(measured["split"]) if measured else None
    if isinstance(config, DrmmDetrConfig):
        detector: Any = config.detector_config
        decoder, backbone, is_mixture = detector.model_type, detector.backbone_config, config.objective != "native"
    else:
        decoder, backbone, is_mixture = config.decoder, config.backbone_config, config.head == "mixture"
    base = _NAMES.get(decoder, decoder)
    with torch.device("meta"):
        model = AutoModelForObjectDetection.from_config(config)
    header = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["drmm", "object-detection", decoder.replace("_", "-"), *(["calibration"] if is_mixture else [])],
        model_name=name,
        eval_results=_model_index(measured) if measured else None,
    )
    return ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        plain=_plain,
        public_name=_public_name,
        name=name,
        method=f"D-RMM on {base}" if is_mixture else base,
        decoder=decoder,
        is_mixture=is_mixture,
        config=config,
        backbone=getattr(backbone, "backbone", None) or getattr(backbone, "model_type", None),
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        classes=[_plain(label) for _, label in sorted((config.id2label or {}).items())],
        training=training,
        measured=measured,
        facts=facts,
        worst_bin=_worst_bin(facts) if facts else None,
        metrics=list(_METRICS),
        paper_metrics=list(_PAPER_METRICS),
        paper_url="https://arxiv.org/abs/2205.08714",
        diagram=DIAGRAM,
        few_objects=_FEW_OBJECTS,
        **context,
    )


def _write(card: ModelCard, folder: Path, name: str, facts: Mapping[str, Any] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if facts is not None:
        (folder / DIAGRAM).parent.mkdir(exist_ok=True)
        save_reliability_diagram(folder / DIAGRAM, {name: _reliability(facts)})
    card.save(folder / CARD)
    return folder / CARD


def _measured_run(
    path: Path | None, analysis: Path | None, facts: dict[str, Any] | None, dataset: str, split: str
) -> dict[str, Any] | None:
    """What metrics.json (`path`) and the extract `facts` of `analysis` say of a run, if they are of one model."""
    metrics = read_json(path) if path else {}
    if not isinstance(metrics, dict) or not {"AP", "ECE"} & set(metrics):
        if facts is None:
            return None
        split, metrics = facts["data"]["split"], {}
    if facts is not None and facts["data"]["split"] == split and "AP" in metrics:
        analyzed = facts["accuracy"]["metrics"]["AP"]
        if abs((analyzed or 0.0) - metrics["AP"]) > _SAME_MODEL:
            raise ValueError(f"{analysis}: its AP is {analyzed}, but {path} has {metrics['AP']}; analyze this model")
    dataset_type = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "data"
    entry = {"dataset": dataset, "dataset_type": dataset_type, "split": split}
    return _measured(entry, [metrics], {facts["data"]["split"]: facts} if facts else {})


def _measured(entry: Mapping[str, Any], runs: Sequence[Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `entry`, the contents of metrics.json of `runs` (first the model's own), the `facts` of each split
    (`condense_analysis`), and `metrics`: split -> the numbers of the model itself.
    """
    rows = {entry["split"]: runs[0]} if runs[0] else {}
    for split, part in facts.items():
        measures = {name: measure["value"] for name, measure in part["calibration"]["measures"].items()}
        rows.setdefault(split, {**part["accuracy"]["metrics"], **measures})
    metrics = {
        split: {name: row[name] for name in _METRICS if row.get(name) is not None} for split, row in rows.items()
    }
    return {**entry, "runs": runs, "facts": facts, "metrics": metrics}


def _model_index(measured: Mapping[str, Any]) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=measured["dataset_type"],
            dataset_name=measured["dataset"],
            dataset_split=split,
            metric_type=_METRICS[name][0],
            metric_name=_METRICS[name][1],
            metric_value=round(value, 4),
        )
        for split, row in measured["metrics"].items()
        for name, value in row.items()
    ]
    return results or None


def _worst_bin(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """The bin, of scores from 0.3, with the most detections times distance of score and precision."""
    report = _reliability(facts)
    edges = (report.bin_edges[:-1], report.bin_edges[1:])
    columns = zip(*edges, report.bin_counts, report.bin_confidences, report.bin_accuracies, strict=True)
    bins = [
        {"low": low, "high": high, "count": count, "gap": confidence - precision}
        for low, high, count, confidence, precision in columns
        if count and confidence >= 0.3
    ]
    return max(bins, key=lambda entry: abs(entry["gap"]) * entry["count"], default=None)


def _reliability(facts: Mapping[str, Any]) -> CalibrationReport:
    """The report behind the reliability diagram of an extract."""
    return CalibrationReport.from_dict(facts["calibration"]["reliability"])


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


def _plain(value: Any) -> str:
    """A text that is only text: no markup, one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\`*_\[\]|#]", r"\\\g<0>", text)
