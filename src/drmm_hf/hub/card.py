"""Model cards of trained detectors, from their own files; the text stands in the template `card.md.jinja`."""

import dataclasses
import html
import re
from collections.abc import Mapping
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
from ..training.checkpoints import DEPLOYED

CARD, DIAGRAM, APACHE = "README.md", "images/reliability.png", "apache-2.0"
# columns of the table of results, and their type and name in a model-index
_METRICS = {
    "AP": ("mean_average_precision", "AP (IoU 0.50:0.95)"),
    "AP50": ("mean_average_precision", "AP50"),
    "AP75": ("mean_average_precision", "AP75"),
    "AR100": ("mean_average_recall", "AR100"),
    "ECE": ("expected_calibration_error", "ECE"),
    "D-ECE": ("expected_calibration_error", "D-ECE"),
}
_SAME_MODEL = 0.005  # AP of two measurements of one model on different processors
_FEW_OBJECTS = 100
_PARTS = ("data", "accuracy", "calibration", "thresholds", "duplicates")
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
_DEPLOYED_FROM = {alone: whole for whole, alone in DEPLOYED.items()}
_TRAINED = {*DEPLOYED, *DEPLOYED.values()}
# Settings without effect on the weights, or of one call only.
_PATHS = {"data", "model", "warm_start", "backbone_weights", "annotations", "images", "eval_annotations", "eval_images"}
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

    Read are `metrics.json`, `recipe.yaml` and `analysis.json`, each from the checkpoint's folder or from the one above
    (of best/ only its own numbers); what is not there, the card says is not known. Folders of the machine do not get
    into it. The reliability diagram of an analysis is drawn into `images/`.

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
    home = checkpoint.resolve()
    deployed = _DEPLOYED_FROM.get(home.name) if (home.parent / "recipe.yaml").is_file() else None
    content = read_config(home.parent / deployed if deployed else checkpoint)
    config = (DrmmConfig if content["model_type"] == DrmmConfig.model_type else DrmmDetrConfig).from_dict(content)
    recipe, metrics = _beside(checkpoint, "recipe.yaml"), _beside(checkpoint, "metrics.json")
    training = parse_config(["--recipe", str(recipe)]) if recipe else None
    place = Path(analysis) if analysis is not None else _beside(checkpoint, "analysis.json")
    facts = read_analysis(place, checkpoint, _PARTS) if place else None
    report = CalibrationReport.from_dict(facts["calibration"]["reliability"]) if facts else None
    dataset = data_name or (_public_name(training.data) if training else None)
    split = training.eval_split if training else facts["data"]["split"] if facts else "val"
    results = _results(metrics, place, facts, split)
    name = repo_id.rsplit("/", 1)[-1] if repo_id else (home.parent if home.name in _TRAINED else home).name
    name = re.sub(r"[^\w.-]+", "-", name)
    described = _described(config)
    header = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["drmm", "object-detection", described["decoder"].replace("_", "-")]
        + ["calibration"] * described["is_mixture"],
        model_name=name,
        eval_results=_model_index(results, dataset or "its data") or None,
    )
    card = ModelCard.from_template(
        header,
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        **described,
        deployed=deployed,
        training=training,
        recipe=_public_recipe(training) if training else None,
        dataset=dataset,
        results=results,
        trained_results=metrics is not None,
        facts=facts,
        metrics=list(_METRICS),
        paper_url="https://arxiv.org/abs/2205.08714",
        diagram=DIAGRAM,
        few_objects=_FEW_OBJECTS,
        model=repo_id or "USER/NAME",
        converted_from=converted_from,
        name=name,
        plain=_plain,
        public_name=_public_name,
    )
    if report:
        (checkpoint / DIAGRAM).parent.mkdir(exist_ok=True)
        save_reliability_diagram(checkpoint / DIAGRAM, {repo_id or Path(folder).resolve().name: report})
    card.save(checkpoint / CARD)
    return checkpoint / CARD


def _described(config: DrmmConfig | DrmmDetrConfig) -> dict[str, Any]:
    """What the card says of the architecture."""
    if isinstance(config, DrmmDetrConfig):
        detector: Any = config.detector_config
        decoder, backbone, is_mixture = detector.model_type, detector.backbone_config, config.objective != "native"
    else:
        decoder, backbone, is_mixture = config.decoder, config.backbone_config, config.head == "mixture"
    base = _NAMES.get(decoder, decoder)
    with torch.device("meta"):
        model = AutoModelForObjectDetection.from_config(config)
    return {
        "config": config,
        "decoder": decoder,
        "is_mixture": is_mixture,
        "method": f"D-RMM on {base}" if is_mixture else base,
        "backbone": getattr(backbone, "backbone", None) or getattr(backbone, "model_type", None),
        "parameters": sum(weight.numel() for weight in model.parameters()) / 1e6,
        "classes": [_plain(label) for _, label in sorted((config.id2label or {}).items())],
    }


def _results(
    path: Path | None, analysis: Path | None, facts: Mapping[str, Any] | None, split: str
) -> dict[str, dict[str, float]]:
    """Split -> numbers, of metrics.json (`path`) and of the parts `facts` of `analysis`, if they are of one model."""
    metrics = read_json(path) if path else {}
    rows = {split: metrics} if "AP" in metrics else {}
    if facts is not None:
        measures = {name: measure["value"] for name, measure in facts["calibration"]["measures"].items()}
        analyzed = {**facts["accuracy"]["metrics"], **measures}
        trained = rows.setdefault(facts["data"]["split"], analyzed)
        if abs((analyzed["AP"] or 0.0) - (trained["AP"] or 0.0)) > _SAME_MODEL:
            message = f"its AP is {analyzed['AP']}, but {path} has {trained['AP']}; analyze this model"
            raise ValueError(f"{analysis}: {message}")
    return {of: {name: row[name] for name in _METRICS if row.get(name) is not None} for of, row in rows.items()}


def _model_index(results: Mapping[str, Mapping[str, float]], dataset: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="object-detection",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-") or "data",
            dataset_name=dataset,
            dataset_split=split,
            metric_type=_METRICS[name][0],
            metric_name=_METRICS[name][1],
            metric_value=round(value, 4),
        )
        for split, row in results.items()
        for name, value in row.items()
    ]


def _public_recipe(training: TrainConfig) -> str:
    """Settings other than the defaults as YAML; folders by their last part, so that it tells nothing of the machine."""
    shown = {
        spec.name: _public_name(value) if spec.name in _PATHS else value
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
    """The file in the checkpoint's folder, or in the output folder of the training that it is a part of."""
    place = checkpoint.resolve()
    places = [checkpoint]
    if place.name in _TRAINED:
        best = name == "metrics.json" and place.name in ("best", DEPLOYED["best"])  # other weights than at the end
        places.append(place.parent / "best" if best else place.parent)
    return next((place / name for place in places if (place / name).is_file()), None)


def _plain(value: Any) -> str:
    """A text that is only text: no markup, one line."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"[\\`*_\[\]|#]", r"\\\g<0>", text)
