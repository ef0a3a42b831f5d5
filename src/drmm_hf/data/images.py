"""Reading one image file: upright, 8-bit RGB, with errors that name the file."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import PIL.Image
from PIL import ExifTags

from ..image_processing_drmm import to_rgb

LIMIT_VARIABLE = "DRMM_MAX_IMAGE_PIXELS"
"""Environment variable: images of more pixels are refused; without it those of twice PIL's `MAX_IMAGE_PIXELS`."""

Number = TypeVar("Number", int, float)
Size = tuple[int, int]
"""`(height, width)` in pixels."""

ImageFrame = Literal["upright", "stored"]
"""How images are read, and so what pixels their annotations are counted in.

`upright`: turned by their EXIF orientation, as browsers, annotation tools and transformers' `load_image` show them.
`stored`: as the pixels lie in the file, for annotations that were drawn by a tool that passes over the orientation.
A row says which by its `image_frame`; without it, it is upright.
"""

if LIMIT_VARIABLE in os.environ:  # here, so that it holds in the worker processes, too
    _limit = os.environ[LIMIT_VARIABLE]
    if not _limit.isdecimal() or not int(_limit):
        raise ValueError(f"{LIMIT_VARIABLE} is {_limit!r}: give the most pixels of an image as a whole number above 0")
    PIL.Image.MAX_IMAGE_PIXELS = (int(_limit) + 1) // 2  # PIL warns from half of it on

_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright; from 5 on height and width change places."""
_BACK = {6: 8, 8: 6}
"""The orientations whose turn is undone by that of another."""


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file tells: its stored size, and its EXIF orientation, 1 for none."""

    stored: Size
    orientation: int

    @property
    def turned(self) -> bool:
        """Whether the orientation changes the picture."""
        return self.orientation != 1

    @property
    def upright(self) -> Size:
        """The size of the upright picture."""
        return _swap(self.stored) if self.orientation >= 5 else self.stored


@dataclass(frozen=True)
class DecodedImage:
    """An RGB image that may be smaller than the one in the file.

    `size` is the whole image's `(height, width)`, in its frame, and `scale` is `(x, y)`: pixels of `image` per pixel of
    it. Its right and lower edges lie at `size * scale`; with JPEG files of odd size that is up to one pixel before the
    edges of `image`.
    """

    image: PIL.Image.Image
    scale: tuple[float, float]
    size: Size


def open_image(path: str | PathLike[str]) -> PIL.Image.Image:
    """Decode one image file completely to upright RGB (`to_rgb`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, unreadable, of values outside the range that they may have, or of so many
            pixels that it seems made to fill the memory (`LIMIT_VARIABLE` raises the limit).
    """
    return decode_image({"image": path})


def decode_image(example: Mapping[str, Any]) -> PIL.Image.Image:
    """Decode the image of one dataset example to RGB, in its frame (see `ImageFrame`).

    Args:
        example: a row with `image`, and optionally `width` and `height`, which are then checked, and `image_frame`.
            `image` is what `datasets.Image(decode=False)` gives (`{"path", "bytes"}`), a path, or a PIL image.

    Raises:
        FileNotFoundError, ValueError: as `open_image`, or the image has another size.
    """
    return decode_image_at_least(example).image


def decode_image_at_least(example: Mapping[str, Any], needed: Callable[[Size], Size] | None = None) -> DecodedImage:
    """Decode an example's image, possibly smaller than it is, never smaller than needed.

    JPEG files can be decoded at 1/2, 1/4 or 1/8 of their size in less time.

    Args:
        example: as in `decode_image`.
        needed: gives, for the size of the whole image, the smallest that will do; None for all pixels.
    """
    with _opened(example) as (image, name):
        header = _header(image)
        _check_size(header, name, example)
        upright = example.get("image_frame", "upright") == "upright"
        size, scale = header.upright if upright else header.stored, (1.0, 1.0)
        try:
            # The caller's own image stays as it is. Turning would bring a fraction of a pixel at one edge to the other.
            exact = not (header.turned and upright) or not any(side % 8 for side in size)
            if needed is not None and image is not example["image"] and exact:
                across = upright and header.orientation >= 5
                scale = _draft(image, _swap(needed(size)) if across else needed(size))
                scale = _swap(scale) if across else scale
            image.load()
            rgb = to_rgb(image)
            rgb.info = {}  # without metadata nothing downstream turns it again
        except Exception as error:  # damaged files have decoders raise anything
            raise _unreadable(name, error) from error
        turned = _orientation(image) != header.orientation  # Pillow does it with TIFF files
        if header.turned and turned != upright:
            back = _BACK.get(header.orientation, header.orientation)
            rgb = rgb.transpose(_TURNS[header.orientation if upright else back])
        return DecodedImage(rgb, scale, size)


def read_header(example: Mapping[str, Any]) -> ImageHeader:
    """Size and orientation of an example's image; no pixel is decoded.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    with _opened(example) as (image, _):
        return _header(image)


def image_size(example: Mapping[str, Any]) -> Size:
    """`(height, width)` of an example's image in its frame, read from the header alone.

    Raises:
        FileNotFoundError, ValueError: as `open_image`.
    """
    header = read_header(example)
    return header.stored if example.get("image_frame") == "stored" else header.upright


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


def _header(image: PIL.Image.Image) -> ImageHeader:
    # Pillow gives the upright size of TIFF files.
    tags = getattr(image, "tag_v2", {})
    width = tags.get(ExifTags.Base.ImageWidth, image.width)
    return ImageHeader((tags.get(ExifTags.Base.ImageLength, image.height), width), _orientation(image))


def _orientation(image: PIL.Image.Image) -> int:
    try:
        # Not the method of PNG images, which would decode the whole image to look for an orientation behind it.
        orientation = PIL.Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:  # damaged metadata do not keep viewers from showing an image
        return 1


def _swap(pair: tuple[Number, Number]) -> tuple[Number, Number]:
    return pair[1], pair[0]


def _draft(image: PIL.Image.Image, minimum_size: Size) -> tuple[float, float]:
    """Ask a JPEG decoder for a smaller image; the scale (x, y) that it will really use."""
    width, height = image.size
    drafted = image.draft("RGB", (minimum_size[1], minimum_size[0]))
    if drafted is None:
        return 1.0, 1.0
    # PIL reports the extent of the stored image in drafted pixels as floats, before rounding up.
    _, (_, _, extent_x, extent_y) = drafted
    return extent_x / width, extent_y / height


def _check_size(header: ImageHeader, name: str, example: Mapping[str, Any]) -> None:
    """Refuse an image that is not as large as the annotations say.

    Read upright, the stored size will do as well: tools write it of photos that they show upright.
    """
    height, width = example.get("height"), example.get("width")
    stored = example.get("image_frame") == "stored"
    if height is None or width is None or (height, width) == header.stored:
        return
    if (height, width) == header.upright and not stored:
        return
    upright = (height, width) == header.upright
    hint = " (the size of the upright picture, so leave out the image frame 'stored')" if upright else ""
    raise ValueError(
        f"{name}: is {header.stored[1]}x{header.stored[0]} pixels, but the annotations say width={width}, "
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
