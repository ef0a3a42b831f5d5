"""Pictures of detections: labeled boxes, prediction next to ground truth, contact sheets."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

PALETTE = (
    (230, 57, 70), (33, 131, 222), (42, 168, 83), (255, 159, 28), (142, 68, 213),
    (0, 172, 193), (233, 30, 141), (141, 110, 60), (124, 179, 24), (63, 81, 205),
    (255, 112, 67), (0, 137, 123), (190, 60, 190), (255, 205, 30), (84, 110, 122),
    (175, 40, 60), (90, 160, 255), (110, 210, 130), (240, 140, 190), (100, 80, 40),
)  # fmt: skip
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)

Color = tuple[int, int, int]
Boxes = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class _Box(NamedTuple):
    corners: tuple[float, float, float, float]  # xyxy, pixels
    label: int
    score: float | None


def label_color(label: int) -> Color:
    """Color of a label, RGB; always the same for the same label."""
    return PALETTE[int(label) % len(PALETTE)]


def draw_detections(
    image: Image.Image,
    detections: Boxes,
    id2label: Mapping[int, str],
    *,
    threshold: float = 0.3,
    title: str | None = None,
) -> Image.Image:
    """Draw labeled boxes on a copy of an image.

    Args:
        image: any mode; left unchanged.
        detections: one of
            - a dict of `boxes` (n, 4), absolute xyxy in pixels of `image`, `labels` (n,) and optional
              `scores` (n,), tensors or lists, as `post_process_object_detection` returns;
            - a dict of `bbox` (n lists of [x, y, width, height] in pixels) and `category`, the `objects` of a
              data set;
            - a list of COCO annotations or results: dicts of `bbox`, `category_id`, optional `score`.
        id2label: name of each label or category id in `detections`; the number itself where it has none.
        threshold: boxes scored lower are left out; boxes without scores are all drawn.
        title: text in a strip above the image.

    Returns:
        RGB image of the same size, taller by the strip if there is a title. Boxes are clipped to the image;
        those outside it, or not finite, are left out.
    """
    canvas = image.convert("RGB")
    kept = [box for box in _read_boxes(detections) if box.score is None or box.score >= threshold]
    kept.sort(key=lambda box: -1.0 if box.score is None else box.score)  # the surest on top
    visible = [(box, corners) for box in kept if (corners := _clip(box.corners, canvas.size)) is not None]
    draw = ImageDraw.Draw(canvas)
    width = _line_width(canvas.size)
    for box, (left, top, right, bottom) in visible:
        shown = max(1, min(width, (min(right - left, bottom - top) + 1) // 2))
        draw.rectangle((left, top, right, bottom), outline=label_color(box.label), width=shown)
    taken: list[tuple[int, int, int, int]] = []
    for box, corners in reversed(visible):  # the surest choose their place first
        text = str(id2label.get(box.label, box.label))
        text = text if box.score is None else f"{text} {box.score:.2f}"
        taken.append(_draw_tag(draw, text, label_color(box.label), corners, canvas.size, taken))
    return canvas if title is None else _with_caption(canvas, title)


def draw_comparison(
    image: Image.Image,
    ground_truth: Boxes,
    detections: Boxes,
    id2label: Mapping[int, str],
    *,
    threshold: float = 0.3,
    captions: tuple[str, str] = ("ground truth", "prediction"),
) -> Image.Image:
    """Ground truth on the left, prediction on the right, each under its caption.

    Args:
        image, ground_truth, detections, id2label, threshold: as in `draw_detections`; both sets of boxes use
            the same ids.
        captions: of the left and the right picture.
    """
    left = draw_detections(image, ground_truth, id2label, threshold=threshold, title=captions[0])
    right = draw_detections(image, detections, id2label, threshold=threshold, title=captions[1])
    gap = max(4, image.width // 100)
    sheet = Image.new("RGB", (left.width + gap + right.width, max(left.height, right.height)), BACKGROUND)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + gap, 0))
    return sheet


def contact_sheet(
    images: Sequence[Image.Image], columns: int, *, cell_width: int | None = None, gap: int = 8
) -> Image.Image:
    """Lay images out in rows, each scaled to the width of a cell.

    Args:
        images: at least one; left unchanged.
        columns: images in a row, at least 1.
        cell_width: pixels; the width of the widest image unless given.
        gap: pixels between cells and around the sheet.

    Raises:
        ValueError: no images, or fewer than one column.
    """
    if not images:
        raise ValueError("contact_sheet needs at least one image")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    columns = min(columns, len(images))
    width = cell_width or max(image.width for image in images)
    cells = [
        image.convert("RGB").resize((width, max(1, round(image.height * width / image.width)))) for image in images
    ]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    size = (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    sheet = Image.new("RGB", size, BACKGROUND)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (gap + column * (width + gap), top))
        top += height + gap
    return sheet


def _read_boxes(detections: Boxes) -> list[_Box]:
    if isinstance(detections, Mapping):
        corners = "boxes" in detections
        boxes = _plain(detections["boxes" if corners else "bbox"])
        labels = _plain(detections["labels" if corners else "category"])
        scores = _plain(detections["scores"]) if "scores" in detections else [None] * len(labels)
        convert = tuple if corners else _corners
        return [_Box(convert(box), int(label), score) for box, label, score in zip(boxes, labels, scores, strict=True)]
    return [_Box(_corners(entry["bbox"]), int(entry["category_id"]), entry.get("score")) for entry in detections]


def _plain(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return (x, y, x + width, y + height)


def _clip(corners: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Integer pixels of a box inside the image, both ends included; None where nothing of it is inside."""
    if not all(math.isfinite(value) for value in corners):
        return None
    (left, right), (top, bottom) = sorted(corners[0::2]), sorted(corners[1::2])
    if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
        return None
    # An xyxy box ends between pixels, so its last pixel is the one before the right edge.
    x0, y0 = max(0, min(round(left), size[0] - 1)), max(0, min(round(top), size[1] - 1))
    x1, y1 = min(max(x0, round(right) - 1), size[0] - 1), min(max(y0, round(bottom) - 1), size[1] - 1)
    return x0, y0, x1, y1


