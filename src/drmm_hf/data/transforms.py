"""Training augmentation: one resample from the file to the canvas, boxes alongside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from .images import DecodedImage, ImageCache, Size, decode_image_at_least

IMAGENET_MEAN_RGB = (124, 116, 104)
"""ImageNet's mean color: a canvas of it is about zero once the network input is normalized."""
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Placement:
    """Where an image comes to lie on the canvas, along one axis.

    Stored pixels `source[0]..source[1]` are resampled to the canvas pixels `target[0]..target[1]`.
    """

    source: tuple[float, float]
    target: tuple[int, int]

    @property
    def scale(self) -> float:
        """Canvas pixels per stored pixel."""
        return self.length / (self.source[1] - self.source[0])

    @property
    def shift(self) -> float:
        """Position on the canvas of the stored image's pixel 0: canvas = stored * scale + shift."""
        return self.target[0] - self.source[0] * self.scale

    @property
    def length(self) -> int:
        """Canvas pixels that are covered."""
        return self.target[1] - self.target[0]


class TrainTransform:
    """An example of a data set to a training sample on a canvas of fixed size.

    The image is fitted into the canvas, zoomed by a random factor (log-uniform in `scale_range`) about it,
    shifted, cropped or padded, flipped and changed in color. Crop, zoom and resize are one bilinear,
    anti-aliased resample of the stored pixels; a JPEG file is decoded at 1/2, 1/4 or 1/8 where that is still
    at least as large as needed.

    Boxes follow the resample exactly and are clipped to the canvas. A box is removed where less than
    `min_visibility` of its area remains, or a side is shorter than `min_box_size` canvas pixels. Crowd boxes
    are removed. Images may end without boxes.

    Args:
        size: `(height, width)` of the canvas, pixels.
        horizontal_flip, vertical_flip: probabilities.
        scale_range: least and greatest zoom, relative to the fitted image.
        translate: where the zoomed image differs from the canvas by d pixels along an axis, its middle is
            shifted by up to d/2, so that it stays inside the canvas or keeps covering it, plus up to
            `translate` of the canvas side.
        color_jitter: brightness, contrast and saturation are each multiplied by a factor within 1 ± this.
        keep_aspect: False stretches every image to the canvas instead of fitting it with its own aspect
            ratio.
        min_visibility: between 0 and 1.
        min_box_size: pixels of the canvas.
        fill: RGB color of the canvas where there is no image.
        cache: keep decoded images in memory, downscaled to the largest zoom, up to `cache_bytes` in every
            process. The transform must then always be used with the same files.
        cache_bytes: limit of the cache.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: Size,
        *,
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        scale_range: tuple[float, float] = (0.8, 1.25),
        translate: float = 0.1,
        color_jitter: float = 0.2,
        keep_aspect: bool = True,
        min_visibility: float = 0.25,
        min_box_size: float = 2.0,
        fill: tuple[int, int, int] = IMAGENET_MEAN_RGB,
        cache: bool = False,
        cache_bytes: int = 2 * 1024**3,
    ) -> None:
        if len(size) != 2 or not are_pixels(size):
            raise ValueError(f"size={size!r}: must be (height, width) in pixels")
        check_shares(
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            translate=translate,
            color_jitter=color_jitter,
            min_visibility=min_visibility,
        )
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1] < math.inf:
            raise ValueError(f"scale_range={scale_range!r}: must be (least, greatest) zoom, both positive")
        if not 0 <= min_box_size < math.inf:
            raise ValueError(f"min_box_size={min_box_size!r}: must be 0 or more pixels")
        if len(fill) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in fill):
            raise ValueError(f"fill={fill!r}: must be (red, green, blue), each 0 to 255")
        self.size = (size[0], size[1])
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.scale_range, self.translate, self.color_jitter = scale_range, translate, color_jitter
        self.keep_aspect, self.fill = keep_aspect, fill
        self.min_visibility, self.min_box_size = min_visibility, min_box_size
        self.cache = ImageCache(cache_bytes) if cache else None

    def __call__(self, example: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Make one training sample.

        Args:
            example: a row of `DetectionDataset.dataset`, or of the same layout.
            generator: source of all random choices; torch's global one by default, which a DataLoader seeds
                differently in every worker and epoch. Every call draws the same number of values.

        Returns:
            `image` (3, height, width) uint8 RGB; `boxes` (N, 4) float32 xyxy in pixels of that image;
            `labels` (N,) int64; `image_id` int (-1 where the example has none).

        Raises:
            FileNotFoundError, ValueError: the image is missing or cannot be decoded; the message names the
                file.
        """
        draws = torch.rand(8, generator=generator).tolist()
        zoom = _log_uniform(self.scale_range, draws[0])
        if self.cache is not None:
            decoded = self.cache.get(example, lambda stored: self._zoomed_size(stored, self.scale_range[1]))
        else:
            decoded = decode_image_at_least(example, lambda stored: self._zoomed_size(stored, zoom))
        vertical, horizontal = (
            place_axis(stored, canvas, fit * zoom, self.translate, draw)
            for stored, canvas, fit, draw in zip(
                decoded.stored_size, self.size, self._fit(decoded.stored_size), draws[1:3], strict=True
            )
        )

        image: torch.Tensor = tv_tensors.Image(self._paint(decoded, vertical, horizontal, draws[3:6]))
        boxes, labels = read_targets(example)
        scale = torch.tensor([horizontal.scale, vertical.scale]).repeat(2)
        shift = torch.tensor([horizontal.shift, vertical.shift]).repeat(2)
        boxes = tv_tensors.BoundingBoxes(boxes * scale + shift, format="XYXY", canvas_size=self.size)
        if draws[6] < self.horizontal_flip:
            image, boxes = functional.horizontal_flip(image), functional.horizontal_flip(boxes)
        if draws[7] < self.vertical_flip:
            image, boxes = functional.vertical_flip(image), functional.vertical_flip(boxes)
        boxes, keep = self._clip(boxes)
        return make_sample(example, image.as_subclass(torch.Tensor), boxes[keep], labels[keep])

    def _fit(self, stored: Size) -> tuple[float, float]:
        """Vertical and horizontal zoom that fits the whole image into the canvas."""
        vertical, horizontal = self.size[0] / stored[0], self.size[1] / stored[1]
        return (min(vertical, horizontal),) * 2 if self.keep_aspect else (vertical, horizontal)

    def _zoomed_size(self, stored: Size, zoom: float) -> Size:
        """Height and width in canvas pixels of the whole image, rounded up."""
        vertical, horizontal = self._fit(stored)
        return max(1, round_up(stored[0] * vertical * zoom)), max(1, round_up(stored[1] * horizontal * zoom))

    def _paint(
        self, decoded: DecodedImage, vertical: Placement, horizontal: Placement, jitter: Sequence[float]
    ) -> torch.Tensor:
        """The canvas (3, height, width) uint8 with the resampled, color-changed image on it."""
        (left, right), (top, bottom) = horizontal.source, vertical.source
        patch = resample(decoded, (left, top, right, bottom), (vertical.length, horizontal.length))
        patch = jitter_color(patch, *(1 + self.color_jitter * (2 * draw - 1) for draw in jitter))
        canvas = torch.empty((3, *self.size), dtype=torch.uint8)
        canvas[:] = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None]
        canvas[:, slice(*vertical.target), slice(*horizontal.target)] = functional.pil_to_tensor(patch)
        return canvas

    def _clip(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (N, 4) inside the canvas, and which of them to keep (N,)."""
        whole = boxes.as_subclass(torch.Tensor)
        clipped = functional.clamp_bounding_boxes(boxes).as_subclass(torch.Tensor)
        sides, whole_sides = clipped[:, 2:] - clipped[:, :2], whole[:, 2:] - whole[:, :2]
        visible = sides.prod(dim=1) >= self.min_visibility * whole_sides.prod(dim=1)
        return clipped, visible & (sides >= self.min_box_size).all(dim=1) & (sides > 0).all(dim=1)


def check_shares(**shares: float) -> None:
    """Refuse arguments that are not between 0 and 1, by their names."""
    for name, value in shares.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}: must be between 0 and 1")


def are_pixels(values: Any) -> bool:
    """Whether all values are positive whole numbers."""
    return isinstance(values, Sequence) and all(type(value) is int and value >= 1 for value in values)


def round_up(length: float) -> int:
    """The next whole number of pixels, but for rounding errors: 640 * 0.5 does not become 321."""
    return math.ceil(length - 1e-6)


def make_sample(
    example: Mapping[str, Any], image: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """What a training transform returns."""
    return {"image": image, "boxes": boxes, "labels": labels, "image_id": int(example.get("image_id", -1))}


def canvas_size(landscape_share: float, size: Mapping[str, int]) -> Size:
    """Height and width of the training canvas for the processor's `size`.

    A processor with fixed height and width gives just that. With shortest and longest edge the canvas lies as nine in
    ten of the images do (`landscape_share` are at least as wide as tall), or is a square where they are mixed.
    """
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], size.get("longest_edge") or size["shortest_edge"]
    if landscape_share >= 0.9:
        return short, long
    return (long, short) if landscape_share <= 0.1 else (long, long)


def resample(decoded: DecodedImage, source: tuple[float, float, float, float], size: Size) -> PIL.Image.Image:
    """The rectangle `source` (left, top, right, bottom in stored pixels) at `size`, bilinear and anti-aliased."""
    left, top, right, bottom = source
    scale_x, scale_y = decoded.scale
    # Rounding must not put the box outside the decoded image by a billionth.
    box = (
        left * scale_x,
        top * scale_y,
        min(right * scale_x, decoded.image.width),
        min(bottom * scale_y, decoded.image.height),
    )
    return decoded.image.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR, box=box)


def read_targets(example: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) float32 xyxy in stored pixels and labels (N,) int64 of an example, without crowd."""
    objects = example.get("objects")
    if not isinstance(objects, Mapping) or "bbox" not in objects or "category" not in objects:
        raise ValueError(
            f"image {example.get('image_id', '?')}: `objects` must be a dict of lists with `bbox` ([x, y, "
            "width, height] in pixels) and `category` (labels); rename the data set's columns to that"
        )
    boxes = torch.as_tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.as_tensor(objects["category"], dtype=torch.int64)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    if objects.get("iscrowd") is not None:
        single = ~torch.as_tensor(objects["iscrowd"], dtype=torch.bool)
        boxes, labels = boxes[single], labels[single]
    return boxes, labels


def jitter_color(image: PIL.Image.Image, brightness: float, contrast: float, saturation: float) -> PIL.Image.Image:
    """Multiply brightness, then contrast (about the mean gray), then saturation of an RGB image.

    The three are linear, so they are one pass with one 3x4 matrix, rounded and clipped once.
    """
    if brightness == contrast == saturation == 1.0:
        return image
    sample = np.asarray(image)[::4, ::4]  # the mean gray needs no more
    mean_gray = float(sample.mean(axis=(0, 1)) @ _LUMA) * brightness
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = np.concatenate([brightness * contrast * mix, np.full((3, 1), (1 - contrast) * mean_gray)], axis=1)
    return image.convert("RGB", tuple(matrix.reshape(-1).tolist()))


def _log_uniform(bounds: tuple[float, float], draw: float) -> float:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return math.exp(low + (high - low) * draw)


def place_axis(stored: int, canvas: int, scale: float, translate: float, draw: float) -> Placement:
    """Place `stored` pixels, zoomed by `scale`, on `canvas` pixels; `draw` in 0..1 chooses the shift."""
    length = stored * scale
    slack = canvas - length
    start = slack / 2 + (2 * draw - 1) * (abs(slack) / 2 + translate * canvas)
    # Some of the image stays on the canvas, whatever the shift.
    start = min(max(start, 1 - length), canvas - 1)
    low = min(max(0, round(start)), canvas - 1)
    high = max(min(canvas, round(start + length)), low + 1)
    # A side that is not cropped is resampled whole: its scale differs by the rounding of the target only.
    first = -start / scale if start < 0 else 0.0
    last = min((canvas - start) / scale, float(stored)) if start + length > canvas else float(stored)
    return Placement((first, last), (low, high))
