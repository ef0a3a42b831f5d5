"""WebDataset tars for the tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

BOX = {"bbox": [[1, 1, 4, 4]], "category": [0]}


def write_tar(path: Path, files: Mapping[str, Any]) -> None:
    """A tar of files, by their names: bytes, or what becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def png(width: int = 16, height: int = 8) -> bytes:
    """A black picture."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def samples(keys: Iterable[Any]) -> dict[str, Any]:
    """The files of black pictures with one box each."""
    files: dict[str, Any] = {}
    for key in keys:
        files |= {f"{key}.png": png(), f"{key}.json": {"objects": BOX}}
    return files
