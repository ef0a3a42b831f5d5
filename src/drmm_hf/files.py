"""Files: JSON read with one clear error and written whole or not at all, output folders, and optional modules."""

import contextlib
import gc
import importlib
import itertools
import json
import math
import uuid
from collections.abc import Container, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# Made once: `json.dumps` with an option makes an encoder for every call.
to_json = json.JSONEncoder(allow_nan=False).encode
"""Standard JSON on one line; a `ValueError` for nan and infinity, which other readers refuse."""


def require(module: str, extra: str) -> Any:
    """An optional module; an ImportError that names the package's extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing ({error}): pip install 'drmm-hf[{extra}]'") from error


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Millions of new objects, none of them garbage, would have the collector walk through all of them many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collection_paused()
def read_json(path: str | PathLike[str]) -> Any:
    """Content of a JSON file; a `FileNotFoundError` or `ValueError` that names the file otherwise."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(Path(path).read_bytes())
    except (UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "it is not text"
        raise ValueError(f"{path}: not a JSON file ({reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file may be cut short"
        ) from error


def to_plain(value: Any) -> Any:
    """Plain values for JSON: lists for tuples, None for nan and infinity, text for keys."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def numbered(name: str, taken: Container[str]) -> str:
    """The name, or name-2, name-3 and so on: the first that, in small letters, is not `taken`."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in names if one.lower() not in taken)


def make_output_folder(path: str) -> Path:
    """Create the folder before the work starts, so that an unusable one costs no time."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output {folder}: a file is in the way; choose another folder") from error
    except OSError as error:
        raise OSError(f"--output {folder}: cannot be made ({error.strerror}); choose another folder") from error
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
    """Write a text file, all of it or nothing, whoever else writes there at the same time."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with writing(path), unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def json_text(content: Any) -> str:
    """Standard JSON, without nan and infinity, which other readers refuse; a list has one entry a line."""
    if isinstance(content, list):
        return "[\n" + ",\n".join(map(to_json, content)) + "\n]\n"
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `json_text` has it, all of it or nothing."""
    write_text(path, json_text(content))
