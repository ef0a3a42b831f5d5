"""The augmentation of the paper: images of many sizes, each one resample of the stored pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from torchvision.transforms.v2 import functional

from .images import DecodedImage, Size, decode_image_at_least
from .transforms import are_pixels, check_shares, make_sample, read_targets, resample, round_up

_MIN_SIDE = 1e-3
"""Output pixels; what clipping leaves of a box that only touches the crop is rounding error below this."""


@dataclass(frozen=True)
class View:
    """What a sample shows of its image.

    The rectangle `source`, `(left, top, right, bottom)` in stored pixels, is resampled to `size`,
    `(height, width)` in output pixels, and then mirrored left to right if `flip`.
    """

    source: tuple[float, float, float, float]
    size: Size
    flip: bool

    @property
    def scale(self) -> tuple[float, float]:
        """Output pixels per stored pixel, `(x, y)`."""
        left, top, right, bottom = self.source
        return self.size[1] / (right - left), self.size[0] / (bottom - top)


class PaperTransform:
    """An example of a data set to a training sample as in the paper's schedules; the output size varies.

    The 3x schedule (paper, Section 4; released config `syncbn_fullaug`) has the augmentation of Deformable
    DETR. After a random flip, one of two branches is taken:

    1. resize so that the shorter side is one of `shortest_edges`;
    2. resize so that the shorter side is one of `crop_shortest_edges`, cut out a random rectangle, and
       resize that so that its shorter side is one of `shortest_edges`.

    Every resize keeps the aspect ratio and, where the longer side would exceed `longest_edge`, makes that
    `longest_edge` instead. All choices are uniform. Sizes are rounded as in mmdet. The steps are done as one
    bilinear, anti-aliased resample of the stored pixels; a JPEG file is decoded at 1/2, 1/4 or 1/8 where that
    is still at least as large as needed.

    Boxes are clipped to what the sample shows, and removed where nothing is left. Crowd boxes are removed.
    Images may end without boxes.

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

    Raises:
        ValueError: an argument is out of its range.
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
        if type(multi_scale) is not bool:
            raise ValueError(f"multi_scale={multi_scale!r}: must be True or False")
        if type(longest_edge) is not int or longest_edge < 1:
            raise ValueError(f"longest_edge={longest_edge!r}: must be a positive whole number of pixels")
        edges = {"shortest_edges": shortest_edges, "crop_shortest_edges": crop_shortest_edges}
        for name, sides in edges.items():
            if not are_pixels(sides) or not sides or max(sides) > longest_edge:
                raise ValueError(
                    f"{name}={sides!r}: must be one or more whole numbers of pixels, from 1 to "
                    f"longest_edge={longest_edge}"
                )
        if not are_pixels(crop_size) or len(crop_size) != 2 or crop_size[0] > crop_size[1]:
            raise ValueError(f"crop_size={crop_size!r}: must be (least, greatest) side in whole pixels, both positive")
        check_shares(crop_probability=crop_probability, horizontal_flip=horizontal_flip)
        self.multi_scale = multi_scale
        self.shortest_edges = tuple(shortest_edges)
        self.longest_edge = longest_edge
        self.crop_shortest_edges = tuple(crop_shortest_edges)
        self.crop_size = (crop_size[0], crop_size[1])
        self.crop_probability = crop_probability
        self.horizontal_flip = horizontal_flip

    def __call__(self, example: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """Make one training sample.

        Args:
            example, generator: as in `TrainTransform`. Every call draws the same number of values.

        Returns:
            as `TrainTransform`.

        Raises:
            FileNotFoundError, ValueError: as `TrainTransform`.
        """
        draws = torch.rand(8, generator=generator).tolist()
        decoded = decode_image_at_least(example, lambda stored: _whole_size(stored, self.view(stored, draws)))
        view = self.view(decoded.stored_size, draws)
        boxes, labels = read_targets(example)
        boxes, keep = _show_boxes(boxes, view)
        return make_sample(example, _show_pixels(decoded, view), boxes[keep], labels[keep])

    def view(self, stored: Size, draws: Sequence[float]) -> View:
        """What to show of a stored image (height, width); `draws` are eight values in 0 <= value < 1."""
        flip, branch, first_edge, crop_height, crop_width, top, left, last_edge = draws
        height, width = stored
        flipped = flip < self.horizontal_flip
        whole = (0.0, 0.0, float(width), float(height))
        if not self.multi_scale:
            return View(whole, self._fit(stored, max(self.shortest_edges)), flipped)
        shortest = _choose(self.shortest_edges, last_edge)
        if branch >= self.crop_probability:
            return View(whole, self._fit(stored, shortest), flipped)

        # The crop is drawn in the image before the flip: its position is uniform, so the order does not matter.
        resized = self._fit(stored, _choose(self.crop_shortest_edges, first_edge))
        y1, y2 = self._crop_axis(resized[0], crop_height, top)
        x1, x2 = self._crop_axis(resized[1], crop_width, left)
        # Multiplied before the division, a crop to the image's edge ends exactly at that edge.
        source = (x1 * width / resized[1], y1 * height / resized[0], x2 * width / resized[1], y2 * height / resized[0])
        return View(source, self._fit((y2 - y1, x2 - x1), shortest), flipped)

    def _fit(self, size: Size, shortest: int) -> Size:
        """Size (height, width) after a resize to a shorter side of `shortest`."""
        scale = min(self.longest_edge / max(size), shortest / min(size))
        # mmdet's rounding, except that it cannot make a side of 0 pixels.
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))

    def _crop_axis(self, side: int, length_draw: float, start_draw: float) -> tuple[int, int]:
        """First and last-plus-one pixel of a crop along an axis of `side` pixels."""
        least, greatest = (min(limit, side) for limit in self.crop_size)
        length = _choose(range(least, greatest + 1), length_draw)
        start = _choose(range(side - length + 1), start_draw)
        return start, start + length


def _choose(values: Sequence[int], draw: float) -> int:
    return values[int(draw * len(values))]


def _whole_size(stored: Size, view: View) -> Size:
    """Height and width in output pixels that the whole image would have, rounded up."""
    scale_x, scale_y = view.scale
    return round_up(stored[0] * scale_y), round_up(stored[1] * scale_x)


def _show_pixels(decoded: DecodedImage, view: View) -> torch.Tensor:
    """The view of an image, (3, height, width) uint8 RGB."""
    shown = resample(decoded, view.source, view.size)
    if view.flip:
        shown = shown.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return functional.pil_to_tensor(shown).contiguous()


def _show_boxes(boxes: torch.Tensor, view: View) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) xyxy in stored pixels to those inside the view, in its pixels, and which to keep (N,)."""
    height, width = view.size
    offset = torch.tensor(view.source[:2]).repeat(2)
    boxes = (boxes - offset) * torch.tensor(view.scale).repeat(2)
    boxes = boxes.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))
    if view.flip:
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    return boxes, (boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(dim=1)
