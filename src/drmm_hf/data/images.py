"""Reading one image file: RGB, in the stored-pixel frame, with errors that name the file."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.ExifTags
import PIL.Image

LIMIT_VARIABLE = "DRMM_MAX_IMAGE_PIXELS"
"""Environment variable: images of more pixels are refused; without it those of twice PIL's `MAX_IMAGE_PIXELS`."""

Size = tuple[int, int]
"""`(height, width)` in pixels."""


if LIMIT_VARIABLE in os.environ:  # here, so that it holds in the worker processes, too
    _limit = os.environ[LIMIT_VARIABLE]
    if not _limit.isdecimal() or not int(_limit):
        raise ValueError(f"{LIMIT_VARIABLE} is {_limit!r}: give the most pixels of an image as a whole number above 0")
    PIL.Image.MAX_IMAGE_PIXELS = (int(_limit) + 1) // 2  # PIL warns from half of it on


@dataclass(frozen=True)
class DecodedImage:
    """An RGB image that may be smaller than the stored one.

    `scale` is `(x, y)`: pixels of `image` per stored pixel; `stored_size` the `(height, width)` of the stored
    image, whose right and lower edges lie at `stored_size * scale`. With JPEG files of odd size that is up to
    one pixel before the edges of `image`.
    """

    image: PIL.Image.Image
    scale: tuple[float, float]
    stored_size: Size


def open_image(path: str | PathLike[str]) -> PIL.Image.Image:
    """Decode one image file completely to RGB.

    The EXIF orientation is **not** applied: COCO boxes live in the frame of the stored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, unreadable, not 8 bits a channel, or of so many pixels that it seems made to
            fill the memory (`LIMIT_VARIABLE` raises the limit).
    """
    return decode_image({"image": path})


def decode_image(example: Mapping[str, Any]) -> PIL.Image.Image:
    """Decode the image of one dataset example to RGB (stored-pixel frame, no EXIF rotation).

    Args:
        example: a row with `image`, and optionally `width` and `height`, which are then checked. `image` is
            what `datasets.Image(decode=False)` gives (`{"path", "bytes"}`), a path, or a PIL image.

    Raises:
        FileNotFoundError, ValueError: as `open_image`, or the image has another size.
    """
    return decode_image_at_least(example).image


def decode_image_at_least(example: Mapping[str, Any], needed: Callable[[Size], Size] | None = None) -> DecodedImage:
    """Decode an example's image, possibly smaller than stored, never smaller than needed.

    JPEG files can be decoded at 1/2, 1/4 or 1/8 of their size in less time.

    Args:
        example: as in `decode_image`.
        needed: gives, for the stored size, the smallest that will do; None for all pixels.
    """
    with _opened(example) as (image, name):
        _check_size(image, name, example)
        stored, scale = (image.height, image.width), (1.0, 1.0)
        try:
            if needed is not None and image is not example["image"]:  # the caller's own image stays as it is
                scale = _draft(image, needed(stored))
            image.load()
        except Exception as error:  # damaged files have decoders raise anything
            raise _unreadable(name, error) from error
        return DecodedImage(_to_rgb(image, name), scale, stored)


def stored_size(example: Mapping[str, Any]) -> Size:
    """`(height, width)` of an example's image in stored pixels, read from the header alone.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    with _opened(example) as (image, _):
        return image.height, image.width


def exif_orientation(example: Mapping[str, Any]) -> int:
    """The EXIF orientation of an example's image, 1 for one that is stored upright, read from the header alone.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    with _opened(example) as (image, _):
        return int(image.getexif().get(PIL.ExifTags.Base.Orientation, 1))


