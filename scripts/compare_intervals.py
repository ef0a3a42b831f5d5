"""Intervals of box edges: those of γ beside conformal ones, which are quantiles of the errors on other images.

    python scripts/compare_intervals.py MODEL... --data FOLDER --output intervals.json

The models are one detector under several seeds. Whatever is fitted is fitted on the split `val`; coverage and mean
width in pixels are of the true positives of `test` from a score of 0.3 on, and the coverage of γ as it is of `val`,
too. Intervals that tell edges apart hold their level among those with a small γ and among those with a large one: the
coverage at 80% is of the fifth with the smallest and of the fifth with the largest, too.

The intervals are [edge - q, edge + q], and of a level q is

- "γ": the quantile of the density that the detector predicts for the edge;
- "γ, one factor": that times the factor which `fit_scale_factor` finds for the level 80%;
- "γ, conformal": γ times the quantile of |error| / γ;
- "box, conformal": the width or height of the box times the quantile of |error| in units of it;
- "constant, conformal": the quantile of |error|, of left, top, right and bottom edges each.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drmm_hf  # noqa: F401  (before torch, whose waiting threads then sleep)

# isort: split
import numpy as np

from drmm_hf.cli import run_command
from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import fit_scale_factor, predict_dataset
from drmm_hf.evaluation.uncertainty import LEVELS, Edges, match_edges
from drmm_hf.loading import load_detector
from drmm_hf.postprocessing import half_width
from reproduction.comparison import with_seeds, write_table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="checkpoints of one detector, a seed each")
    parser.add_argument("--data", required=True, help="data set with the splits val and test")
    parser.add_argument("--output", required=True, help="json of the table")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    found = [_measured(model, arguments.data) for model in arguments.models]
    rows = {
        kind: with_seeds({seed: one[kind] for seed, one in enumerate(found)}, tuple(found[0][kind]))
        for kind in found[0]
    }
    settings = {
        "title": "Intervals of the edges",
        "command": shlex.join(["python", "scripts/compare_intervals.py", *arguments.models, "--data", arguments.data]),
        "data": f"{arguments.data}, fitted on val, measured on test",
    }
    write_table(Path(arguments.output), rows, settings)


def _measured(path: str, data: str) -> dict[str, dict[str, float]]:
    """Kind of interval -> measure -> value."""
    model, processor = load_detector(path, "cpu")
    density = {"density": model.config.density, "student_t_dof": model.config.student_t_dof}

    def edges_of(split: str) -> tuple[tuple[Any, list[dict[str, Any]]], Edges]:
        dataset = load_detection_dataset(data, split, id2label=model.config.id2label)
        results = predict_dataset(model, processor, dataset, with_scales=True, progress=False)
        return (dataset.annotations_path, results), match_edges(dataset.annotations_path, results, {})[1]

    (truth, results), val = edges_of("val")
    test = edges_of("test")[1]
    factor = fit_scale_factor(truth, results, 0.8, **density).factor
    reach = {level: half_width(level, **density) for level in LEVELS}
    half_widths = {
        "γ": {level: reach[level] * test.scales for level in LEVELS},
        "γ, one factor": {level: factor * reach[level] * test.scales for level in LEVELS},
        "γ, conformal": {level: _quantile(val.ratios, level) * test.scales for level in LEVELS},
        "box, conformal": {level: _quantile(val.errors / val.sizes, level) * test.sizes for level in LEVELS},
        "constant, conformal": {
            level: np.broadcast_to([_quantile(edge, level) for edge in val.errors.T], test.errors.shape)
            for level in LEVELS
        },
    }
    fifths = np.array_split(np.argsort(test.scales, axis=None), 5)
    rows = {
        kind: {f"test, {level:.0%}": np.mean(test.errors <= half[level]).item() for level in LEVELS}
        | {
            f"test, 80%, {name}": np.mean((test.errors <= half[0.8]).flat[fifth]).item()
            for name, fifth in (("smallest γ", fifths[0]), ("largest γ", fifths[-1]))
        }
        | {f"width, {level:.0%}": 2 * np.mean(half[level]).item() for level in LEVELS}
        for kind, half in half_widths.items()
    }
    rows["γ"] |= {f"val, {level:.0%}": np.mean(val.ratios <= reach[level]).item() for level in LEVELS}
    return rows


def _quantile(values: np.ndarray, level: float) -> float:
    """The quantile of split conformal prediction: of n values the ⌈(n + 1)·level⌉-th, so that a new one is within."""
    rank = min(values.size, int(np.ceil((values.size + 1) * level - 1e-9)))
    return float(np.sort(values, axis=None)[rank - 1])


if __name__ == "__main__":
    raise SystemExit(main())
