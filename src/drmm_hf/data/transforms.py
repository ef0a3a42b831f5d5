"""Training augmentation: a random view of an image, resampled at once, boxes alongside."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional

from ..image_processing_drmm import keep_ratio_size
from .images import DecodedImage, Size, decode_image_at_least

IMAGENET_MEAN_RGB = (124, 116, 104)
"""ImageNet's mean color: a canvas of it is about zero once the network input is normalized."""
_ADJUSTMENTS = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)


@dataclass(frozen=True)
class View:
    """What a sample shows of its image, and how.

    The rectangle `source`, `(left, top, right, bottom)` in image pixels, is resampled to the rectangle `target` in
    pixels of the sample, whose size is `size`, `(height, width)`. Brightness, contrast and saturation are multiplied by
    the factors `color`. Then the sample is mirrored left to right and top to bottom, as `flip` says.
    """

    source: tuple[float, float, float, float]
    target: tuple[int, int, int, int]
    size: Size
    flip: tuple[bool, bool] = (False, False)
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the sample per image pixel, `(x, y)`."""
        x, y = ((self.target[i + 2] - self.target[i]) / (self.source[i + 2] - self.source[i]) for i in (0, 1))
        return x, y

    def show_pixels(self, decoded: DecodedImage, fill: Sequence[int]) -> torch.Tensor:
        """The sample (3, height, width) uint8 RGB; where there is no image it has the color `fill`."""
        left, top, right, bottom = self.target
        (scale_x, scale_y), image = decoded.scale, decoded.image
        x1, y1, x2, y2 = self.source
        # Rounding must not put the box outside the decoded image by a billionth.
        box = (x1 * scale_x, y1 * scale_y, min(x2 * scale_x, image.width), min(y2 * scale_y, image.height))
        patch = image.resize((right - left, bottom - top), PIL.Image.Resampling.BILINEAR, box=box)
        for adjust, factor in zip(_ADJUSTMENTS, self.color, strict=True):
            patch = adjust(patch, factor) if factor != 1 else patch
        height, width = self.size
        if self.flip[0]:
            patch, left, right = patch.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), width - right, width - left
        if self.flip[1]:
            patch, top, bottom = patch.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM), height - bottom, height - top
        sample = torch.empty((3, height, width), dtype=torch.uint8)
        if patch.size != (width, height):
            sample[:] = torch.tensor(fill, dtype=torch.uint8)[:, None, None]
        sample[:, top:bottom, left:right] = functional.pil_to_tensor(patch)
        return sample

    def move_boxes(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (N, 4) xyxy in image pixels to pixels of the sample: whole ones, and what lies inside of it."""
        scale = self.scale
        shift = [self.target[i] - self.source[i] * scale[i] for i in (0, 1)]
        factor, offset = (torch.tensor(pair, dtype=torch.float64).repeat(2) for pair in (scale, shift))
        moved = (boxes * factor + offset).float()
        whole = tv_tensors.BoundingBoxes(moved, format="XYXY", canvas_size=self.size)
        for flip, mirrored in zip((functional.horizontal_flip, functional.vertical_flip), self.flip, strict=True):
            whole = flip(whole) if mirrored else whole
        inside = functional.clamp_bounding_boxes(whole)
        return whole.as_subclass(torch.Tensor), inside.as_subclass(torch.Tensor)


