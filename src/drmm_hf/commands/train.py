"""`drmm train`: train or fine-tune a detector through Accelerate."""

import argparse
import shlex
from pathlib import Path

from accelerate import PartialState

from ..data.splits import usual_name
from ..training import TrainConfig, TrainResult, train
from ..training.checkpoints import Checkpoints
from ..training.config import config_from, parser

__all__ = ["parser", "run"]
_HEADLINE = ("AP", "AP50", "AR100", "ECE", "D-ECE")


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
        kept = Checkpoints(Path(config.output)).paths()
        raise KeyboardInterrupt(f"{stop}{hint if kept else ''}") from stop
    if PartialState().is_main_process:
        print(summary(config, result))


def summary(config: TrainConfig, result: TrainResult) -> str:
    """What came out, where it lies, and the commands that go on from there."""
    model, lines = str(result.model_dir), []
    numbers = [f"{name} {value}" for name in _HEADLINE if (value := result.metrics.get(name)) is not None]
    if numbers:
        lines.append(f"{config.eval_split} ({result.metrics['eval_images']} images)   " + "   ".join(numbers))
    lines.append(f"model     {model}")
    if result.deployed_dir:
        kind = type(result.model.detector).__name__
        lines.append(f"deployed  {result.deployed_dir}    (the same as {kind}, which needs transformers alone)")
    if numbers and not config.streaming:
        options = {
            "--data": config.data or ".",
            "--split": "" if usual_name(config.eval_split) == "val" else config.eval_split,
            "--annotations": config.eval_annotations,
            "--images": config.eval_images,
            "--image-frame": "" if config.image_frame == "upright" else config.image_frame,
            "--output": f"{config.output}/report",
        }
        words = [word for option, value in options.items() if value for word in (option, value)]
        lines.append(f"how far its scores can be trusted:  {shlex.join(['drmm', 'analyze', '--model', model, *words])}")
    lines.append(f"your own pictures:  {shlex.join(['drmm', 'predict', '--model', model])} IMAGES --output drawn")
    return "\n".join(lines)
