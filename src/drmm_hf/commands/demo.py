"""`drmm demo`: detections of a checkpoint in the browser."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from transformers.utils import cached_file

from ..demo import Measured, example_files, example_scenes, load_measured
from ..demo_page import build_app, import_gradio, launch_app
from ..loading import label_names, load_detector

CHECKPOINT, ANALYSIS, EXAMPLES = "DRMM_CHECKPOINT", "DRMM_ANALYSIS", "DRMM_EXAMPLES"
"""Environment variables that take the place of the options, for a Space."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="A page in the browser: upload or pick a picture, see its detections, the uncertainty of their "
        "edges, and how many of them to expect to be right.",
    )
    parser.add_argument(
        "--checkpoint",
        default=os.environ.get(CHECKPOINT),
        help=f"folder written by save_pretrained, or a Hub id (default: the environment's {CHECKPOINT})",
    )
    parser.add_argument(
        "--analysis",
        default=os.environ.get(ANALYSIS),
        metavar="JSON",
        help=f"the analysis.json of drmm analyze (default: {ANALYSIS}, or the one beside the weights, if any)",
    )
    parser.add_argument(
        "--examples",
        default=os.environ.get(EXAMPLES),
        metavar="FOLDER",
        help=f"pictures to pick from (default: {EXAMPLES}, or generated scenes if the model knows their classes)",
    )
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also give it a public address through gradio's servers")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    if not arguments.checkpoint:
        raise ValueError(f"--checkpoint is missing: give a folder or a Hub id, or set {CHECKPOINT}")
    import_gradio()
    own = example_files(arguments.examples) if arguments.examples else None
    model, processor = load_detector(arguments.checkpoint, arguments.device)
    classes = list(label_names(model).values())
    measured = find_report(arguments.analysis, arguments.checkpoint, classes)
    examples: Sequence[Image.Image | str] = example_scenes(classes) if own is None else own
    launch_app(build_app(model, processor, measured, examples), arguments.port, arguments.share)
    return 0


def find_report(analysis: str | None, checkpoint: str, classes: Sequence[str]) -> Measured | None:
    """What the named report, or the one beside the weights, says of the checkpoint; None if there is none."""
    path = analysis or _beside_weights(checkpoint)
    if path is None:
        print("no report: the page cannot say how well the scores are calibrated; see --analysis")
        return None
    print(f"report: {path}")
    return load_measured(path, checkpoint, classes)


def _beside_weights(checkpoint: str) -> str | None:
    """The report that was published with the checkpoint; None if there is none, or no line to the Hub."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / "analysis.json"
        return str(path) if path.is_file() else None
    found: str | None = cached_file(
        checkpoint,
        "analysis.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must lie in 1..65535, not {value}")
    return value
