"""A stock detector fine-tuned by its own loss and by likelihood at equal terms: same start, images and tuning.

    python scripts/compare_detectors.py rt_detr_v2 --data FOLDER --backbone WEIGHTS --output runs/rt-detr-v2

Trains a small detector with an ImageNet backbone (tf_efficientnet_lite0) by its own loss, which is where both begin.
Each side then trains with every learning rate, and with the one of the best AP on the split `val` under every seed.
These runs are measured on the split `test`, as it is and changed (`reproduction/shifts.py`), raw and after isotonic
regression fitted on `val`. Writes clean.json and shift.json; finished runs are kept.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import drmm_hf  # noqa: F401  (before torch, whose waiting threads then sleep)

# isort: split
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForObjectDetection,
    RfDetrDinov2Config,
    RTDetrImageProcessor,
    TimmBackbone,
    TimmBackboneConfig,
)
from transformers.models.rf_detr import modeling_rf_detr

from drmm_hf.backbone import load_imagenet_weights
from drmm_hf.cli import run_command
from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import (
    ScoreCalibration,
    count_duplicates,
    evaluate_detections,
    object_calibration_report,
    predict_dataset,
)
from drmm_hf.files import read_json, to_plain, write_json
from drmm_hf.loading import load_detector
from drmm_hf.training import TrainConfig, train
from markdown_table import PAPER
from reproduction.measurements import summary
from reproduction.render import machine
from reproduction.shifts import SHIFTS, shifted_split

OBJECTIVES = {"native": "own loss", "nll_mcm": "D-RMM"}
LABELS = [label for title in OBJECTIVES.values() for label in (title, f"{title}, isotonic")]
MEASURES = ("AP", "AP50", "AP75", "AR100", "ECE", "D-ECE", "OCE", "Brier", "LRP", "duplicates/object")
UNDER_SHIFT = ("AP", "AP50", "ECE", "D-ECE", "OCE", "Brier")
WIDTH, QUERIES = 96, 64
_HYBRID = {
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "encoder_in_channels": [40, 112, 320],
    "encoder_ffn_dim": 2 * WIDTH,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [WIDTH] * 3,
    "decoder_ffn_dim": 2 * WIDTH,
    "decoder_attention_heads": 4,
    "num_denoising": 32,
}
_GROUPS = {
    "d_model": WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "rt_detr_v2": _HYBRID,
    "d_fine": {**_HYBRID, "hidden_size": WIDTH},
    "rf_detr": _GROUPS,
}


class _OneMap(torch.nn.Module):
    """The map of stride 16 in the place of RF-DETR's own backbone, of which no ImageNet weights are to be had here."""

    def __init__(self, config: Any):
        super().__init__()
        self.network = TimmBackbone(_lite0(3))

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.network(pixel_values)


def _lite0(*out_indices: int) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=out_indices, use_pretrained_backbone=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--data", required=True, help="data set with the splits train, val and test")
    parser.add_argument("--output", required=True, help="folder of the runs and tables")
    parser.add_argument("--backbone", required=True, help="weights of tf_efficientnet_lite0: a file, or 'package'")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("H", "W"), help="network input")
    parser.add_argument("--start", help="begin from this checkpoint instead of training one by the detector's own loss")
    parser.add_argument("--start-images", type=int, default=4000, help="length of that training (default: 4000)")
    parser.add_argument("--start-learning-rate", type=float, default=5e-4, help="of that training (default: 5e-4)")
    parser.add_argument("--images", type=int, default=1600, help="length of every run (default: 1600)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 2e-4, 5e-4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--shifts", nargs="*", choices=SHIFTS, default=list(SHIFTS), help="default: all of them")
    arguments = parser.parse_args(argv)
    if arguments.family == "rf_detr":  # for the whole process: also where a checkpoint of it is loaded
        modeling_rf_detr.RfDetrDinov2Backbone = _OneMap
    arguments.command = " ".join(["python scripts/compare_detectors.py", *(sys.argv[1:] if argv is None else argv)])
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    start = Path(arguments.start or output / "start" / "model" / "detector")
    if not start.exists():
        _start(arguments, output)
    chosen, tried = {}, {}
    for objective in OBJECTIVES:
        tried[objective] = {
            rate: _train(arguments, start, objective, rate, arguments.seeds[0])["AP"]
            for rate in arguments.learning_rates
        }
        chosen[objective] = max(tried[objective], key=tried[objective].__getitem__)
        for seed in arguments.seeds:
            _train(arguments, start, objective, chosen[objective], seed)
    start_raw = _measured(arguments, start, output / "start.json")["test"]["raw"]
    rows: dict[str, Any] = {"start": _with_seeds({0: start_raw}, MEASURES)}
    shifted: dict[str, Any] = {f"{name}: {label}": {} for name in arguments.shifts for label in LABELS}
    for objective, title in OBJECTIVES.items():
        found = {}
        for seed in arguments.seeds:
            folder = _folder(output, objective, chosen[objective], seed)
            found[seed] = _measured(arguments, folder / "model", folder / "measured.json")
        for kind, label in (("raw", title), ("isotonic", f"{title}, isotonic")):
            rows[label] = _with_seeds({seed: one["test"][kind] for seed, one in found.items()}, MEASURES)
            for name in arguments.shifts:
                values = {seed: one[name][kind] for seed, one in found.items()}
                shifted[f"{name}: {label}"] = _with_seeds(values, UNDER_SHIFT)
    settings = {
        "source": "not in the paper",
        "command": arguments.command,
        "data": f"{arguments.data}, split test",
        "training": f"{arguments.images} images after {arguments.start or f'{arguments.start_images} by its own loss'}",
        "learning rates": {"AP on val, first seed": tried, "chosen": chosen},
        "machine": machine(),
        PAPER: {},
    }
    for name, content in (("clean", rows), ("shift", shifted)):
        write_json(output / f"{name}.json", {"title": arguments.family, **settings, "rows": content})
    print(json.dumps({row: {name: one["mean"] for name, one in values.items()} for row, values in rows.items()}))


