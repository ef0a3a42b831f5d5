"""Shards for the tests: WebDataset tars, and parquet files of generated scenes."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from drmm_hf.data import load_detection_dataset

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


def write_parquet(scenes: Path, folder: Path) -> Path:
    """Scenes as parquet files, the training split in four and the other one in one file; the folder of all."""
    for split, count in (("train", 4), ("val", 1)):
        rows = load_detection_dataset(scenes, split).dataset
        for index in range(count):
            shard = rows.shard(count, index).cast_column("image", datasets.Image())
            shard.to_parquet(folder / f"{split}-{index:05d}-of-{count:05d}.parquet", batch_size=100)
    return folder


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
