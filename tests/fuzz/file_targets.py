"""Files with weights, and shards of data sets."""

import base64
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch

from drmm_hf import DrmmImageProcessor
from drmm_hf.conversion.files import read_released_file
from drmm_hf.data import load_detection_dataset, load_streaming_dataset
from drmm_hf.evaluation.loading import load_checkpoint
from fuzz.mutate import HOSTILE, mutate_bytes, mutate_json, mutate_value
from model_fixtures import NAMES, small_model

OBJECTS = {"bbox": [[1.0, 2.0, 5.0, 6.0]], "category": [1], "area": [30.0], "iscrowd": [0], "id": [4]}


class CheckpointTarget:
    """A folder of `save_pretrained` with one file changed."""

    name = "checkpoints"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def draw(self, random: Random) -> dict[str, str]:
        chance = random.random()
        if chance < 0.5:
            return {
                "weights": random.choice(
                    ("cut", "length", "header", "shape", "type", "drop", "extra", "flip", "empty")
                ),
                "seed": str(random.randrange(10**6)),
            }
        name = "config.json" if chance < 0.8 else "preprocessor_config.json"
        return {"file": name, "seed": str(random.randrange(10**6))}

    def run(self, value: dict[str, str], folder: Path) -> None:
        if not self.files:
            small_model().save_pretrained(folder / "right")
            DrmmImageProcessor().save_pretrained(folder / "right")
            self.files = {path.name: path.read_bytes() for path in (folder / "right").iterdir()}
        random = Random(value["seed"])
        model = folder / "model"
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir()
        files = dict(self.files)
        if "weights" in value:
            files["model.safetensors"] = spoil_safetensors(random, files["model.safetensors"], value["weights"])
        else:
            files[value["file"]] = mutate_json(random, json.loads(files[value["file"]])).encode("latin-1", "replace")
        for name, content in files.items():
            (model / name).write_bytes(content)
        load_checkpoint(str(model))

    def names(self, value: dict[str, str]) -> Sequence[str]:
        return ("model", "config.json")


class ReleasedTarget:
    """Released .pth and .safetensors files, damaged or full of something else."""

    name = "released"
    suffixes = ("pth", "safetensors", "zip", "old")

    def draw(self, random: Random) -> dict[str, str]:
        suffix = random.choice(self.suffixes)
        content = mutate_bytes(random, _released(suffix)) if random.random() < 0.9 else random.randbytes(200)
        return {"suffix": suffix, "content": base64.b64encode(content).decode()}

    def run(self, value: dict[str, str], folder: Path) -> None:
        path = folder / f"released.{value['suffix']}"
        path.write_bytes(base64.b64decode(value["content"]))
        read_released_file(path)

    def names(self, value: dict[str, str]) -> Sequence[str]:
        return (f"released.{value['suffix']}",)


class BackboneTarget:
    """Files of timm weights, damaged or with odd tensors."""

    name = "backbone"

    def __init__(self) -> None:
        self.model = small_model(num_stages=1, backbone_kwargs={"channels": [8] * 4, "stem_width": 4})
        self.state = self.model.model.backbone.model._backbone.state_dict()

    def draw(self, random: Random) -> dict[str, str]:
        how = random.choice(("bytes", "bytes", "drop", "type", "nan", "shape", "value", "name"))
        return {
            "suffix": random.choice(("pth", "safetensors", "old")),
            "how": how,
            "seed": str(random.randrange(10**6)),
        }

    def run(self, value: dict[str, str], folder: Path) -> None:
        random, state = Random(value["seed"]), dict(self.state)
        suffix, name = value["suffix"], random.choice(list(state))
        if value["how"] == "drop":
            del state[name]
        elif value["how"] == "type":
            state[name] = state[name].to(random.choice((torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn)))
        elif value["how"] == "nan":
            state[name] = torch.full_like(state[name].float(), random.choice((float("nan"), float("-inf"))))
        elif value["how"] == "shape":
            state[name] = torch.ones(random.choice(((0,), (), (2, 2), (1, 1, 1, 1, 1))))
        elif value["how"] == "value" and suffix != "safetensors":
            state[name] = random.choice(
                (None, "x", 3, [1], {}, torch.ones(2).to_sparse(), torch.ones(2, device="meta"))
            )
        elif value["how"] == "name":
            state[random.choice(("x", "") if suffix == "safetensors" else ("x", "", 3, None, (1,)))] = state.pop(name)
        content = _saved(state, suffix)
        path = folder / f"timm.{suffix}"
        path.write_bytes(mutate_bytes(random, content) if value["how"] == "bytes" else content)
        self.model.load_backbone(str(path))
        assert all(tensor.isfinite().all() for tensor in self.model.state_dict().values())

    def names(self, value: dict[str, str]) -> Sequence[str]:
        return (f"timm.{value['suffix']}",)


