"""Checks of what an image processor is given, with messages that name the image or the option."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch

from .annotations_drmm import shown

_MAX_SIDE = 2**16
_SIZES = ("size", "pad_size", "crop_size")
_SIZE_KEYS = {"height", "width", "shortest_edge", "longest_edge", "max_height", "max_width", "min_pixels", "max_pixels"}


def check_images(images: Any, dimensions: int = 4) -> None:
    """Refuse what holds no pixels: wrong types, numbers of dimensions, empty sides, types of values.

    Args:
        images: one image, or a list (of lists) of them. Paths, URLs and PIL images are left to what opens them.
        dimensions: the most that an array may have; 4 are a batch.

    Raises:
        ValueError: naming the image and the fix.
    """
    if isinstance(images, (list, tuple)):
        for image in images:
            check_images(image, dimensions=3)
        return
    if isinstance(images, (np.ndarray, torch.Tensor)):
        _check_array(images, dimensions)
    elif not isinstance(images, str) and not hasattr(images, "getbands"):  # a PIL image, without importing PIL
        raise ValueError(
            f"an image is {shown(images)} ({type(images).__name__}): give PIL images, numpy arrays, torch tensors, "
            "paths or URLs, one or a list of them."
        )


def _check_array(image: np.ndarray | torch.Tensor, dimensions: int) -> None:
    shape, kind = tuple(image.shape), str(image.dtype).removeprefix("torch.")
    if not 2 <= len(shape) <= dimensions or 0 in shape:
        raise ValueError(
            f"an image has shape {shape}: expected (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4 and no side of 0."
        )
    if not kind.startswith(("uint", "int", "float", "bfloat", "bool")):
        raise ValueError(f"an image holds values of type {kind}: convert them to uint8 (0..255).")
    if kind.startswith(("float", "bfloat")) and not math.isfinite(float(image.sum(dtype=_widest(image)))):
        raise ValueError(
            "an image holds NaN, infinite or absurdly large values: give 0..255, or 0..1 with do_rescale=False."
        )


def _widest(image: np.ndarray | torch.Tensor) -> Any:
    return torch.float64 if isinstance(image, torch.Tensor) else np.float64


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse sizes, statistics and factors that no image can be processed with; others are not looked at.

    Raises:
        ValueError: naming the option and the fix.
    """
    for name in _SIZES:
        if options.get(name) is not None:
            _check_size(name, options[name])
    for name in ("image_mean", "image_std"):
        value = options.get(name)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        wrong = not all(map(_is_finite, values)) or len(values) not in (1, 3)
        if value is not None and (wrong or (name == "image_std" and min(values) <= 0)):
            needed = "three numbers" + (" above 0" if name == "image_std" else "")
            raise ValueError(f"{name} is {shown(value)}: give {needed}, one for each of red, green and blue.")
    resample = options.get("resample")
    if not isinstance(resample, (Enum, type(None))) and resample not in range(6):
        raise ValueError(f"resample is {shown(resample)}: give one of PIL.Image.Resampling, such as 2 for bilinear.")
    factor = options.get("rescale_factor")
    if factor is not None and not _is_finite(factor):
        raise ValueError(f"rescale_factor is {shown(factor)}: give a number such as 1/255.")
    for name, value in options.items():
        if name.startswith("do_") and not isinstance(value, (bool, type(None))):
            raise ValueError(f"{name} is {shown(value)}: give True or False.")


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) and hasattr(value, "items"):
        unknown = [key for key, side in value.items() if key not in _SIZE_KEYS and side is not None]
        sides = [side for side in value.values() if side is not None]
    else:
        unknown, sides = [], list(value) if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    limit = _MAX_SIDE if not isinstance(value, Mapping) or not {"min_pixels", "max_pixels"} & set(value) else 2**32
    wrong = [side for side in sides if not isinstance(side, int) or isinstance(side, bool) or not 0 < side <= limit]
    if unknown or wrong or not sides:
        raise ValueError(
            f"{name} is {shown(dict(value) if hasattr(value, 'items') else value)}: give "
            '{"height": ..., "width": ...} or {"shortest_edge": ..., "longest_edge": ...} in whole pixels from 1 to '
            f"{_MAX_SIDE}."
        )


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a statistic of pixels can be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e9 < value < 1e9
