"""The augmentation of the paper: images of many sizes, each one resample of the image pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..image_processing_drmm import keep_ratio_size
from .images import DecodedImage, Size, decode_image_at_least
from .transforms import Augmentation, View, round_up


class PaperTransform(Augmentation):
    """An example of a data set to a training sample as in the paper's schedules; the output size varies.

    The 3x schedule (paper, Section 4; released config `syncbn_fullaug`) has the augmentation of Deformable
    DETR. After a random flip, one of two branches is taken:

    1. resize so that the shorter side is one of `shortest_edges`;
    2. resize so that the shorter side is one of `crop_shortest_edges`, cut out a random rectangle, and
       resize that so that its shorter side is one of `shortest_edges`.

    Every resize keeps the aspect ratio and, where the longer side would exceed `longest_edge`, makes that
    `longest_edge` instead. All choices are uniform. Sizes are rounded as in mmdet. The steps are done as one
    bilinear, anti-aliased resample of the image pixels; a JPEG file is decoded at 1/2, 1/4 or 1/8 where that
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
        return View(source, target, size, flip=(flip < self.horizontal_flip, False), origin=source[:2])

    def _fit(self, size: Size, shortest: int) -> Size:
        """Size (height, width) after a resize to a shorter side of `shortest`."""
        return keep_ratio_size(*size, shortest, self.longest_edge)

    def _crop_axis(self, side: int, length_draw: float, start_draw: float) -> tuple[int, int]:
        """First and last-plus-one pixel of a crop along an axis of `side` pixels."""
        least, greatest = (min(limit, side) for limit in self.crop_size)
        length = _choose(range(least, greatest + 1), length_draw)
        start = _choose(range(side - length + 1), start_draw)
        return start, start + length


def _choose(values: Sequence[int], draw: float) -> int:
    return values[int(draw * len(values))]
