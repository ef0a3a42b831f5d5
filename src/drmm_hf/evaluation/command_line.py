"""What the evaluation commands share: arguments, JSON output, and one line instead of a traceback."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from ..out_of_memory import is_out_of_memory

FAILED, INTERRUPTED = 2, 130

# Made once: `json.dumps` with an option makes an encoder for every call.
to_json = json.JSONEncoder(allow_nan=False).encode
"""Standard JSON on one line; a `ValueError` for nan and infinity, which other readers refuse."""


def add_model_arguments(parser: argparse.ArgumentParser, instead_of_model: Mapping[str, str] | None = None) -> None:
    """Arguments of every command that runs a model.

    Args:
        parser: to add them to.
        instead_of_model: options, and what they are, of which one may take the place of `--model`.
    """
    model_help = "folder written by save_pretrained, or a Hub id"
    if instead_of_model:
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("--model", help=model_help)
        for option, text in instead_of_model.items():
            source.add_argument(option, help=text)
    else:
        parser.add_argument("--model", required=True, help=model_help)
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images at once (default: 8)")
    parser.add_argument("--top-k", type=positive_int, default=100, help="detections an image (default: 100)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def program(name: str) -> str:
    """What the user typed to run a command: `drmm-NAME` where the package is installed, otherwise `NAME.py`."""
    typed = Path(sys.argv[0]).stem
    return typed if typed == f"drmm-{name}" else f"{name}.py"


def run_command(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Exit status of `run`; an error about the input becomes one line on stderr and status 2, Ctrl-C one and 130."""
    try:
        return run(arguments)
    except (MemoryError, RuntimeError) as error:
        if arguments.debug or not is_out_of_memory(error):
            raise
        batch_size = getattr(arguments, "batch_size", None)  # not every command has one
        hint = "" if batch_size is None else f"; lower --batch-size (now {batch_size})"
        print(f"error: out of memory{hint}", file=sys.stderr)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        hint = "; the same command with --resume goes on from here" if hasattr(arguments, "resume") else ""
        print(f"interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return FAILED


def make_output_folder(path: str) -> Path:
    """Create the folder before the work starts, so that an unusable one costs no time."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output {folder}: a file is in the way; choose another folder") from error
    return folder


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """What goes wrong while something is written there, such as a full disk, becomes an OSError that names the place.

    safetensors has an error of its own for it, and the system's names no file once it is open.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(f"{place}: cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing."""
    with _replacing(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write standard JSON (no nan or infinity, which other readers refuse), all of it or nothing; a list has one entry
    a line.
    """
    if isinstance(content, list):
        write_json_lines(path, map(to_json, content))
    else:
        with _replacing(path) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, entries: Iterable[str]) -> None:
    """Write a JSON list, whose entries are JSON text already, as they come; all of it or nothing."""
    with _replacing(path) as file:
        separator = "[\n"
        for entry in entries:
            file.write(separator + entry)
            separator = ",\n"
        file.write("\n]\n" if separator == ",\n" else "[]\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A file that takes its place when it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    with writing(path), unfinished.open("w", encoding="utf-8") as file:
        yield file
    unfinished.replace(path)


def positive_int(text: str) -> int:
    """argparse type of a number of things."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def count(text: str) -> int:
    """argparse type of a number of things that may be none."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def fraction(text: str) -> float:
    """argparse type of a score."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], not {text}")
    return value
