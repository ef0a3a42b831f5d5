"""Pixels: image files of every kind, and arrays for the image processor."""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
import transformers

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import TrainTransform, open_image
from drmm_hf.data.images import decode_image_at_least
from drmm_hf.evaluation.predict_cli import open_upright
from fuzz.mutate import mutate_bytes, mutate_value

_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "tif": ("1", "L", "RGB", "CMYK", "F", "I", "LAB", "YCbCr"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P", "RGB"),
    "bmp": ("1", "L", "RGB"),
    "jp2": ("L", "RGB", "RGBA"),
    "ppm": ("L", "RGB"),
    "ico": ("RGBA",),
    "tga": ("RGB",),
    "eps": ("RGB",),
    "pdf": ("RGB",),
}
_SIZES = ((16, 12), (1, 1), (3000, 1), (1, 300), (40, 40))


class ImageTarget:
    """Reading damaged image files, as training, evaluation and prediction read them."""

    name = "images"

    def draw(self, random: Random) -> dict[str, str]:
        if random.random() < 0.05:
            content = random.choice((png_that_claims, tiff_that_claims))(*random.choice(CLAIMS))
            return {"suffix": "png", "content": base64.b64encode(content).decode()}
        suffix = random.choice(list(_MODES))
        content = _picture(suffix, random.choice(_MODES[suffix]), random.choice(_SIZES), random.random() < 0.3)
        if random.random() < 0.95:
            content = mutate_bytes(random, content)
        if random.random() < 0.1:
            suffix = random.choice(list(_MODES))
        return {"suffix": suffix, "content": base64.b64encode(content).decode()}

    def run(self, value: dict[str, str], folder: Path) -> None:
        path = folder / f"picture.{value['suffix']}"
        path.write_bytes(base64.b64decode(value["content"]))
        assert open_image(path).mode == "RGB"
        open_upright(path)
        decode_image_at_least({"image": str(path)}, lambda size: (6, 8))
        row = {"image": {"path": str(path), "bytes": None}, "objects": {"bbox": [], "category": [], "iscrowd": []}}
        with PIL.Image.open(path) as image:
            row |= {"width": image.width, "height": image.height}
            if max(image.size) > 100:
                return
        TrainTransform((32, 32))(row)

    def names(self, value: dict[str, str]) -> Sequence[str]:
        return (f"picture.{value['suffix']}",)


class ProcessorTarget:
    """The image processor with odd arrays and options."""

    name = "processor"
    interfaces = (str(Path(transformers.__file__).parent),)
    options: ClassVar = {
        "size": {"height": 16, "width": 24},
        "pad_size": {"height": 32, "width": 32},
        "size_divisor": 8,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
        "rescale_factor": 0.1,
        "do_pad": True,
        "do_resize": True,
        "do_normalize": True,
        "resample": 2,
    }
    shapes = (
        *((12, 16), (12, 16, 3), (3, 12, 16), (1, 12, 16), (12, 16, 1), (4, 12, 16), (12, 16, 4), (1, 1, 3), (1, 1)),
        *((), (5,), (0, 16), (12, 0, 3), (3, 0, 0), (0, 12, 16), (12, 16, 0), (2, 12, 16), (12, 16, 7), (1, 3, 8, 8)),
        *((3, 3, 3), (3, 1, 300), (300, 1, 3)),
    )
    types = ("uint8", "bool", "float32", "float64", "float16", "int64", "int8", "uint16", "complex64", "object", "str")

    def draw(self, random: Random) -> dict[str, Any]:
        images = [
            {
                "shape": random.choice(self.shapes[:9] if random.random() < 0.7 else self.shapes),
                "type": random.choice(self.types[:1] if random.random() < 0.6 else self.types),
                "fill": random.choice((0, 1, 255, -1, 1e30, "nan", "inf")),
                "as": random.choice(("numpy", "numpy", "torch", "list", "pil", "none", "text")),
            }
            for _ in range(random.choice((1, 1, 2, 0)))
        ]
        options = {key: v for key, v in self.options.items() if random.random() < 0.3}
        if random.random() < 0.5:
            options = mutate_value(random, options)
        return {"images": images, "options": options if isinstance(options, dict) else {"size": options}}

    def run(self, value: dict[str, Any], folder: Path) -> None:
        images = [_array(spec) for spec in value["images"]]
        processor = DrmmImageProcessor(**{"size": {"shortest_edge": 16, "longest_edge": 32}, **value["options"]})
        batch = processor(images[0] if len(images) == 1 else images, return_tensors="pt")
        assert batch["pixel_values"].dim() == 4

    def names(self, value: dict[str, Any]) -> Sequence[str]:
        return ("image", *self.options)


@cache
def _picture(suffix: str, mode: str, size: tuple[int, int], extras: bool) -> bytes:
    """A right picture; with extras several frames, EXIF and a color profile where the format has them."""
    if suffix == "ico":  # which has no others
        size = (16, 16)
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    image = PIL.Image.fromarray(pixels)
    if mode == "I;16":
        image = PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode == "LAB":
        image = PIL.Image.frombytes("LAB", size, pixels.tobytes())
    else:
        image = image.convert(mode)
    options: dict[str, Any] = {}
    if extras and suffix in ("gif", "webp", "png", "tif"):
        options = {"save_all": True, "append_images": [image.rotate(90 * i) for i in range(1, 4)]}
    if extras and suffix in ("jpg", "png", "webp", "tif"):
        exif = PIL.Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "text"
        options["exif"] = exif
    if extras and suffix in ("jpg", "png"):
        options["icc_profile"] = bytes(range(200))
    buffer = io.BytesIO()
    format_ = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    image.save(buffer, format_, **options)
    return buffer.getvalue()


CLAIMS = ((65_535, 65_535), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (30_000, 30_000), (9000, 9000), (2**32 - 1, 5))


def png_that_claims(width: int, height: int) -> bytes:
    """A png of a few bytes whose header gives this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tiff_that_claims(width: int, height: int) -> bytes:
    """A tiff of a few bytes whose header gives this size."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _array(spec: dict[str, Any]) -> Any:
    if spec["as"] in ("none", "text"):
        return None if spec["as"] == "none" else "no/such/picture.png"
    fill = float(spec["fill"])
    with np.errstate(all="ignore"):
        values = np.full(tuple(spec["shape"]), fill)
        if spec["type"] in ("uint8", "uint16", "int8", "int64", "bool"):
            values = np.nan_to_num(values, posinf=0).clip(-(2**31), 2**31)
        array = np.asarray(values.astype(spec["type"]))
    if spec["as"] == "torch" and isinstance(array, np.ndarray) and array.dtype.kind not in "OU":
        return torch.from_numpy(array)
    if spec["as"] == "list":
        return array.tolist()
    if spec["as"] == "pil" and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return PIL.Image.fromarray(array)
    return array