def _start(arguments: argparse.Namespace, output: Path) -> None:
    """A detector with an ImageNet backbone and random heads, trained by its own loss; the stock part is kept."""
    names = load_detection_dataset(arguments.data, "train").id2label
    torch.manual_seed(0)
    config = CONFIG_MAPPING[arguments.family](
        **FAMILIES[arguments.family],
        decoder_layers=3,
        num_queries=QUERIES,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        backbone_config=RfDetrDinov2Config(hidden_size=112, out_features=["stage1"])
        if arguments.family == "rf_detr"
        else _lite0(2, 3, 4),
    )
    detector = AutoModelForObjectDetection.from_config(config)
    network = next(module for module in detector.modules() if isinstance(module, TimmBackbone))
    load_imagenet_weights(SimpleNamespace(model=network, model_kwargs={}), arguments.backbone)
    detector.save_pretrained(output / "fresh")
    height, width = arguments.size
    RTDetrImageProcessor(
        size={"height": height, "width": width}, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(output / "fresh")
    arguments = argparse.Namespace(**{**vars(arguments), "images": arguments.start_images})
    _train(arguments, output / "fresh", "native", arguments.start_learning_rate, 0, output / "start")


def _train(
    arguments: argparse.Namespace,
    start: Path,
    objective: str,
    learning_rate: float,
    seed: int,
    folder: Path | None = None,
) -> dict[str, float]:
    """Metrics on `val` of a run, which is trained if it is not there; beside its model lies the stock detector."""
    folder = folder or _folder(Path(arguments.output), objective, learning_rate, seed)
    if not (folder / "metrics.json").is_file():
        config = TrainConfig(
            model=str(start),
            config={"objective": objective},
            data=arguments.data,
            output=str(folder),
            train_images=arguments.images,
            batch_size=arguments.batch_size,
            learning_rate=learning_rate,
            backbone_lr_factor=0.3,
            vertical_flip=0.5,
            save_every=0,
            seed=seed,
            cpu=True,
        )
        result = train(config)
        result.model.detector.save_pretrained(folder / "model" / "detector")
        result.processor.save_pretrained(folder / "model" / "detector")
    return read_json(folder / "metrics.json")


def _folder(output: Path, objective: str, learning_rate: float, seed: int) -> Path:
    return output / "runs" / f"{objective}-lr{learning_rate:g}-seed{seed}"


def _measured(arguments: argparse.Namespace, model: Path, target: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Condition -> raw or isotonic -> measures of the test split, of a stock detector or of D-RMM."""
    if not target.is_file():
        detector, processor = load_detector(str(model), "cpu")
        data = {"val": (arguments.data, "val"), "test": (arguments.data, "test")}
        for name in arguments.shifts:
            folder = shifted_split(arguments.data, "test", name, Path(arguments.output) / "shifted")
            data[name] = (str(folder), "test")
        results, truths = {}, {}
        for name, (path, split) in data.items():
            dataset = load_detection_dataset(path, split, id2label=detector.config.id2label)
            # as many an image as stock post-processing keeps: more, with scores of about 0, would flatter ECE and Brier
            results[name] = predict_dataset(detector, processor, dataset, top_k=QUERIES, progress=False)
            truths[name] = dataset.annotations_path
        isotonic = ScoreCalibration.fit(truths["val"], results["val"])
        measured = {
            name: {
                "raw": _measures(truths[name], results[name]),
                "isotonic": _measures(truths[name], isotonic.apply(results[name])),
            }
            for name in data
        }
        write_json(target, to_plain(measured))
    return read_json(target)


def _measures(truth: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    report = evaluate_detections(truth, results, details=True)
    assert report.lrp is not None
    assert report.brier is not None
    return {
        **{name: report.metrics[name] for name in ("AP", "AP50", "AP75", "AR100")},
        **{name: part.ece for name, part in report.named_calibration.items()},
        "OCE": object_calibration_report(truth, results).oce,
        "Brier": report.brier.brier,
        "LRP": report.lrp.lrp,
        "duplicates/object": count_duplicates(truth, results).duplicates_per_object,
    }


def _with_seeds(found: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[str, Any]:
    """Measure -> mean, deviation and the value of every seed; left out where nothing was there to be measured."""
    values = {
        name: {str(seed): round(one[name], 4) for seed, one in found.items() if one[name] is not None} for name in names
    }
    return {name: summary(seeds) for name, seeds in values.items() if seeds}


if __name__ == "__main__":
    raise SystemExit(main())