class ImageCache:
    """Keeps images as uint8 arrays until `max_bytes` are used; the others are decoded every time.

    Nothing is evicted: when an epoch visits every image once in random order, keeping a fixed subset serves
    more requests than keeping the latest. Every process has its own cache, so the bound holds per DataLoader
    worker.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"cache_bytes={max_bytes}: must not be negative")
        self.max_bytes, self.used_bytes = max_bytes, 0
        self._images: dict[Path, tuple[np.ndarray, Size]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker gets the transform by pickle: sending the pixels costs more than decoding them again.
        return {"max_bytes": self.max_bytes, "used_bytes": 0, "_images": {}}

    def get(self, example: Mapping[str, Any], needed: Callable[[Size], Size]) -> DecodedImage:
        """The image of an example, downscaled to the size that is needed.

        Only images that come from a file are kept, under its path. `needed` gives
        the size from the stored one, and must always give the same.
        """
        source, _ = _image_source(example)
        if isinstance(source, Path) and source in self._images:
            pixels, stored = self._images[source]
            image = PIL.Image.fromarray(pixels)
        else:
            image = decode_image(example)
            stored = image.height, image.width
            height, width = needed(stored)
            if height < stored[0] and width < stored[1]:
                image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
            if isinstance(source, Path) and self.used_bytes + pixels.nbytes <= self.max_bytes:
                self._images[source] = pixels, stored
                self.used_bytes += pixels.nbytes
        return DecodedImage(image, (image.width / stored[1], image.height / stored[0]), stored)


def _image_source(example: Mapping[str, Any]) -> tuple[Path | BinaryIO | PIL.Image.Image, str]:
    """Where an example's pixels come from, and a name for error messages."""
    value = example["image"]
    label = f"image {example['image_id']}" if "image_id" in example else "image"
    if isinstance(value, PIL.Image.Image):
        return value, getattr(value, "filename", "") or label
    if isinstance(value, (str, PathLike)):
        return Path(value), str(value)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return io.BytesIO(value["bytes"]), value.get("path") or label
    if isinstance(value, Mapping) and value.get("path"):
        return Path(value["path"]), value["path"]
    raise ValueError(
        f"{label}: `image` holds {type(value).__name__} without a path or bytes; give a file path, a PIL "
        "image or the value of a `datasets.Image` column"
    )


@contextlib.contextmanager
def _opened(example: Mapping[str, Any]) -> Iterator[tuple[PIL.Image.Image, str]]:
    """An example's image, of which only the header has been read, and its name."""
    source, name = _image_source(example)
    if isinstance(source, PIL.Image.Image):
        yield source, name
        return
    try:
        image = PIL.Image.open(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image file; restore it or remove it from the annotations") from None
    except Exception as error:
        raise _unreadable(name, error) from error
    with image:
        if image.format == "EPS":
            raise ValueError(f"{name}: is PostScript, a program that Ghostscript would run; convert it to PNG or JPEG")
        yield image, name


def _draft(image: PIL.Image.Image, minimum_size: Size) -> tuple[float, float]:
    """Ask a JPEG decoder for a smaller image; the scale (x, y) that it will really use."""
    width, height = image.size
    drafted = image.draft("RGB", (minimum_size[1], minimum_size[0]))
    if drafted is None:
        return 1.0, 1.0
    # PIL reports the extent of the stored image in drafted pixels as floats, before rounding up.
    _, (_, _, extent_x, extent_y) = drafted
    return extent_x / width, extent_y / height


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name}: has pixel mode {image.mode!r} (more than 8 bits a channel), whose range is unknown; "
            "convert it to 8 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    rgb = image.convert("RGB")  # always a copy
    # Without metadata nothing downstream (transformers' load_image does) can rotate it away from its boxes.
    rgb.info = {}
    return rgb


def _check_size(image: PIL.Image.Image, name: str, example: Mapping[str, Any]) -> None:
    """Refuse an image that is not as large as the annotations say."""
    height, width = example.get("height"), example.get("width")
    if height is None or width is None or image.size == (width, height):
        return
    hint = " (made on an EXIF-rotated copy?)" if image.size == (height, width) else ""
    raise ValueError(
        f"{name}: is {image.width}x{image.height} pixels, but the annotations say width={width}, "
        f"height={height}{hint}; replace the image or correct the annotations"
    )


def _unreadable(name: str, error: Exception) -> ValueError:
    """What is said of a file that PIL cannot open or decode."""
    if isinstance(error, PIL.Image.DecompressionBombError):
        return ValueError(
            f"{name}: has too many pixels, as files have that are made to fill the memory ({error}); if it is right, "
            f"set the environment variable {LIMIT_VARIABLE} to the number of pixels to allow, or scale it down"
        )
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    reason = "not a readable image" if unknown else str(error)[:300] or type(error).__name__
    return ValueError(
        f"{name}: the image cannot be decoded ({reason}); replace the file, or remove it and its annotations"
    )
