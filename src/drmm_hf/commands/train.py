"""`drmm train`: train or fine-tune a detector through Accelerate."""

import argparse
import shlex
from pathlib import Path

from accelerate import PartialState

from ..training import train
from ..training.checkpoints import Checkpoints
from ..training.config import config_from, parser

__all__ = ["parser", "run"]


def run(arguments: argparse.Namespace) -> None:
    """Train as the options say."""
    config = config_from(arguments)
    try:
        result = train(config)
    except KeyboardInterrupt as stop:
        if not PartialState().is_main_process:
            raise
        recipe = shlex.quote(f"{config.output}/recipe.yaml")
        hint = f"; go on with: drmm train --recipe {recipe} --resume"
        kept = Checkpoints(Path(config.output) / "checkpoints").paths()
        raise KeyboardInterrupt(f"{stop}{hint if kept else ''}") from stop
    if PartialState().is_main_process:
        headline = ("AP", "AP50", "AP75", "AR100", "ECE")
        print(" ".join(f"{name} {result.metrics[name]}" for name in headline if name in result.metrics))
        print(f"model: {result.model_dir}")
