"""Large photos in overlapping tiles: the detector sees each at its own scale, and every object is kept once."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.ops import box_area, box_iou
from tqdm.auto import tqdm

from ..data import decode_image
from .predict import Detection, PredictOptions, Row, predict_batches

SAME = 0.5
"""IoU from which detections of one class, in two tiles, may be the same object."""
MARGIN = 0.02
"""Share of a tile's side: a box that ends this close to an inner border of its tile may be cut by it."""

Box = tuple[int, int, int, int]


def tile_boxes(width: int, height: int, tile: int, overlap: float = 0.2) -> list[Box]:
    """Corners (left, top, right, bottom) of tiles that cover an image, row by row; one where the image is no larger.

    Args:
        width, height: of the image, pixels.
        tile: side of a tile, pixels; a side of the image that is shorter is taken whole.
        overlap: share of a tile's side that neighbours have in common at least. They are spread evenly.

    Raises:
        ValueError: `tile` is no number of pixels, or `overlap` does not lie in [0, 1).
    """
    if tile < 1 or not 0.0 <= overlap < 1.0:
        raise ValueError(f"tile={tile}, overlap={overlap}: give a side of at least 1 pixel and an overlap in [0, 1)")
    spans = []
    for side in (height, width):
        length = min(tile, side)
        steps = -(-(side - length) // max(1, int(length * (1.0 - overlap))))
        starts = [step * (side - length) // max(1, steps) for step in range(steps + 1)]
        spans.append([(start, start + length) for start in starts])
    return [(left, top, right, bottom) for top, bottom in spans[0] for left, right in spans[1]]


def predict_tiled(
    model: nn.Module,
    processor: Any,
    rows: Iterable[Row],
    *,
    tile: int = 800,
    overlap: float = 0.2,
    **options: Unpack[PredictOptions],
) -> Iterator[tuple[list[Row], list[Detection]]]:
    """Each row by itself with its detections, as `predict_batches` gives batches, from tiles of its image.

    `merge_tiles` says how the detections of the tiles become those of the image; an object is seen whole if it is no
    larger than what neighbouring tiles have in common, `overlap * tile`. Memory holds tiles of a few batches.

    Args:
        model, processor, options: as in `predict_dataset`, of the tiles: `top_k` is kept in each.
        rows: with an `image`, as `decode_image` takes it.
        tile: side of a tile in pixels of the image. The processor resizes tiles as it does images: take about the size
            of the images that the model was trained on.
        overlap: share of a tile's side that neighbours have in common.
    """
    bar = tqdm(total=0, desc="detecting", unit="tile", disable=not options.get("progress", True))
    of_tiles: PredictOptions = {**options, "progress": False}

    def cut() -> Iterator[Row]:
        for row in rows:
            image = decode_image(row)
            boxes = tile_boxes(image.width, image.height, tile, overlap)
            bar.total = (bar.total or 0) + len(boxes)  # the images are opened one after the other
            bar.refresh()
            for box in boxes:
                yield {"image": image.crop(box), "row": row, "boxes": boxes, "size": image.size}

    parts: list[Detection] = []
    with bar:
        for batch, found in predict_batches(model, processor, cut(), **of_tiles):
            bar.update(len(batch))
            for part, detections in zip(batch, found, strict=True):
                parts.append(detections)
                if len(parts) == len(part["boxes"]):
                    yield [part["row"]], [merge_tiles(parts, part["boxes"], part["size"])]
                    parts = []


def merge_tiles(detections: Sequence[Detection], tiles: Sequence[Box], size: tuple[int, int]) -> Detection:
    """The detections of an image from those of its tiles; none changes but for its place.

    1. A detection that ends at an inner border of its tile may be a piece of an object. It gives way to the tile that
       holds its box whole, whatever that tile has found there: it sees more of the object.
    2. Of what is left, two detections of one class in different tiles with an IoU of `SAME` are one object, and so are
       pieces of an object that no tile holds whole, if half of the smaller lies in the larger. The higher score stays,
       of pieces the larger box. A detection has one such double in another tile at most, because inside a tile every
       detection stands for an object of its own: nothing is suppressed there.

    Scores stay the p·o of the detection that stays: to see an object twice is no second evidence of it.

    Args:
        detections: of each tile, with `boxes` in its pixels.
        tiles: corners of each tile, as `tile_boxes` gives them.
        size: width and height of the image.

    Returns:
        `boxes` in pixels of the image, and whatever else the tiles have; best first.
    """
    if len(tiles) == 1:
        return detections[0]
    found = {name: torch.cat([one[name] for one in detections]) for name in detections[0]}
    corners = torch.tensor(tiles, dtype=torch.float32)
    owner = torch.arange(len(tiles)).repeat_interleave(torch.tensor([len(one["scores"]) for one in detections]))
    found["boxes"] = found["boxes"] + corners[owner][:, :2].repeat(1, 2)
    cut = ~_holds(corners[owner], found["boxes"], size)
    elsewhere = torch.zeros_like(cut)
    for corner in corners:
        elsewhere |= _holds(corner, found["boxes"], size)
    whole = ~cut | ~elsewhere
    found, owner, cut = {name: values[whole] for name, values in found.items()}, owner[whole], cut[whole]
    left = (~_doubles(found, owner, cut, corners)).nonzero()[:, 0]
    left = left[found["scores"][left].argsort(descending=True, stable=True)]
    return {name: values[left] for name, values in found.items()}


def _holds(tile: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n,) whether boxes (n, 4) end before the borders of the tile, (4,) or (n, 4), that are none of the image."""
    inside = torch.cat((boxes[:, :2] - tile[..., :2], tile[..., 2:] - boxes[:, 2:]), dim=1)
    sides = tile[..., 2:] - tile[..., :2]
    outer = tile == torch.tensor([0.0, 0.0, *size])
    return ((inside > MARGIN * torch.cat((sides, sides), dim=-1)) | outer).all(1)


def _doubles(found: Detection, owner: Tensor, cut: Tensor, tiles: Tensor) -> Tensor:
    """(n,) which detections give way to another; `owner` (n,) is the tile of each, `cut` (n,) tells pieces."""
    boxes, labels = found["boxes"], found["labels"]
    area = box_area(boxes).clamp(min=1e-6)
    order = torch.where(cut, area, found["scores"]).argsort(descending=True, stable=True)
    rank = torch.cat((order[~cut[order]], order[cut[order]])).argsort()
    pairs: list[tuple[int, float, int, int, int]] = []
    for first, second in box_iou(tiles, tiles).triu(1).nonzero().tolist():
        one, other = (owner == first).nonzero()[:, 0], (owner == second).nonzero()[:, 0]
        iou = box_iou(boxes[one], boxes[other])
        shared = iou / (1.0 + iou) * (area[one, None] + area[other])
        ahead = rank[one, None] < rank[other]
        piece = torch.where(ahead, cut[other] * shared / area[other], cut[one, None] * shared / area[one, None])
        likeness = torch.where(labels[one, None] == labels[other], iou.maximum(piece), 0.0)
        for i, j in (likeness >= SAME).nonzero().tolist():
            ends = (one[i], other[j]) if ahead[i, j] else (other[j], one[i])
            stays, goes = int(ends[0]), int(ends[1])
            pairs.append((int(rank[stays]), -float(likeness[i, j]), stays, goes, int(owner[goes])))
    gone = torch.zeros_like(cut)
    taken = set()
    for _, _, stays, goes, tile in sorted(pairs):
        if not gone[stays] and not gone[goes] and (stays, tile) not in taken:
            gone[goes] = True
            taken.add((stays, tile))
    return gone
