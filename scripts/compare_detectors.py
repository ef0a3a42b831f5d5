"""A stock detector fine-tuned by its own loss and by likelihood at equal terms: same start, images and tuning.

    python scripts/compare_detectors.py rt_detr_v2 --data FOLDER --backbone WEIGHTS --output runs/rt-detr-v2

Trains a small detector with an ImageNet backbone (tf_efficientnet_lite0) by its own loss, which is where both begin.
How the sides are tuned and measured: `reproduction/comparison.py`. Writes clean.json and shift.json; finished runs are
kept.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
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
from drmm_hf.training import TrainConfig
from reproduction.comparison import MEASURES, Measured, Side, compare, measured, trained, with_seeds, write_tables
from reproduction.shifts import SHIFTS

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
    parser.add_argument(
        "--mcm-weights", type=float, nargs="+", default=[0.5], metavar="BETA", help="D-RMM with each (default: 0.5)"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--shifts", nargs="*", choices=SHIFTS, default=list(SHIFTS), help="default: all of them")
    arguments = parser.parse_args(argv)
    if arguments.family == "rf_detr":  # for the whole process: also where a checkpoint of it is loaded
        modeling_rf_detr.RfDetrDinov2Backbone = _OneMap
    arguments.command = shlex.join(
        ["python", "scripts/compare_detectors.py", *(sys.argv[1:] if argv is None else argv)]
    )
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    start = Path(arguments.start or output / "start" / "deployed")
    if not start.exists():
        _start(arguments, output)

    def measure(model: Path, shifts: Sequence[str]) -> Measured:
        # as many an image as stock post-processing keeps
        return measured(model, arguments.data, shifts, output / "shifted", top_k=QUERIES)

    def side(title: str, folder: str, fields: dict[str, Any]) -> Side:
        def config(rate: float, seed: int) -> TrainConfig:
            run = output / "runs" / f"{folder}-lr{rate:g}-seed{seed}"
            return _training(arguments, start, fields, rate, seed, run, arguments.images)

        return Side(title, config)

    sides = [side("own loss", "native", {"objective": "native"})]
    for weight in arguments.mcm_weights:
        title, folder = (f" (β = {weight:g})", f"-beta{weight:g}") if weight != 0.5 else ("", "")
        fields = {"objective": "nll_mcm", "mcm_weight": weight}
        sides.append(side(f"D-RMM{title}", f"nll_mcm{folder}", fields))
    clean, shift, tuning = compare(
        sides,
        arguments.learning_rates,
        arguments.seeds,
        arguments.shifts,
        lambda folder: measure(folder / "model", arguments.shifts),
    )
    begin = {"start": with_seeds({0: measure(start, ())["test"]["raw"]}, MEASURES)}
    settings = {
        "title": arguments.family,
        "command": arguments.command,
        "data": f"{arguments.data}, split test",
        "training": f"{arguments.images} images after {arguments.start or f'{arguments.start_images} by its own loss'}",
    }
    write_tables(output, {**begin, **clean}, shift, tuning, settings)
    print(json.dumps({row: {name: one["mean"] for name, one in values.items()} for row, values in clean.items()}))


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
    rate, images = arguments.start_learning_rate, arguments.start_images
    trained(_training(arguments, output / "fresh", {"objective": "native"}, rate, 0, output / "start", images))


def _training(
    arguments: argparse.Namespace,
    start: Path,
    fields: dict[str, Any],
    rate: float,
    seed: int,
    folder: Path,
    images: int,
) -> TrainConfig:
    return TrainConfig(
        model=str(start),
        config=fields,
        data=arguments.data,
        output=str(folder),
        train_images=images,
        batch_size=arguments.batch_size,
        learning_rate=rate,
        backbone_lr_factor=0.3,
        vertical_flip=0.5,
        save_every=0,
        seed=seed,
        cpu=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
