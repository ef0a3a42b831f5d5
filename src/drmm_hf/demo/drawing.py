"""Draws detections with the uncertainty of their edges, and those that NMS would remove."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw

from ..visualization import draw_detections, label_color

SIDES = (960, 1600)
"""The longer side of a drawn picture lies between these pixels, whatever the image has: tags and bands need room."""
_FILL, _EDGE = 72, 190  # opacity of a band and of its ends, of 255
_GRAY = (150, 150, 150)


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels at which an image of this (width, height) is drawn."""
    longest = max(size)
    factor = min(max(longest, SIDES[0]), SIDES[1]) / longest
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def draw_view(
    image: Image.Image,
    detections: Mapping[str, torch.Tensor],
    id2label: Mapping[int, str],
    *,
    intervals: torch.Tensor | None = None,
    removed: torch.Tensor | None = None,
) -> Image.Image:
    """Boxes, tags, and a band around each edge.

    Args:
        image: the picture, any size; left unchanged.
        detections: `boxes` (n, 4) xyxy in pixels of `image`, `labels` (n,) and `scores` (n,); all are drawn.
        id2label: names of the labels.
        intervals: (n, 2, 4) lower and upper end of each edge, same pixels; no bands without.
        removed: (n,) bool, detections to cross out in gray.

    Returns:
        RGB image of `display_size`.
    """
    canvas = image.convert("RGB").resize(display_size(image.size), Image.Resampling.BICUBIC)
    factor = torch.tensor([canvas.width / image.width, canvas.height / image.height] * 2)
    boxes = detections["boxes"] * factor
    kept = torch.ones(len(boxes), dtype=torch.bool) if removed is None else ~removed
    for box in boxes[~kept].tolist():
        _cross_out(canvas, box)
    if intervals is not None:
        # The surest last, on top of the others.
        for index in reversed(kept.nonzero()[:, 0].tolist()):
            color = label_color(int(detections["labels"][index]))
            canvas = _draw_bands(canvas, boxes[index].tolist(), (intervals[index] * factor).tolist(), color)
    shown = {name: detections[name][kept] for name in ("labels", "scores")} | {"boxes": boxes[kept]}
    return draw_detections(canvas, shown, id2label, threshold=0.0)


def _draw_bands(
    canvas: Image.Image, box: Sequence[float], ends: Sequence[Sequence[float]], color: tuple[int, int, int]
) -> Image.Image:
    """Four strips: where the left, top, right and bottom edge may lie, each as long as the box is."""
    (left0, top0, right0, bottom0), (left1, top1, right1, bottom1) = ends
    left, top, right, bottom = box
    strips = (
        (left0, top, left1, bottom), (left, top0, right, top1),
        (right0, top, right1, bottom), (left, bottom0, right, bottom1),
    )  # fmt: skip
    layer = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(layer)
    for x0, y0, x1, y1 in strips:
        if x1 >= x0 and y1 >= y0:
            draw.rectangle((x0, y0, x1, y1), fill=(*color, _FILL))
    for number, (x0, y0, x1, y1) in enumerate(strips):
        sides = ((x0, y0, x0, y1), (x1, y0, x1, y1)) if number % 2 == 0 else ((x0, y0, x1, y0), (x0, y1, x1, y1))
        for side in sides:
            draw.line(side, fill=(*color, _EDGE))
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")


def _cross_out(canvas: Image.Image, box: Sequence[float]) -> None:
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box
    if right > left and bottom > top:
        draw.rectangle((left, top, right, bottom), outline=_GRAY, width=3)
        draw.line((left, top, right, bottom), fill=_GRAY, width=3)
        draw.line((left, bottom, right, top), fill=_GRAY, width=3)
