"""Images and COCO annotations in, model inputs out; model outputs in, detections of the original images out.

Coordinate frames: a label's boxes are normalized by the resized image *without* its padding, and so are the
boxes that the model predicts. Padding therefore changes neither, and a box times (width, height) of the
original image is in pixels of that image. (transformers' DETR processors use the padded canvas instead.)
"""

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.request import urlopen

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .annotations import make_labels, to_device
from .configuration_drmm import shown
from .postprocessing import select_detections

logger = logging.get_logger(__name__)


class DrmmImageProcessorKwargs(ImagesKwargs, total=False):
    """Adds size_divisor: the padded height and width are multiples of it (1: no rounding)."""

    size_divisor: int


class DrmmImageProcessor(TorchvisionBackend):
    """Image processor of D-RMM.

    Resizes with the aspect ratio kept (mmdetection's rule, see `keep_ratio_size`), normalizes with the
    ImageNet statistics, pads at the bottom and the right with zeros up to the largest image of the batch,
    rounded up to a multiple of `size_divisor` (which plays no part with `pad_size`).

    Batches whose images come from separate calls, as in `pipeline(..., batch_size=8)`, need one fixed size:

    - `pad_size={"height": 1344, "width": 1344}` keeps the aspect ratio, the right choice for accuracy. It
      must hold the largest resized image and should be a multiple of 32: it is taken as given.
    - `size={"height": 640, "width": 640}` resizes to exactly that: it costs less and distorts the image.

    Images may be PIL images, files (str or `pathlib.Path`), their bytes, URLs, or numpy arrays and torch tensors,
    (H, W), (H, W, C) or (C, H, W). Whatever brings it, an image is turned upright by its EXIF orientation (as
    transformers' `load_image` does) and becomes RGB: grey and palette images, and transparency over white. Numbers hold
    0..255 (pass `do_rescale=False` for 0..1); those of 16-bit images (uint16) 0..65535, which are divided by 257.
    """

    valid_kwargs = DrmmImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012  (transformers reads this class attribute)
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}  # noqa: RUF012
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    size_divisor = 32

    def __init__(self, **kwargs: Any) -> None:
        _check_options(kwargs)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The saved attributes. `auto_map` is kept only where the code itself is saved beside it."""
        values = super().to_dict()
        if self._auto_class is None:
            values.pop("auto_map", None)
        return values

    def preprocess(
        self,
        images: Any,
        annotations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch for the model.

        Args:
            images: one image or a list, of the kinds that the class names.
            annotations: one per image, `{"image_id": int, "annotations": [...]}`, each with `bbox`
                [x, y, w, h] in pixels of the original image (upright), `category_id` (the class index from 0) and, if
                known, `area` (pixels²; w·h without it) and `iscrowd` (0 or 1). Boxes are clipped to the image; crowd
                regions and boxes that are empty after clipping are left out, as mmdetection does.
            kwargs: any attribute of this class (`size`, `pad_size`, ...), `return_tensors`, `device`.

        Returns:
            pixel_values (B, 3, H, W) float32; pixel_mask (B, H, W) int64, 1 inside the resized image; with
            annotations also labels, one dict per image: image_id (1,), class_labels (N,) int64, boxes (N, 4)
            float32 normalized cxcywh of the resized image without padding, area (N,) in pixels² of the
            resized image, iscrowd (N,) zeros, orig_size and size (2,) int64 (height, width) before and after
            resizing, without padding.

        Raises:
            FileNotFoundError: no such file.
            ValueError: naming the image, or the option, or the image_id, the annotation's index and the field.
        """
        _check_options(kwargs)
        return super().preprocess(_opened(images), annotations, **kwargs)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: Any = None,
        device: Any = None,
        do_rescale: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One image, PIL, array or tensor, as a (3, H, W) tensor.

        The conversion to RGB is done here because transformers' own differs between versions.
        """
        if isinstance(image, PIL.Image.Image):
            image = np.array(to_rgb(image) if do_convert_rgb else image)
            # Not inferred: an image of three rows, or one, looks as if its channels came first.
            input_data_format = ChannelDimension.LAST if image.ndim == 3 else ChannelDimension.FIRST
            image = image if image.ndim == 3 else image[None]
        try:
            if 0 in image.shape:
                raise ValueError("no pixels")
            if input_data_format is None:
                input_data_format = infer_channel_dimension_format(image, (1, 3, 4))
        except ValueError:
            raise ValueError(
                f"an image has shape {tuple(image.shape)}: expected (H, W), (H, W, C) or (C, H, W) with "
                "C = 1, 3 or 4 and no side of 0. Convert it to RGB first."
            ) from None
        tensor = _known_numbers(image).detach()
        if input_data_format == ChannelDimension.LAST:
            tensor = tensor.permute(2, 0, 1)
        if not do_convert_rgb and len(tensor) != 3:
            raise ValueError(f"an image has {len(tensor)} channels, and the model takes 3: leave do_convert_rgb=True.")
        if tensor.dtype != torch.uint8:
            low, high = (float(end) for end in torch.aminmax(tensor))
            if not math.isfinite(high - low):
                raise ValueError("an image holds NaN, infinite or absurdly large values: give 0..255.")
            if do_rescale and not tensor.is_floating_point() and not 0 <= low <= high <= 255:
                raise ValueError(
                    f"an image of {image.dtype} holds {low:.0f}..{high:.0f}: give 0..255, or uint16 of 0..65535."
                )
            if do_rescale and tensor.is_floating_point() and high <= 1:
                logger.warning_once(
                    "An image of floats in 0..1 is about to be divided by 255. "
                    "Pass do_rescale=False if it is scaled already."
                )
        return to_device((_to_rgb(tensor) if do_convert_rgb else tensor).contiguous(), device)

    def resize(  # type: ignore[override]
        self, image: torch.Tensor, size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """Resize (..., H, W) to `size`; with edges given, by the rule of `keep_ratio_size`."""
        if size.shortest_edge or size.longest_edge:
            height, width = image.shape[-2:]
            height, width = keep_ratio_size(height, width, size.shortest_edge, size.longest_edge)
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, resample=resample, **kwargs)

    def _preprocess(  # type: ignore[override]
        self, images: list[torch.Tensor], annotations: Any, *, return_tensors: Any, **options: Any
    ) -> BatchFeature:
        if not images:
            raise ValueError("images is an empty list: give at least one image.")
        device = images[0].device
        resized = images
        if options["do_resize"]:
            resized = [self.resize(image, options["size"], options["resample"]) for image in images]
        old_sizes = np.array([image.shape[-2:] for image in images])
        new_sizes = np.array([image.shape[-2:] for image in resized])
        labels = None if annotations is None else make_labels(annotations, old_sizes, new_sizes, device)

        canvas = _canvas(new_sizes, options["do_pad"], options["pad_size"], options["size_divisor"])
        factor = options["rescale_factor"] if options["do_rescale"] else 1.0
        shift, scale = torch.zeros(1), torch.tensor(1.0 / factor)
        if options["do_normalize"]:
            # In units of the pixels, so that nothing but the difference and the quotient is left to do for each.
            shift, scale = (torch.tensor(options[name]) * (1.0 / factor) for name in ("image_mean", "image_std"))
        shift, scale = (to_device(value.reshape(-1, 1, 1), device) for value in (shift, scale))
        pixel_values = torch.zeros((len(resized), 3, *canvas), device=device)
        pixel_mask = torch.zeros((len(resized), *canvas), dtype=torch.int64, device=device)
        for values, mask, image in zip(pixel_values, pixel_mask, resized, strict=True):
            height, width = image.shape[-2:]
            torch.sub(image, shift, out=values[:, :height, :width]).div_(scale)
            mask[:height, :width] = 1
        batch = BatchFeature({"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors)
        if labels is not None:
            batch["labels"] = [BatchFeature(label, tensor_type=return_tensors) for label in labels]
        return batch

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float | Sequence[float] | torch.Tensor = 0.5,
        target_sizes: torch.Tensor | Sequence[Any] | None = None,
        top_k: int | Sequence[int] = 100,
        **intervals: Any,
    ) -> list[dict[str, torch.Tensor]]:
        """Detections of each image: the `top_k` best (component, class) pairs with a score above `threshold`; no NMS.

        Arguments, results and errors are those of `select_detections`. `target_sizes` are the (height, width) of the
        original images; without them boxes and scales stay normalized. `interval_level=0.8` adds the 80% interval of
        each edge, for which `scale_factor` corrects γ. The processor does not know the model: where its density is no
        Cauchy, pass `density=config.density` and `student_t_dof=config.student_t_dof`.
        """
        return select_detections(outputs, threshold, target_sizes, top_k, **intervals)


def keep_ratio_size(height: int, width: int, shortest_edge: int | None, longest_edge: int | None) -> tuple[int, int]:
    """The size (height, width) in pixels after a resize that keeps the aspect ratio.

    scale = min(shortest_edge / short side, longest_edge / long side); each side is int(side · scale + 0.5).
    This is mmcv's `rescale_size`, which the released code uses. transformers' own rule cuts fractions off and
    can be a pixel smaller.
    """
    scales = []
    if shortest_edge:
        scales.append(shortest_edge / min(height, width))
    if longest_edge:
        scales.append(longest_edge / max(height, width))
    scale = min(scales)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


_NUMBERS = (int, float)
_SIDES = ((int,), 0, 2**16, "whole pixels, such as {'height': 640, 'width': 640}")
# types of the numbers of each option, what they lie strictly between, and what to give
_OPTIONS: dict[str, tuple[Any, float, float, str]] = {
    "size": _SIDES,
    "pad_size": _SIDES,
    "crop_size": _SIDES,
    "image_mean": (_NUMBERS, -1e9, 1e9, "a number, or three for red, green and blue"),
    "image_std": (_NUMBERS, 0, 1e9, "a number above 0, or three for red, green and blue"),
    "rescale_factor": (_NUMBERS, 0, 1e9, "a number such as 1/255"),
    "size_divisor": ((int,), 0, 1e9, "a whole number of at least 1"),
    "resample": ((int,), -1, 6, "one of PIL.Image.Resampling, such as 2 for bilinear"),
}


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse values of options, also those of a saved file, that no image can be processed with."""
    for name, value in options.items():
        if value is None or not (name in _OPTIONS or name.startswith("do_")):
            continue
        if name in _OPTIONS:
            kinds, low, high, wanted = _OPTIONS[name]
            several = value.values() if hasattr(value, "values") else value
            numbers = [n for n in (several if isinstance(several, Iterable) else [several]) if n is not None]
            fine = all(isinstance(n, kinds) and not isinstance(n, bool) and low < n < high for n in numbers)
            fine &= len(numbers) in (1, 3) if name.startswith("image_") else bool(numbers)
        else:
            fine, wanted = isinstance(value, bool), "True or False"
        if not fine:
            raise ValueError(f"{name} is {shown(value)}: give {wanted}.")


