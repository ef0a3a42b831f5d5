"""The command `drmm`: one subcommand a module of `commands/`, one line instead of a traceback for a user's mistake.

A command module has `parser()`, its `argparse.ArgumentParser`, and `run(arguments)`, which returns an exit status or
None. `scripts/NAME.py`, with `_` for `-`, is the same subcommand, for `accelerate launch scripts/train.py` and a
checkout that is not installed.
"""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence

from huggingface_hub import utils as hub
from transformers.utils import logging as transformers_logging

from . import __version__

FAILED, INTERRUPTED = 2, 130

COMMANDS = {
    "quickstart": "look at a small detector, fine-tune it, measure it",
    "check-data": "what a training will find in a data set",
    "train": "train or fine-tune a detector",
    "evaluate": "COCO accuracy and calibration of a detector, or of a file of results",
    "predict": "detect objects in pictures and draw them",
    "analyze": "one page on how far scores can be trusted",
    "export": "ONNX or torch.export, checked against the checkpoint",
    "convert": "released checkpoints of D-RMM, Sparse R-CNN and AdaMixer, and back",
    "cards": "model cards from what was measured",
    "publish": "put a checkpoint on the Hub",
    "demo": "detections in the browser",
    "presets": "the named configurations, with parameters and multiply-adds",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `drmm COMMAND ...`.

    Returns:
        0, what the command returns, 2 after one line on stderr for bad input, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: drmm COMMAND [options]\n")
        print("\n".join(f"  {name:11} {text}" for name, text in COMMANDS.items()))
        print("\n`drmm COMMAND --help` says what a command takes.")
        return 0 if words else FAILED
    if words[0] == "--version":
        print(f"drmm-hf {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        print(f"error: drmm has no command {name!r}" + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
        return FAILED
    try:
        command = importlib.import_module(f"drmm_hf.commands.{name.replace('-', '_')}")
    except ImportError as error:  # an extra is not installed
        if "--debug" in rest:
            raise
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    _quiet()
    parser = command.parser()
    parser.prog = f"drmm {name}"
    if not any("--debug" in action.option_strings for action in parser._actions):
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return run_command(command.run, parser.parse_args(rest))


def _quiet() -> None:
    """Without bars of a second and notes that mean nothing here; bars of downloads stay."""
    downloads = not hub.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # "Loading weights", "Writing model shards"; turns off the Hub's, too
    if downloads:
        hub.enable_progress_bars()
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # lists layers that share their weights


def run_command(run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace) -> int:
    """Exit status of `run(arguments)`; an error about the input is one line on stderr and 2, Ctrl-C one and 130.

    However it ends, the process group that the command joined ends with it.
    """
    debug = getattr(arguments, "debug", False)
    try:
        return run(arguments) or 0
    except (MemoryError, RuntimeError) as error:
        if debug or not is_out_of_memory(error):
            raise
        batch_size = getattr(arguments, "batch_size", None)  # not every command has one
        hint = "" if batch_size is None else f"; lower --batch-size (now {batch_size})"
        print(f"error: out of memory{hint}", file=sys.stderr)
    except KeyboardInterrupt as stop:
        if debug:
            raise
        print(f"interrupted {stop}".rstrip(), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
    finally:
        _leave_process_group()
    return FAILED


def _leave_process_group() -> None:
    """A process that ends with the threads of a group still running is aborted, and its launcher calls that a failure.

    The processes of one command do not end together: the first one still writes when the others are done.
    """
    distributed = sys.modules.get("torch.distributed")  # nobody joined a group who has not imported it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, did not suffice.

    It has a type of its own on a GPU, in Python and in numpy, but none in torch's CPU allocator.
    """
    words = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs a model, but the model itself."""
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images at once (default: 8)")
    parser.add_argument("--top-k", type=positive_int, default=100, help="detections an image (default: 100)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")


def add_data_arguments(parser: argparse.ArgumentParser, data: str, *, required: bool = True) -> None:
    """Options of every command that reads a split of a labeled data set, of which `data` says what it may be."""
    parser.add_argument("--data", required=required, help=data)
    parser.add_argument("--split", default="val", help="split of the data set (default: val)")
    parser.add_argument("--annotations", help="annotation file, if not where the split's is looked for")
    parser.add_argument("--images", help="image folder, if not where the split's is looked for")
    add_frame_argument(parser)
    parser.add_argument("--workers", type=count, default=0, help="threads that read images (default: 0)")


def add_frame_argument(parser: argparse.ArgumentParser) -> None:
    """The option of every command that reads images which may have an EXIF orientation."""
    parser.add_argument(
        "--image-frame",
        choices=("upright", "stored"),
        default="upright",
        help="turn images by their EXIF orientation, as viewers do, or take the pixels as they are stored (default: "
        "upright); boxes are in pixels of that",
    )


def positive_int(text: str) -> int:
    """argparse type of a number of things."""
    return _at_least(1, int(text))


def count(text: str) -> int:
    """argparse type of a number of things that may be none."""
    return _at_least(0, int(text))


def fraction(text: str) -> float:
    """argparse type of a score."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], not {text}")
    return value


def _at_least(low: int, value: int) -> int:
    if value < low:
        raise argparse.ArgumentTypeError(f"must be at least {low}, not {value}")
    return value
