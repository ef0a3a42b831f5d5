"""The command line of `scripts/train.py`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from ..evaluation.command_line import INTERRUPTED, program, run_command
from .checkpoints import Checkpoints
from .loop import train
from .options import parse_config


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the options say; exit status 0, 2 with one line on stderr for bad input, or 130 after Ctrl-C."""
    config = parse_config(argv)

    def run(_: argparse.Namespace) -> int:
        try:
            result = train(config)
        except KeyboardInterrupt as stop:
            if PartialState().is_main_process:
                kept = Checkpoints(Path(config.output) / "checkpoints")
                recipe = shlex.quote(f"{config.output}/recipe.yaml")
                hint = f"; go on with: {program('train')} --recipe {recipe} --resume"
                print(f"\ninterrupted {stop}".rstrip() + hint * bool(kept), file=sys.stderr)
            return INTERRUPTED
        if not PartialState().is_main_process:
            return 0
        summary = {
            name: result.metrics[name] for name in ("AP", "AP50", "AP75", "AR100", "ECE") if name in result.metrics
        }
        print(" ".join(f"{name} {value}" for name, value in summary.items()))
        print(f"model: {result.model_dir}")
        return 0

    status = run_command(run, argparse.Namespace(batch_size=config.batch_size, debug=config.debug))
    if status != INTERRUPTED:  # then the other processes do not answer
        PartialState().destroy_process_group()
    return status