def _line_width(size: tuple[int, int]) -> int:
    return max(1, round(math.sqrt(size[0] * size[1]) / 250))


def _font(size: tuple[int, int]) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=max(10, round(math.sqrt(size[0] * size[1]) / 42)))


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    color: Color,
    corners: tuple[int, int, int, int],
    size: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draw a filled tag at a free place next to the box and return its rectangle, xyxy."""
    font = _font(size)
    left, top, right, bottom = corners
    line_top, line_bottom = draw.textbbox((0, 0), "Ag", font=font)[1::2]
    pad = max(1, round((line_bottom - line_top) / 5))
    width = math.ceil(draw.textlength(text, font=font)) + 2 * pad
    height = math.ceil(line_bottom - line_top) + 2 * pad
    above, below = top - height, bottom + 1
    places = [(left, above), (left, top), (right + 1 - width, above), (left, below), (right + 1 - width, top)]
    inside = [_keep_inside(place, (width, height), size) for place in places]
    free = [rectangle for rectangle in inside if not any(_overlap(rectangle, other) for other in taken)]
    chosen = free[0] if free else inside[0]
    draw.rectangle((chosen[0], chosen[1], chosen[2] - 1, chosen[3] - 1), fill=color)
    draw.text((chosen[0] + pad, chosen[1] + pad - line_top), text, fill=_text_color(color), font=font)
    return chosen


def _keep_inside(place: tuple[int, int], tag: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    # A tag larger than the image starts at its left or top edge, so that the name's beginning is legible.
    left = max(0, min(place[0], size[0] - tag[0]))
    top = max(0, min(place[1], size[1] - tag[1]))
    return left, top, left + tag[0], top + tag[1]


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _text_color(background: Color) -> Color:
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def _with_caption(image: Image.Image, text: str) -> Image.Image:
    font = _font(image.size)
    top, bottom = ImageDraw.Draw(image).textbbox((0, 0), "Ag", font=font)[1::2]
    pad = max(2, round((bottom - top) / 3))
    strip = math.ceil(bottom - top) + 2 * pad
    canvas = Image.new("RGB", (image.width, image.height + strip), BACKGROUND)
    ImageDraw.Draw(canvas).text((pad, pad - top), text, fill=INK, font=font)
    canvas.paste(image, (0, strip))
    return canvas
