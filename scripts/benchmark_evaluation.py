"""What evaluating saved detections costs besides COCOeval, as a page of Markdown (see --help)."""

import argparse
import importlib.metadata
import os
import time
from pathlib import Path

from benchmark_data import processor_name
from drmm_hf.evaluation.benchmark import EvaluationCost, measure_evaluation
from drmm_hf.evaluation.command_line import positive_int

PAGE = """# The cost of an evaluation

    {command} --output docs/results/evaluation.md

Measured on {date} on one core of an {processor} ({cores} visible) under Linux, with
{versions}.
Other work ran on the machine, so times are CPU time of the process, medians of {rounds} rounds in which the ways took
turns.

Generated annotations with the numbers of COCO (80 classes, 7.3 objects an image), {images:,} images with {per_image}
detections each: {detections:,} detections. COCOeval is `evaluate` and `accumulate` of pycocotools for the twelve
numbers. Our own part is everything else that `scripts/evaluate.py --results` does: it reads and checks both files,
indexes them, computes ECE, D-ECE, LaECE, LRP and Brier score, and writes `metrics.json`. The last line, which an
evaluation with a model adds, takes the detections from tensors to `results.json` by way of the file that `--resume`
reads.

| part | CPU time (s) | share of COCOeval |
|---|---|---|
| COCOeval alone | {cocoeval:.1f} | 1 |
| COCOeval within our evaluation | {inside:.1f} | {inside_share:.2f} |
| our own part | {own:.1f} | {own_share:.2f} |
| detections to `results.json` | {writing:.1f} | {writing_share:.2f} |

Our own part with the writing is {share:.0%} of COCOeval's time. Python's garbage collector, which we stop meanwhile,
goes through the many objects of COCOeval when it runs alone.

Highest resident memory: {memory_before:,.0f} MiB with the package imported, {memory_ours:,.0f} MiB for our evaluation,
{memory_cocoeval:,.0f} MiB for COCOeval alone. Most of what is added are the dictionaries that COCOeval makes.
"""


def render(cost: EvaluationCost, rounds: int) -> str:
    """The page."""
    shares = {f"{name}_share": getattr(cost, name) / cost.cocoeval for name in ("inside", "own", "writing")}
    return PAGE.format(
        **{**vars(cost), **shares},
        share=cost.share,
        rounds=rounds,
        per_image=cost.detections // cost.images,
        command="python scripts/benchmark_evaluation.py",
        processor=processor_name(),
        cores=os.cpu_count(),
        date=time.strftime("%Y-%m-%d"),
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "pycocotools")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=positive_int, default=5000, help="(default: 5000)")
    parser.add_argument("--per-image", type=positive_int, default=100, help="detections an image (default: 100)")
    parser.add_argument("--rounds", type=positive_int, default=3, help="(default: 3)")
    parser.add_argument("--output", type=Path, help="file for the page (default: print it)")
    arguments = parser.parse_args()
    page = render(measure_evaluation(arguments.images, arguments.per_image, arguments.rounds), arguments.rounds)
    if arguments.output:
        arguments.output.write_text(page, encoding="utf-8")
    else:
        print(page, end="")


if __name__ == "__main__":
    main()
