"""Pictures of detections: labeled boxes, prediction next to ground truth, contact sheets."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

PALETTE = (
    (230, 57, 70), (33, 131, 222), (42, 168, 83), (255, 159, 28), (142, 68, 213),
    (0, 172, 193), (233, 30, 141), (141, 110, 60), (124, 179, 24), (63, 81, 205),
    (255, 112, 67), (0, 137, 123), (190, 60, 190), (255, 205, 30), (84, 110, 122),
    (175, 40, 60), (90, 160, 255), (110, 210, 130), (240, 140, 190), (100, 80, 40),
)  # fmt: skip
WHITE, INK = (255, 255, 255), (30, 30, 30)
SIDES = (960, 1600)  # pixels, of the longer side of a drawn picture, whatever the image has: tags and bands need room
_GAP = 8  # pixels between pictures
_FILL, _EDGE, _GRAY = 72, 190, (150, 150, 150)  # opacity of a band and of its ends, of 255; color of what is removed

Color = tuple[int, int, int]
Boxes = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def label_color(label: int) -> Color:
    """Color of a label, RGB; always the same for the same label."""
    return PALETTE[int(label) % len(PALETTE)]


def draw_detections(
    image: Image.Image,
    detections: Boxes,
    id2label: Mapping[int, str],
    *,
    threshold: float = 0.3,
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

    Returns:
        RGB image of the same size. Boxes are clipped to the image; those outside it, or not finite, are left out. The
        surest boxes lie on top.
    """
    canvas = image.convert("RGB")
    boxes, labels, scores = _read_boxes(detections)
    boxes = torch.cat((boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])), dim=1)
    visible = boxes.isfinite().all(1) & (boxes[:, 2:] > 0).all(1) & (boxes[:, :2] < torch.tensor(canvas.size)).all(1)
    chosen = [i for i in visible.nonzero()[:, 0].tolist() if scores[i] is None or scores[i] >= threshold]
    chosen.sort(key=lambda i: -1.0 if scores[i] is None else scores[i])
    if chosen:
        boxes = clip_boxes_to_image(boxes[chosen], canvas.size[::-1])
        size = math.sqrt(canvas.width * canvas.height)
        # Many small objects on a large photo: lines and tags follow them, as far as the whole can still be read.
        size = max(min(size, 10 * float((boxes[:, 2:] - boxes[:, :2]).median())), size / 4)
        # A box ends between pixels, so its last pixel is the one before its right and its lower edge.
        first = boxes[:, :2].round().minimum(torch.tensor(canvas.size) - 1)
        pixels = torch.cat((first, (boxes[:, 2:].round() - 1).maximum(first)), dim=1).long()
        colors = [label_color(labels[i]) for i in chosen]
        picture = draw_bounding_boxes(pil_to_tensor(canvas), pixels, colors=colors, width=max(1, round(size / 250)))
        canvas = to_pil_image(picture)
        texts = [" ".join(str(id2label.get(labels[i], labels[i])).split()) for i in chosen]  # on one line
        texts = [t if scores[i] is None else f"{t} {scores[i]:.2f}" for t, i in zip(texts, chosen, strict=True)]
        tags = list(zip(texts, colors, pixels.tolist(), strict=True))
        _draw_tags(canvas, _font(size), tags[::-1])  # the surest choose their place first
    return canvas


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
        image, detections, id2label: tensors as in `draw_detections`; all are drawn.
        intervals: (n, 2, 4) lower and upper end of each edge, same pixels; no bands without.
        removed: (n,) bool, detections to cross out in gray.

    Returns:
        RGB image whose longer side lies within `SIDES`.
    """
    factor = min(max(max(image.size), SIDES[0]), SIDES[1]) / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = torch.tensor([canvas.width / image.width, canvas.height / image.height] * 2)
    boxes = detections["boxes"] * pixels
    kept = torch.ones(len(boxes), dtype=torch.bool) if removed is None else ~removed
    pen = ImageDraw.Draw(canvas, "RGBA")
    for left, top, right, bottom in boxes[~kept].tolist():
        corners = (left, top), (right, top), (right, bottom), (left, bottom)
        # its border, and both diagonals on the way
        pen.line([corners[place] for place in (0, 1, 2, 3, 0, 2, 3, 1)], fill=_GRAY, width=3)
    if intervals is not None:
        # PIL walks through every row of a rectangle, seen or not
        ends = (intervals * pixels).clamp(-_GAP, max(size) + _GAP)
        for index in reversed(kept.nonzero()[:, 0].tolist()):  # the surest last, on top of the others
            color = label_color(int(detections["labels"][index]))
            left, top, right, bottom = boxes[index].tolist()
            for edge, (low, high) in enumerate(zip(*ends[index].tolist(), strict=True)):
                strip = (low, top, high, bottom) if edge % 2 == 0 else (left, low, right, high)
                if strip[0] <= strip[2] and strip[1] <= strip[3]:
                    pen.rectangle(strip, fill=(*color, _FILL), outline=(*color, _EDGE))
    shown = {name: detections[name][kept] for name in ("labels", "scores")} | {"boxes": boxes[kept]}
    return draw_detections(canvas, shown, id2label, threshold=0.0)


def draw_comparison(
    image: Image.Image, ground_truth: Boxes, detections: Boxes, id2label: Mapping[int, str], *, threshold: float = 0.3
) -> Image.Image:
    """Ground truth on the left, prediction on the right, each under its caption; arguments as in `draw_detections`."""
    pictures = []
    for caption, boxes in (("ground truth", ground_truth), ("prediction", detections)):
        drawn = draw_detections(image, boxes, id2label, threshold=threshold)
        font = _font(math.sqrt(image.width * image.height))
        strip = math.ceil(font.size * 1.6)
        pictures.append(ImageOps.expand(drawn, (0, strip, 0, 0), WHITE))
        ImageDraw.Draw(pictures[-1]).text((font.size // 3, strip / 2), caption, fill=INK, font=font, anchor="lm")
    return contact_sheet(pictures, 2)


def contact_sheet(images: Sequence[Image.Image], columns: int, *, cell_width: int | None = None) -> Image.Image:
    """Lay at least one image out in rows of equal cells, each as wide as `cell_width` pixels or the widest image."""
    width = cell_width or max(image.width for image in images)
    cells = [
        image.convert("RGB").resize((width, max(1, round(image.height * width / image.width)))) for image in images
    ]
    height, columns = max(cell.height for cell in cells), min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), WHITE)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def _read_boxes(detections: Boxes) -> tuple[torch.Tensor, list[int], list[float | None]]:
    """Corners (n, 4) xyxy float64, labels, and scores (None where there are none)."""
    if not isinstance(detections, Mapping):
        columns = {"bbox": "bbox", "category": "category_id", "scores": "score"}
        detections = {name: [entry.get(key) for entry in detections] for name, key in columns.items()}
    corners = "boxes" in detections
    boxes = torch.as_tensor(detections["boxes" if corners else "bbox"], dtype=torch.float64).cpu().reshape(-1, 4)
    labels = torch.as_tensor(detections["labels" if corners else "category"]).long().tolist()
    scores = detections.get("scores", [None] * len(labels))
    return (
        boxes if corners else box_convert(boxes, "xywh", "xyxy"),
        labels,
        scores.tolist() if isinstance(scores, torch.Tensor) else list(scores),
    )


def _draw_tags(canvas: Image.Image, font: Any, tags: Sequence[tuple[str, Color, list[int]]]) -> None:
    """Filled tags (text, color, box) beside their boxes (xyxy, both ends included), inside the image and apart."""
    draw, height = ImageDraw.Draw(canvas), math.ceil(font.size * 1.25)
    taken: list[tuple[int, int, int]] = []  # left, top and width of those drawn
    for text, color, (left, top, right, bottom) in tags:
        width = math.ceil(draw.textlength(text, font=font)) + 4
        ends = right + 1 - width
        places = [(left, top - height), (left, top), (ends, top - height), (left, bottom + 1), (ends, top)]
        # A tag wider than the image starts at the left edge, so that the name's beginning is legible.
        places = [(max(0, min(x, canvas.width - width)), max(0, min(y, canvas.height - height))) for x, y in places]
        free = [
            (x, y) for x, y in places if all(x >= u + w or u >= x + width or abs(y - v) >= height for u, v, w in taken)
        ]
        x, y = (free or places)[0]
        taken.append((x, y, width))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 150
        draw.text((x + 2, y + height / 2), text, fill=INK if bright else WHITE, font=font, anchor="lm")


def _font(size: float) -> Any:
    return ImageFont.load_default(size=max(10, round(size / 42)))
