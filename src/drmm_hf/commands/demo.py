"""`drmm demo`: detections of a checkpoint in the browser."""

import argparse
import os
from collections.abc import Sequence

from transformers.utils import cached_file

from ..demo import Measured, build_app, example_scenes, launch_app, load_measured
from ..evaluation.predict import find_images
from ..files import require
from ..loading import label_names, load_detector

CHECKPOINT, ANALYSIS, EXAMPLES = "DRMM_CHECKPOINT", "DRMM_ANALYSIS", "DRMM_EXAMPLES"
"""Environment variables that take the place of the options, for a Space."""
MOST_EXAMPLES = 12


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="A page in the browser: upload or pick a picture, see its detections, the uncertainty of their "
        "edges, and how many of them to expect to be right.",
    )
    options = (
        ("checkpoint", CHECKPOINT, None, "folder written by save_pretrained, or a Hub id (default: {})"),
        ("analysis", ANALYSIS, "JSON", "analysis.json of drmm analyze (default: {}, or the one beside the weights)"),
        ("examples", EXAMPLES, "FOLDER", "pictures to pick from (default: {}, or scenes if it knows their classes)"),
    )
    for name, variable, metavar, text in options:
        default = os.environ.get(variable)
        parser.add_argument(f"--{name}", default=default, metavar=metavar, help=text.format(f"${variable}"))
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also give it a public address through gradio's servers")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint:
        raise ValueError(f"--checkpoint is missing: give a folder or a Hub id, or set {CHECKPOINT}")
    require("gradio", "demo")
    examples = find_images([arguments.examples])[:MOST_EXAMPLES] if arguments.examples else []
    model, processor = load_detector(arguments.checkpoint, arguments.device)
    classes = list(label_names(model).values())
    measured = find_report(arguments.analysis, arguments.checkpoint, classes)
    launch_app(
        build_app(model, processor, measured, examples or example_scenes(classes)), arguments.port, arguments.share
    )


def find_report(analysis: str | None, checkpoint: str, classes: Sequence[str]) -> Measured | None:
    """What the named report, or the one published beside the weights, says of the checkpoint; None if there is none."""
    if analysis is None:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        analysis = cached_file(checkpoint, "analysis.json", **quiet)
    print(f"report: {analysis or 'none; the page cannot say how well the scores are calibrated, see --analysis'}")
    return load_measured(analysis, checkpoint, classes) if analysis else None


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must lie in 1..65535, not {value}")
    return value
