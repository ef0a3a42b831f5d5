"""Likelihood against matching on photographs: detectors on ImageNet features, tuned, under several seeds.

    python scripts/compare_objectives.py bccd raccoon cards --backbone WEIGHTS --output runs/real-data

For each folder and decoder, a detector with the backbone tf_efficientnet_lite0 is trained with the recipe
`finetune-photos` by D-RMM (`nll_mcm`), by D-RMM with `objectness_anchor=poisson`, by that with a class that pulls
harder and a floor of γ that comes down, and by matching (`set_prediction`). How the sides are tuned and measured:
`reproduction/comparison.py`; besides, each detector is shown the test images of the other folders, where all that it
claims to see is false. Writes a json for each folder, clean and under shift; finished runs are kept.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import drmm_hf  # noqa: F401  (before torch, whose waiting threads then sleep)

# isort: split
from drmm_hf.cli import run_command
from drmm_hf.training import TrainConfig, parse_config
from reproduction.comparison import Measured, Side, compare, measured, write_tables
from reproduction.shifts import SHIFTS

DECODERS = {"adamixer": "AdaMixer", "sparse-rcnn": "Sparse R-CNN"}
_NO_PATH = ("--min-scale-ratio-start", "0.04")  # from the model's own floor
OBJECTIVES = {
    "D-RMM": ("drmm-", "", ["--config", "objectness_anchor=none", "class_gradient=1", *_NO_PATH]),
    "D-RMM, anchored": ("drmm-", "-anchored", ["--config", "objectness_anchor=poisson", "class_gradient=1", *_NO_PATH]),
    "D-RMM, anchored, annealed": (
        "drmm-",
        "-annealed",
        ["--config", "objectness_anchor=poisson", "class_gradient=2", "--min-scale-ratio-start", "0.2"],
    ),
    "matching": ("", "", []),
}
"""Title -> prefix of the preset, what the names of its runs add, and further options of the training."""
DETECTIONS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 with one line on stderr for bad input."""
    epilog = "Options of drmm train, for every run, may follow after --."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=epilog)
    parser.add_argument("data", nargs="+", help="data sets with the splits train, val and test")
    parser.add_argument("--output", required=True, help="folder of the runs and tables")
    parser.add_argument("--backbone", required=True, help="weights of tf_efficientnet_lite0: a file, hub or package")
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--images", type=int, default=6000, help="length of every run (default: 6000)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shifts", nargs="*", choices=SHIFTS, default=list(SHIFTS), help="default: all of them")
    parser.add_argument("--foreign", nargs="*", help="data sets without its objects (default: the others of DATA)")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    arguments.training = words[cut + 1 :]
    arguments.command = shlex.join(["python", "scripts/compare_objectives.py", *words])
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    for data in arguments.data:
        _compare_on(data, arguments)


def _compare_on(data: str, arguments: argparse.Namespace) -> None:
    output = Path(arguments.output) / Path(data).name
    others = arguments.data if arguments.foreign is None else arguments.foreign
    foreign = [other for other in others if other != data]

    def measure(folder: Path) -> Measured:
        shifted = output / "shifted"
        return measured(folder / "model", data, arguments.shifts, shifted, top_k=DETECTIONS, foreign=foreign)

    def side(decoder: str, objective: str) -> Side:
        prefix, suffix, options = OBJECTIVES[objective]
        preset = f"{prefix}{decoder}-lite0"

        def config(rate: float, seed: int) -> TrainConfig:
            folder = output / "runs" / f"{preset}{suffix}-lr{rate:g}-seed{seed}"
            words = ["--recipe", "finetune-photos", "--preset", preset, "--backbone-weights", arguments.backbone]
            words += ["--data", data, "--output", str(folder), "--train-images", str(arguments.images)]
            words += ["--learning-rate", str(rate), "--seed", str(seed), "--save-every", "0", "--cpu"]
            return parse_config([*words, *options, *arguments.training])

        return Side(f"{DECODERS[decoder]}, {objective}", config)

    sides = [side(decoder, objective) for decoder in arguments.decoders for objective in arguments.objectives]
    clean, shift, tuning = compare(sides, arguments.learning_rates, arguments.seeds, arguments.shifts, measure)
    settings = {
        "title": Path(data).name,
        "command": arguments.command,
        "data": f"{data}, split test",
        "training": f"{arguments.images} images from ImageNet features",
    }
    write_tables(output, clean, shift, tuning, settings)
    print(f"{output}: clean.json and shift.json")


if __name__ == "__main__":
    raise SystemExit(main())