class TarTarget:
    """Streaming of changed tars."""

    name = "tars"

    def draw(self, random: Random) -> str:
        record = json.dumps({"objects": OBJECTS, "width": 16, "height": 12, "image_id": 3})
        if random.random() < 0.7:
            base = {"objects": OBJECTS, "width": 16, "height": 12, "image_id": 3}
            record = mutate_json(random, base)
        content = _tar(record.encode("latin-1", "replace"), random.choice(("a", "../a", "/a", "x/a.b", "")))
        if random.random() < 0.4:
            content = mutate_bytes(random, content)
        return base64.b64encode(content).decode()

    def run(self, value: str, folder: Path) -> None:
        folder.joinpath("train-000.tar").write_bytes(base64.b64decode(value))
        for row in load_streaming_dataset(folder, id2label=NAMES):
            assert len(row["objects"]["bbox"]) == len(row["objects"]["category"])

    def names(self, value: str) -> Sequence[str]:
        return ("tars",)


class ParquetTarget:
    """Parquet files with an odd schema or damaged bytes, read whole and as a stream."""

    name = "parquet"

    def draw(self, random: Random) -> dict[str, Any]:
        row = {"image_id": 3, "width": 16, "height": 12, "objects": OBJECTS}
        value = {"row": mutate_value(random, row), "stream": random.random() < 0.5}
        return {**value, "damage": random.randrange(10**6) if random.random() < 0.3 else 0}

    def run(self, value: dict[str, Any], folder: Path) -> None:
        row = value["row"] if isinstance(value["row"], dict) else {"objects": value["row"]}
        root = folder / "set"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        path = root / "train-00000.parquet"
        try:
            columns = {str(name): pa.array([entry, entry]) for name, entry in row.items()}
            columns["image"] = pa.array([{"bytes": _png(), "path": "a.png"}] * 2)
            pyarrow.parquet.write_table(pa.table(columns), path)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            return  # Arrow itself cannot hold this
        if value["damage"]:
            path.write_bytes(mutate_bytes(Random(value["damage"]), path.read_bytes()))
        if value["stream"]:
            list(load_streaming_dataset(root, id2label=NAMES))
        else:
            load_detection_dataset(root)

    def names(self, value: dict[str, Any]) -> Sequence[str]:
        return ("set", "id2label")


def spoil_safetensors(random: Random, content: bytes, how: str) -> bytes:
    """A safetensors file with something wrong in its header or its data."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = random.choice([key for key in header if key != "__metadata__"])
    if how == "cut":
        return content[: random.randrange(len(content))]
    if how == "length":
        return struct.pack("<Q", random.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))) + content[8:]
    if how == "flip":
        return mutate_bytes(random, content)
    if how == "empty":
        return b""
    if how == "header":
        return _safetensors(mutate_value(random, header), data)
    if how == "shape":
        header[name]["shape"] = random.choice(([1], [], [2**40, 2**40], [-1], header[name]["shape"][::-1]))
    elif how == "type":
        header[name]["dtype"] = random.choice(("F64", "I8", "BF16", "XX"))
    elif how == "extra":
        header["extra.weight"] = header[name]
    else:
        header[random.choice(("other", "", "model"))] = header.pop(name)
    return _safetensors(header, data)


def _safetensors(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@cache
def _released(suffix: str) -> bytes:
    state = {f"module.layer{i}.weight": torch.ones(2, 3) for i in range(3)}
    meta = {"CLASSES": ("a", "b"), "epoch": 3}
    return _saved(state if suffix == "safetensors" else {"state_dict": state, "meta": meta}, suffix)


def _saved(content: dict[Any, Any], suffix: str) -> bytes:
    if suffix == "safetensors":
        return safetensors.torch.save(content)
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=suffix != "old")
    return buffer.getvalue()


@cache
def _png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 12)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(record: bytes, key: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in ((f"{key}.png", _png()), (f"{key}.json", record)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


datasets.disable_progress_bars()
__all__ = ["HOSTILE", "BackboneTarget", "CheckpointTarget", "ParquetTarget", "ReleasedTarget", "TarTarget"]