def _canvas(sizes: np.ndarray, do_pad: bool, pad_size: SizeDict | None, size_divisor: int) -> tuple[int, int]:
    """The padded (height, width) of a batch of images whose sizes after the resize are (B, 2)."""
    height, width = sizes.max(axis=0).tolist()
    if not do_pad:
        if (sizes != sizes[0]).any():
            raise ValueError(
                f"after resizing, images of a batch have different sizes {np.unique(sizes, axis=0).tolist()}, and "
                'do_pad is False. Set do_pad=True, or a fixed size={"height": ..., "width": ...}.'
            )
        return height, width
    if pad_size is None:
        return math.ceil(height / size_divisor) * size_divisor, math.ceil(width / size_divisor) * size_divisor
    if not (pad_size.height and pad_size.width):
        raise ValueError(f'pad_size is {dict(pad_size)}: give {{"height": ..., "width": ...}}.')
    if height > pad_size.height or width > pad_size.width:
        raise ValueError(
            f"resized images of up to {height}x{width} (height x width) do not fit into pad_size "
            f"{pad_size.height}x{pad_size.width}. Enlarge pad_size, or make size smaller."
        )
    return pad_size.height, pad_size.width


def _opened(image: Any) -> Any:
    """An image, or each of a list: an upright PIL image of what names or holds one; arrays with an axis of channels."""
    if isinstance(image, (list, tuple)):
        return [_opened(one) for one in image]
    where = shown(str(image)) if isinstance(image, (str, os.PathLike)) else f"an image of {type(image).__name__}"
    try:
        if isinstance(image, str) and image.startswith(("http://", "https://", "data:image/")):
            with urlopen(image, timeout=60) as response:
                image = response.read()
        if isinstance(image, (bytes, bytearray, memoryview)):
            image = io.BytesIO(image)
        if isinstance(image, (str, os.PathLike)) or hasattr(image, "read"):
            image = PIL.Image.open(image)
        if isinstance(image, PIL.Image.Image):
            image.load()
            turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
            return PIL.ImageOps.exif_transpose(image) if turned else image  # which would copy it
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{where}: no such image file.") from error
    except OSError as error:  # PIL's errors and those of a connection are of this kind
        raise ValueError(f"{where}: the image cannot be read ({error.strerror or error}).") from error
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise ValueError(f"an image is a {type(image).__name__}: give a PIL image, an array, a file or its bytes.")
    return image[None] if image.ndim == 2 else image


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as 8-bit RGB, always a copy.

    Grey, palette, CMYK and other colors are converted as Pillow does it; transparent pixels are seen over white.
    Whole numbers of more than 8 bits are taken for 16 bits and divided by 257, unless none is above 255. Fractions from
    0 to 1 are multiplied by 255; if one is above 1, all are taken for 0..255.

    Raises:
        ValueError: a value is negative, not finite, or above what its kind of pixels may have.
    """
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        values, fractions = np.asarray(image), image.mode == "F"
        least, most = values.min(initial=0), values.max(initial=0)
        if not (least >= 0 and most <= (255 if fractions else 65535)):  # nor NaN
            kind = "fractions from 0 to 1 or from 0 to 255" if fractions else "whole numbers from 0 to 65535"
            raise ValueError(f"pixels of mode {image.mode!r} are {least} to {most}, not {kind}: convert it to 8 bits")
        if fractions:
            values = values * (255.0 if most <= 1 else 1.0)
        elif most > 255 or image.mode != "I":
            values = values / 257.0
        image = PIL.Image.fromarray(np.round(values).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _known_numbers(image: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Numbers that torch computes with: 16-bit ones become 8-bit, truth values 0 and 255, all floats float32."""
    kind = str(image.dtype).removeprefix("torch.").lstrip("<>=|")
    if not kind.startswith(("uint", "int", "float", "bfloat", "bool", "u", "i", "f")):
        raise ValueError(f"an image holds values of type {image.dtype}: convert them to uint8 (0..255).")
    if isinstance(image, np.ndarray):
        wide = {"f": np.float32, "u": np.int64}.get(image.dtype.kind) if image.dtype.itemsize > 2 else None
        # copied where torch would refuse it: strides below zero, the other byte order, long doubles, read-only
        with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
            image = np.require(image, wide or image.dtype.newbyteorder("="), ["C", "W"])
        image = torch.from_numpy(image)
    if image.dtype == torch.uint16:
        return (image.float() / 257).round().to(torch.uint8)
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    return image.float() if image.is_floating_point() else image


def _to_rgb(image: torch.Tensor) -> torch.Tensor:
    """(1, 3 or 4, H, W) to (3, H, W); transparency over white."""
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    if image.shape[0] == 4:
        white = 1.0 if image.is_floating_point() and image.max() <= 1 else 255.0
        alpha = image[3:].float() / white
        color = image[:3] * alpha + white * (1 - alpha)
        return color if image.is_floating_point() else color.round().to(image.dtype)
    return image