class Augmentation(ABC):
    """An example of a data set to a training sample: a random view of its image, and the boxes that it shows."""

    fill: tuple[int, int, int] = IMAGENET_MEAN_RGB
    min_visibility: float = 0.0
    min_box_size: float = 1e-3
    """Pixels; what clipping leaves of a box that only touches the sample is rounding error below this."""

    def __call__(self, example: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Make one training sample.

        Args:
            example: a row of `DetectionDataset.dataset`, or of the same layout.
            generator: source of all random choices; torch's global one by default, which a DataLoader seeds
                differently in every worker and epoch. Every call draws the same number of values.

        Returns:
            `image` (3, height, width) uint8 RGB; `boxes` (N, 4) float32 xyxy in pixels of that image;
            `labels` (N,) int64; `image_id` int (-1 where the example has none); `dropped_boxes`, how many are too small
            in this image or outside of it.

        Raises:
            FileNotFoundError, ValueError: the image is missing or cannot be decoded; the message names the
                file.
        """
        draws = torch.rand(8, generator=generator).tolist()
        decoded = self.decode(example, draws)
        view = self.view(decoded.size, draws)
        boxes, labels = read_targets(example)
        whole, boxes = view.move_boxes(boxes)
        sides, whole_sides = boxes[:, 2:] - boxes[:, :2], whole[:, 2:] - whole[:, :2]
        visible = sides.prod(dim=1) >= self.min_visibility * whole_sides.prod(dim=1)
        keep = visible & (sides >= self.min_box_size).all(dim=1) & (sides > 0).all(dim=1)
        return {
            "image": view.show_pixels(decoded, self.fill),
            "boxes": boxes[keep],
            "labels": labels[keep],
            "image_id": int(example.get("image_id", -1)),
            "dropped_boxes": int((~keep).sum()),
        }

    @abstractmethod
    def view(self, whole: Size, draws: Sequence[float]) -> View:
        """What to show of an image whose size is `whole`; `draws` are eight values in 0 <= value < 1."""

    @abstractmethod
    def decode(self, example: Mapping[str, Any], draws: Sequence[float]) -> DecodedImage:
        """The image, at least as large as the view shows it."""


class TrainTransform(Augmentation):
    """An example of a data set to a training sample on a canvas of fixed size.

    The image is fitted into the canvas, zoomed by a random factor (log-uniform in `scale_range`) about it, shifted,
    cropped or padded, flipped and changed in color. Crop, zoom and resize are one bilinear, anti-aliased resample of
    the decoded image; a JPEG file is decoded at 1/2, 1/4 or 1/8 where that is large enough.

    Boxes are clipped to the canvas. One is removed where less than `min_visibility` of its area remains, or a side is
    shorter than `min_box_size` canvas pixels, and so are crowd boxes. Images may end without boxes.

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
        fill: RGB color of the canvas where there is no image.
    """

    min_visibility, min_box_size = 0.25, 2.0

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
        fill: tuple[int, int, int] = IMAGENET_MEAN_RGB,
    ) -> None:
        self.size, self.flips = size, (horizontal_flip, vertical_flip)
        self.scale_range, self.translate, self.color_jitter = scale_range, translate, color_jitter
        self.keep_aspect, self.fill = keep_aspect, fill

    def view(self, whole: Size, draws: Sequence[float]) -> View:
        zoom, shifts, color, flips = self._zoom(draws[0]), draws[1:3], draws[3:6], draws[6:]
        (top, bottom, above, below), (left, right, before, after) = (
            place_axis(side, canvas, fit * zoom, self.translate, draw)
            for side, canvas, fit, draw in zip(whole, self.size, self._fit(whole), shifts, strict=True)
        )
        brightness, contrast, saturation = (1 + self.color_jitter * (2 * draw - 1) for draw in color)
        return View(
            source=(left, top, right, bottom),
            target=(before, above, after, below),
            size=self.size,
            flip=(flips[0] < self.flips[0], flips[1] < self.flips[1]),
            color=(brightness, contrast, saturation),
        )

    def decode(self, example: Mapping[str, Any], draws: Sequence[float]) -> DecodedImage:
        zoom = self._zoom(draws[0])

        def needed(whole: Size) -> Size:
            vertical, horizontal = self._fit(whole)
            return max(1, round_up(whole[0] * vertical * zoom)), max(1, round_up(whole[1] * horizontal * zoom))

        return decode_image_at_least(example, needed)

    def _zoom(self, draw: float) -> float:
        low, high = map(math.log, self.scale_range)
        return math.exp(low + (high - low) * draw)

    def _fit(self, whole: Size) -> tuple[float, float]:
        """Vertical and horizontal zoom that fits the whole image into the canvas."""
        vertical, horizontal = self.size[0] / whole[0], self.size[1] / whole[1]
        return (min(vertical, horizontal),) * 2 if self.keep_aspect else (vertical, horizontal)


class PaperTransform(Augmentation):
    """An example of a data set to a training sample as in the paper's schedules; the output size varies.

    The 3x schedule (paper, Section 4; released config `syncbn_fullaug`) has the augmentation of Deformable
    DETR. After a random flip, one of two branches is taken:

    1. resize so that the shorter side is one of `shortest_edges`;
    2. resize so that the shorter side is one of `crop_shortest_edges`, cut out a random rectangle, and
       resize that so that its shorter side is one of `shortest_edges`.

    Every resize keeps the aspect ratio and, where the longer side would exceed `longest_edge`, makes that
    `longest_edge` instead. All choices are uniform. Sizes are rounded as in mmdet. The steps are done as one resample,
    as in `TrainTransform`. Boxes are clipped to what the sample shows, and removed where nothing is left.

    Args:
        multi_scale: False for the 1x schedule: no branches, only the flip and a resize to the greatest of
            `shortest_edges`.
        shortest_edges: output pixels.
        longest_edge: pixels, limit of the longer side after every resize.
        crop_shortest_edges: pixels of the image that the crop is taken from.
        crop_size: least and greatest side of the crop, pixels of that image, where the image is as large;
            height and width are drawn independently.
        crop_probability: probability of branch 2.
        horizontal_flip: probability.
    """

    def __init__(
        self,
        *,
        multi_scale: bool = True,
        shortest_edges: Sequence[int] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        longest_edge: int = 1333,
        crop_shortest_edges: Sequence[int] = (400, 500, 600),
        crop_size: tuple[int, int] = (384, 600),
        crop_probability: float = 0.5,
        horizontal_flip: float = 0.5,
    ) -> None:
        self.multi_scale = multi_scale
        self.shortest_edges, self.longest_edge = tuple(shortest_edges), longest_edge
        self.crop_shortest_edges, self.crop_size = tuple(crop_shortest_edges), crop_size
        self.crop_probability, self.horizontal_flip = crop_probability, horizontal_flip

    def decode(self, example: Mapping[str, Any], draws: Sequence[float]) -> DecodedImage:
        def needed(whole: Size) -> Size:
            scale_x, scale_y = self.view(whole, draws).scale
            return round_up(whole[0] * scale_y), round_up(whole[1] * scale_x)

        return decode_image_at_least(example, needed)

    def view(self, whole: Size, draws: Sequence[float]) -> View:
        flip, branch, first_edge, crop_height, crop_width, top, left, last_edge = draws
        height, width = whole
        shortest = _choose(self.shortest_edges, last_edge) if self.multi_scale else max(self.shortest_edges)
        shown, source = whole, (0.0, 0.0, float(width), float(height))
        if self.multi_scale and branch < self.crop_probability:
            # The crop is drawn in the image before the flip: its position is uniform, so the order does not matter.
            tall, wide = self._fit(whole, _choose(self.crop_shortest_edges, first_edge))
            y1, y2 = self._crop_axis(tall, crop_height, top)
            x1, x2 = self._crop_axis(wide, crop_width, left)
            # Multiplied before the division, a crop to the image's edge ends exactly at that edge.
            source = x1 * width / wide, y1 * height / tall, x2 * width / wide, y2 * height / tall
            shown = y2 - y1, x2 - x1
        size = self._fit(shown, shortest)
        target = (0, 0, size[1], size[0])
        return View(source, target, size, flip=(flip < self.horizontal_flip, False))

    def _fit(self, size: Size, shortest: int) -> Size:
        """Size (height, width) after a resize to a shorter side of `shortest`."""
        return keep_ratio_size(*size, shortest, self.longest_edge)

    def _crop_axis(self, side: int, length_draw: float, start_draw: float) -> tuple[int, int]:
        """First and last-plus-one pixel of a crop along an axis of `side` pixels."""
        least, greatest = (min(limit, side) for limit in self.crop_size)
        length = _choose(range(least, greatest + 1), length_draw)
        start = _choose(range(side - length + 1), start_draw)
        return start, start + length


def round_up(length: float) -> int:
    """The next whole number of pixels, but for rounding errors: 640 * 0.5 does not become 321."""
    return math.ceil(length - 1e-6)


def scaled_size(size: Mapping[str, int], wanted: Sequence[int]) -> dict[str, int]:
    """The processor's `size` for `--image-size`: the shorter side and the other as much longer as before, or both."""
    if len(wanted) == 2:
        return dict(zip(("height", "width"), wanted, strict=True))
    shortest = min(size.values())
    return {name: round(side * wanted[0] / shortest) for name, side in size.items()}


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


def read_targets(example: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) float32 xyxy in image pixels and labels (N,) int64 of an example, without crowd."""
    objects = example["objects"]
    boxes = box_convert(torch.as_tensor(objects["bbox"], dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")
    labels = torch.as_tensor(objects["category"], dtype=torch.int64)
    if objects.get("iscrowd") is None:
        return boxes, labels
    single = ~torch.as_tensor(objects["iscrowd"], dtype=torch.bool)
    return boxes[single], labels[single]


def place_axis(side: int, canvas: int, scale: float, translate: float, draw: float) -> tuple[float, float, int, int]:
    """Place `side` pixels, zoomed by `scale`, on `canvas` pixels; `draw` in 0..1 chooses the shift.

    Returns:
        first and last image pixel that are shown, and the first and last-plus-one pixel of the canvas that show them.
    """
    length = side * scale
    slack = canvas - length
    start = slack / 2 + (2 * draw - 1) * (abs(slack) / 2 + translate * canvas)
    # Some of the image stays on the canvas, whatever the shift.
    start = min(max(start, 1 - length), canvas - 1)
    low = min(max(0, round(start)), canvas - 1)
    high = max(min(canvas, round(start + length)), low + 1)
    # A side that is not cropped is resampled whole: its scale differs by the rounding of the target only.
    first = -start / scale if start < 0 else 0.0
    last = min((canvas - start) / scale, float(side)) if start + length > canvas else float(side)
    return first, last, low, high


def _choose(values: Sequence[int], draw: float) -> int:
    return values[int(draw * len(values))]
