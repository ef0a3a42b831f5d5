"""The check of the data before a training: what is in the splits, what is doubtful, and what cannot train."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from .images import decode_image_at_least
from .rows import ARE_THEY_CORNERS, DetectionDataset, turned_notice
from .transforms import TrainTransform

_SAMPLE = 64
"""So many images of a split are opened."""
_SHOWN = 10
_VISIBLE = 8
"""Pixels of the network input that an object should have."""
_ENOUGH = 20
"""Of fewer boxes it may be chance where they lie."""
_HEAD = 1 << 14
_MOST_FILES, _MOST_EMBEDDED = 20_000, 2_000
"""Images of a split that are compared with those of the other one: files, and images inside of tables."""


def check_data(
    train: DetectionDataset,
    val: DetectionDataset | None = None,
    *,
    size: Mapping[str, int],
    num_proposals: int | None = None,
) -> dict[str, Any]:
    """What a training will find in its data.

    A sample of the images is opened, and files that are of the same length are compared; all else follows from the
    rows.

    Args:
        train, val: the splits.
        size: of the network input in pixels: `shortest_edge` and `longest_edge`, or `height` and `width`.
        num_proposals: of the model.

    Returns:
        `splits` (counts of each), `classes` (name to the number of boxes in each split), `unused_classes`, `scale` (the
        network input, and how large boxes are in it), `duplicates` (pairs of the same file content in both splits),
        `repeated` (pairs of it in each split), `warnings`, and `problem`, why it cannot train, or None.
    """
    parts = {"train": train} if val is None else {"train": train, "val": val}
    columns = {name: _Columns(part) for name, part in parts.items()}
    splits = {name: _counts(part, columns[name]) for name, part in parts.items()}
    classes = {
        name: {split: columns[split].of_class[label] for split in parts} for label, name in train.id2label.items()
    }
    sides, smallest = columns["train"].shorter_sides(size), TrainTransform.min_box_size
    small = int((sides < smallest).sum())
    report: dict[str, Any] = {
        "splits": splits,
        "classes": classes,
        "unused_classes": [name for name, counts in classes.items() if not counts["train"]],
        "scale": {
            "size": dict(size),
            "min_box_size": smallest,
            "boxes": len(sides),
            "boxes_below": small,
            "median_shorter_side": round(float(np.median(sides)), 1) if len(sides) else None,
        },
        "num_proposals": num_proposals,
        **_duplicates(parts),
    }
    report["warnings"] = list(_warnings(report, parts, columns, sides))
    report["problem"] = None
    if not len(sides):
        report["problem"] = "the training split has no boxes to learn from" + (
            f": all {train.report.crowd} are `iscrowd`" if train.report.crowd else ""
        )
    elif small == len(sides):
        report["problem"] = (
            f"all {small} boxes of the training split are shorter than {smallest:g} px at the network input of "
            f"{_text(size)}, too small to learn from; {_larger(size, sides)}"
        )
    return report


def format_check(report: Mapping[str, Any]) -> str:
    """A report of `check_data` as a few lines."""
    lines = []
    for name, part in report["splits"].items():
        share = part["clipped_boxes"] / max(part["boxes"], 1)
        clipped = f", {part['clipped_boxes']} clipped, {share:.0%}" if share else ""
        dropped = part["dropped_zero_area"] + part["dropped_outside"]
        turned = f", {part['turned_images']} with an EXIF orientation" if part["turned_images"] else ""
        lines.append(
            f"{name}: {part['images']} images ({part['boxless_images']} without boxes{turned}), {part['boxes']} boxes "
            f"({part['crowd']} crowd{clipped}{f', {dropped} dropped' if dropped else ''}), at most "
            f"{part['most_objects']} in one image; {part['kind']}"
        )
    counts = sorted(((sum(of.values()), name) for name, of in report["classes"].items()), reverse=True)
    shown = ", ".join(f"{name} {count}" for count, name in counts[:_SHOWN])
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    lines.append(f"classes ({len(counts)}): {shown}{more}")
    scale = report["scale"]
    if scale["boxes"]:
        lines.append(
            f"at the network input of {_text(scale['size'])} px: half of the boxes are at least "
            f"{scale['median_shorter_side']:g} px wide and high, {scale['boxes_below']} are below "
            f"{scale['min_box_size']:g} px"
        )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report["warnings"])])


class _Columns:
    """Boxes of a split without its crowd regions: sides, right and lower ends (M, 2), and image sizes; counts."""

    def __init__(self, part: DetectionDataset):
        table = part.dataset.select_columns(["width", "height", "objects"]).with_format("arrow")[:].flatten()
        counts = np.asarray(pc.list_value_length(table["objects.category"]))
        image_of = np.repeat(np.arange(len(counts)), counts)
        kept = np.asarray(pc.list_flatten(table["objects.iscrowd"])) == 0
        boxes = np.asarray(pc.list_flatten(pc.list_flatten(table["objects.bbox"]))).reshape(-1, 4)
        self.sides = boxes[kept, 2:].astype(np.float64)
        self.ends = boxes[kept, :2] + self.sides
        labels = np.asarray(pc.list_flatten(table["objects.category"]))[kept]
        self.of_class = np.bincount(labels, minlength=len(part.id2label)).tolist()
        self.counts = np.bincount(image_of[kept], minlength=len(counts))
        sizes = np.stack([np.asarray(table.column(side)) for side in ("width", "height")], axis=1)
        self.image_sizes = sizes[image_of[kept]].astype(np.float64)

    def shorter_sides(self, size: Mapping[str, int]) -> np.ndarray:
        """The shorter side (M,) of each box in pixels of the network input."""
        if "height" in size:
            return (self.sides * [size["width"], size["height"]] / self.image_sizes).min(axis=1)
        shorter, longer = self.image_sizes.min(axis=1), self.image_sizes.max(axis=1)
        longest = size.get("longest_edge") or np.inf
        return self.sides.min(axis=1) * np.minimum(size["shortest_edge"] / shorter, longest / longer)


def _counts(part: DetectionDataset, columns: _Columns) -> dict[str, Any]:
    """What is in a split, and which of some images cannot be read."""
    unreadable: list[str] = []
    chosen = _evenly(len(part), _SAMPLE)
    for row in part.dataset.select(chosen):
        try:
            decode_image_at_least(row, lambda _: (1, 1))
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
    return {
        "kind": part.kind,
        "annotations": str(part.annotations_path),
        **asdict(part.report),
        "images": len(part),
        "most_objects": int(columns.counts.max(initial=0)),
        "opened_images": len(chosen),
        "unreadable_images": unreadable,
    }


def _duplicates(parts: Mapping[str, DetectionDataset]) -> dict[str, Any]:
    """Pairs of files of equal content: of the same length, then the same beginning, then the same."""
    alike: dict[Any, list[tuple[str, str, Path | bytes]]] = defaultdict(list)
    for split, part in parts.items():
        for name, length, content in _files(part):
            if length:
                alike[length].append((split, name, content))
    for limit in (_HEAD, -1):
        several, alike = [files for files in alike.values() if len(files) > 1], defaultdict(list)
        for files in several:
            for split, name, content in files:
                alike[_digest(content, limit)].append((split, name, content))
    pairs: dict[str, list[list[str]]] = {"both": [], **{split: [] for split in parts}}
    for files in alike.values():
        first: dict[str, str] = {}
        for split, name, _ in files:  # those of the training split come first
            if split in first:
                pairs[split].append([first[split], name])
            elif first:
                pairs["both"].append([first["train"], name])
            first.setdefault(split, name)
    return {"duplicates": pairs.pop("both"), "repeated": pairs}


def _files(part: DetectionDataset) -> Iterator[tuple[str, int, Path | bytes]]:
    """Name, length and content (or where it is) of the images that can be found, of a large split of some."""
    embedded = part.dataset[0]["image"]["bytes"] is not None
    images = part.dataset.select_columns(["image", "image_id"])
    for row in images.select(_evenly(len(part), _MOST_EMBEDDED if embedded else _MOST_FILES)):
        content, path = row["image"]["bytes"], row["image"]["path"]
        if content is not None:
            yield path or f"image {row['image_id']}", len(content), content
        elif path and Path(path).is_file():
            yield path, Path(path).stat().st_size, Path(path)


def _evenly(number: int, most: int) -> list[int]:
    """At most so many places, evenly among all."""
    return np.unique(np.linspace(0, number - 1, min(most, number)).astype(int)).tolist()


def _digest(content: Path | bytes, limit: int = -1) -> bytes:
    if isinstance(content, Path):
        with content.open("rb") as file:
            content = file.read(limit)
    return hashlib.blake2b(content if limit < 0 else content[:limit]).digest()


def _warnings(
    report: Mapping[str, Any],
    parts: Mapping[str, DetectionDataset],
    columns: Mapping[str, _Columns],
    sides: np.ndarray,
) -> Iterator[str]:
    for name, part in report["splits"].items():
        leaving = part["clipped_boxes"] + part["dropped_outside"]
        every = part["boxes"] + part["dropped_outside"]
        if leaving > 0.05 * every:
            reason = ARE_THEY_CORNERS if 2 * leaving > every else "Are the sizes those of these images?"
            yield f"{name}: {leaving} of {every} boxes stick out of their image. {reason}"
        reach = (columns[name].ends / columns[name].image_sizes).max(initial=0.0)
        if part["boxes"] >= _ENOUGH and 0 < reach < 0.5:
            yield (
                f"{name}: all boxes lie in the upper left quarter of their images; are they percent, or of images of "
                "another size?"
            )
        if name == "val" and part["boxless_images"] == part["images"]:
            yield f"{name}: no image has a box that counts, so that AP and AR cannot be measured and will be -1"
        elif part["boxes"] and 2 * part["crowd"] > part["boxes"]:
            yield f"{name}: {part['crowd']} of {part['boxes']} boxes are `iscrowd`, neither trained on nor counted"
        if part["unreadable_images"]:
            yield (
                f"{name}: {len(part['unreadable_images'])} of {part['opened_images']} opened images cannot be read, "
                f"such as {part['unreadable_images'][0]}"
            )
        if part["misfit_images"]:
            yield f"{name}: {turned_notice(parts[name].report, parts[name].image_frame)}"
    if unused := report["unused_classes"]:
        yield f"{len(unused)} classes have no boxes in the training split: {', '.join(unused[:_SHOWN])}"
    train, proposals = report["splits"]["train"], report["num_proposals"]
    if proposals is not None and train["most_objects"] > proposals:
        yield (
            f"an image has {train['most_objects']} objects, but the model has only "
            f"{proposals} proposals and can find no more: raise num_proposals, or cut the images into tiles"
        )
    scale = report["scale"]
    if 0.01 * scale["boxes"] < scale["boxes_below"] < scale["boxes"]:
        yield (
            f"{scale['boxes_below']} of {scale['boxes']} boxes are shorter than {scale['min_box_size']:g} px at the "
            f"network input of {_text(scale['size'])}, too small to learn from; {_larger(scale['size'], sides)}"
        )
    elif scale["boxes"] and scale["median_shorter_side"] < _VISIBLE and scale["boxes_below"] < scale["boxes"]:
        yield (
            f"half of the boxes are shorter than {scale['median_shorter_side']:g} px at the network input of "
            f"{_text(scale['size'])}; {_larger(scale['size'], sides)}"
        )
    if pairs := report["duplicates"]:
        yield (
            f"{len(pairs)} images are in both splits, which makes the evaluation too good: {pairs[0][0]} and "
            f"{pairs[0][1]}" + (", ..." if len(pairs) > 1 else "")
        )
    for name, pairs in report["repeated"].items():
        if pairs:
            yield (
                f"{name}: {len(pairs)} images are copies of others, such as {pairs[0][1]} of {pairs[0][0]}; remove one "
                "of both, or give both all boxes"
            )


def _larger(size: Mapping[str, int], sides: np.ndarray) -> str:
    """The size at which nearly all boxes can be seen."""
    shortest = min(size.values())
    factor = _VISIBLE / max(float(np.quantile(sides, 0.02)), 1e-3)
    if factor <= 1:
        return "look at these boxes"
    tiles = ", or cut the images into tiles" if factor > 2 else ""
    return f"--image-size {int(np.ceil(shortest * factor / 32)) * 32} would show nearly all at {_VISIBLE} px{tiles}"


def _text(size: Mapping[str, int]) -> str:
    return "x".join(str(size[name]) for name in ("height", "width", "shortest_edge", "longest_edge") if size.get(name))
