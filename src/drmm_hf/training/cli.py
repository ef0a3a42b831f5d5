"""The command line of `scripts/train.py`."""

import argparse
import signal
import sys
from collections.abc import Sequence

from accelerate import PartialState

from ..evaluation.command_line import run_command
from .loop import train
from .options import parse_config


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the options say; exit status 0, or 2 with one line on stderr for bad input."""
    config = parse_config(argv)

    def run(_: argparse.Namespace) -> int:
        result = train(config)
        if not PartialState().is_main_process:
            return 0
        summary = {
            name: result.metrics[name] for name in ("AP", "AP50", "AP75", "AR100", "ECE") if name in result.metrics
        }
        print(" ".join(f"{name} {value}" for name, value in summary.items()))
        print(f"model: {result.model_dir}")
        return 0

    try:
        status = run_command(run, argparse.Namespace(batch_size=config.batch_size, debug=config.debug))
    except KeyboardInterrupt:
        hint = f"; add --resume to go on from the last checkpoint in {config.output}" if config.save_every else ""
        print(f"\ninterrupted{hint}", file=sys.stderr)
        return 128 + signal.SIGINT
    PartialState().destroy_process_group()
    return status
