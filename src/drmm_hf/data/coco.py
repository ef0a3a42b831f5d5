"""COCO-format folders as Hugging Face data sets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from .coco_layout import AnyPath, check_images_exist, find_annotations, find_images_dir
from .coco_tables import CocoTables, read_coco_tables

logger = logging.getLogger(__name__)

MIN_SIDE = 1e-3
"""A box whose width or height is not larger than this (pixels) has no area."""
CLIP_TOLERANCE = 0.05
"""Clipping that moves an edge by no more than this (pixels) is rounding of the file and is not reported."""


@dataclass(frozen=True)
class DatasetReport:
    """What is in a split and what was changed while reading it. All are counts.

    `images` are all of the split, `boxes` those kept, crowd included; `boxless_images` have no box left to train on
    (crowd does not count); `clipped_boxes` are kept and stuck out by more than 0.05 px; `dropped_zero_area` had no area
    in the file; `dropped_outside` lie wholly outside their image.
    """

    images: int
    boxes: int
    crowd: int
    boxless_images: int
    clipped_boxes: int
    dropped_zero_area: int
    dropped_outside: int

    @property
    def changed_boxes(self) -> int:
        """Number of boxes that were clipped or dropped."""
        return self.clipped_boxes + self.dropped_zero_area + self.dropped_outside


@dataclass(frozen=True)
class DetectionDataset:
    """One split of a detection data set.

    `dataset` has one row an image: `image` (`datasets.Image(decode=False)`: the path or the bytes; decode with
    `drmm_hf.data.decode_image`, which does not apply the EXIF rotation that `datasets` would), `image_id`
    int64, `width` and `height` int32 (stored pixels), and `objects`, a dict of lists in file order: `id`
    int64, `bbox` float32 `[x, y, width, height]` in pixels of the stored image, `category` (ClassLabel, the
    contiguous label), `area` float32 (px², as in the file; that of the box where the file has none) and
    `iscrowd` int8.

    `id2label` and `label2id` are those for a model's configuration. `report` says what was changed while reading.
    `category_ids[label]` is the category id of the json, or -1 for a label (of a given `id2label`) it does
    not have. Data sets that do not come as COCO have a json too, made of the cleaned boxes, at `annotations_path` in
    the cache folder; `images_dir` is then that folder and holds no images.
    """

    dataset: datasets.Dataset
    id2label: dict[int, str]
    label2id: dict[str, int]
    category_ids: list[int]
    annotations_path: Path
    images_dir: Path
    report: DatasetReport

    def __len__(self) -> int:
        return len(self.dataset)


def load_detection_dataset(
    path: AnyPath,
    split: str = "train",
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    id2label: Mapping[int, str] | None = None,
) -> DetectionDataset:
    """Read one split of a COCO-format folder, or of a data set with an `objects` column.

    A folder with `annotations/` is COCO. One that `datasets` wrote (`save_to_disk`), with parquet files or with the
    metadata.jsonl of an imagefolder, and a `path` that is no folder but may be a Hub id, are read as
    `drmm_hf.data.objects_sources.load_objects_dataset` says. The rest is about COCO folders.

    The json is `annotations/instances_{split}.json` or `..._{split}2017.json`; the images are in
    `images/{split}2017/`, `{split}2017/`, `images/{split}/`, `{split}/` or `images/`. Nothing is written to
    disk and no image is decoded.

    Labels are 0..C-1 in ascending order of the category id, or, with `id2label`, those of the equal names.

    Dirt in the boxes is repaired by fixed rules and counted in `.report` (and in one line of the log, where a
    box was changed): a box partly outside its image is clipped; one wholly outside, or with a side of at most
    1e-3 px, is dropped. Crowd boxes are kept with `iscrowd=1`: training transforms drop them, and evaluation
    reads the json itself. Images without boxes are kept.

    Args:
        path: the data set's folder, or a Hub id.
        split: name of the split.
        annotations, images: the json file and the image folder, where they are elsewhere; relative to the
            working directory or to `path`.
        id2label: labels 0..C-1 and names of an existing model, to evaluate or fine-tune it. Every category of
            the json must be in it; it may have more.

    Raises:
        FileNotFoundError: the folder (and the Hub data set), the json or an image is missing.
        ValueError: the json is not COCO, holds values that cannot be right, or does not fit `id2label`.
    """
    if annotations is None and images is None:
        from .objects_sources import is_objects_source, load_objects_dataset  # which builds on this module

        if is_objects_source(path):
            return load_objects_dataset(path, split, id2label=id2label)
    annotations_path = find_annotations(path, split, annotations)
    tables = read_coco_tables(annotations_path)
    images_dir = find_images_dir(path, split, images, tables.file_names)
    check_images_exist(images_dir, tables.file_names, annotations_path)
    return build_detection_dataset(
        tables, id2label, annotations_path, annotations_path=annotations_path, images_dir=images_dir
    )


def build_detection_dataset(
    tables: CocoTables,
    id2label: Mapping[int, str] | None,
    source: Path | str,
    *,
    annotations_path: Path,
    images_dir: Path,
) -> DetectionDataset:
    """Label and clean checked tables; `source` is what messages call them.

    Raises:
        ValueError: the categories do not fit `id2label`.
    """
    labels = _label_names(tables, id2label, source)
    label2id = {name: label for label, name in enumerate(labels)}
    label_of_category = np.array([label2id[name] for name in tables.category_names], dtype=np.int64)
    category_ids = [-1] * len(labels)
    for label, category_id in zip(label_of_category.tolist(), tables.category_ids, strict=True):
        category_ids[label] = category_id

    boxes, keep, report = _clean_boxes(tables)
    _log_report(report, source)
    return DetectionDataset(
        dataset=_build_dataset(tables, boxes, keep, label_of_category, labels, images_dir),
        id2label=dict(enumerate(labels)),
        label2id=label2id,
        category_ids=category_ids,
        annotations_path=annotations_path,
        images_dir=images_dir,
        report=report,
    )


def ordered_labels(id2label: Mapping[int, str]) -> list[str]:
    """Names of labels 0..C-1.

    Raises:
        ValueError: the keys are not 0..C-1, or two names are equal.
    """
    try:
        names = {int(label): name for label, name in id2label.items()}
    except (TypeError, ValueError):
        raise ValueError(f"id2label: the keys must be integers, got {list(id2label)[:5]}") from None
    if sorted(names) != list(range(len(id2label))):
        raise ValueError(f"id2label: the keys must be 0..{len(id2label) - 1}, each once, got {sorted(names)[:10]}")
    labels = [names[label] for label in range(len(names))]
    if len(set(labels)) != len(labels):
        raise ValueError("id2label: two labels have the same name; make the names different")
    return labels


def _label_names(tables: CocoTables, id2label: Mapping[int, str] | None, source: Path | str) -> list[str]:
    if id2label is None:
        return tables.category_names
    labels = ordered_labels(id2label)
    unknown = [name for name in tables.category_names if name not in set(labels)]
    if unknown:
        raise ValueError(
            f"{source}: categories[].name {unknown[:10]} ({len(unknown)} of {len(tables.category_names)}) are "
            f"not in id2label {labels[:10]}{'...' if len(labels) > 10 else ''}; rename the categories, or "
            "train a model with this data set's own labels (leave id2label out)"
        )
    return labels


def _clean_boxes(tables: CocoTables) -> tuple[np.ndarray, np.ndarray, DatasetReport]:
    """Clipped xywh boxes (M, 4) in pixels, which of them to keep (M,), and the counts."""
    raw = tables.boxes
    limits = np.stack([tables.widths, tables.heights], axis=1)[tables.image_index].astype(np.float64)
    low, high = raw[:, :2], raw[:, :2] + raw[:, 2:]
    new_low, new_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    sides = new_high - new_low
    zero_area = (raw[:, 2:] <= MIN_SIDE).any(axis=1)
    outside = ~zero_area & (sides <= MIN_SIDE).any(axis=1)
    keep = ~zero_area & ~outside
    moved = np.maximum(new_low - low, high - new_high).max(axis=1, initial=0.0)
    crowd = tables.is_crowd.astype(bool)
    with_boxes = np.unique(tables.image_index[keep & ~crowd])
    report = DatasetReport(
        images=len(tables.image_ids),
        boxes=int(keep.sum()),
        crowd=int((keep & crowd).sum()),
        boxless_images=len(tables.image_ids) - len(with_boxes),
        clipped_boxes=int((keep & (moved > CLIP_TOLERANCE)).sum()),
        dropped_zero_area=int(zero_area.sum()),
        dropped_outside=int(outside.sum()),
    )
    return np.concatenate([new_low, sides], axis=1), keep, report


def _log_report(report: DatasetReport, source: Path | str) -> None:
    parts = []
    if report.changed_boxes:
        parts.append(
            f"{report.clipped_boxes} boxes clipped to their image, {report.dropped_zero_area} without area "
            f"and {report.dropped_outside} wholly outside dropped"
        )
    if not report.boxes:
        parts.append(f"no box at all in {report.images} images")
    if parts:
        logger.warning("%s: %s", source, "; ".join(parts))


def _build_dataset(
    tables: CocoTables,
    boxes: np.ndarray,
    keep: np.ndarray,
    label_of_category: np.ndarray,
    labels: list[str],
    images_dir: Path,
) -> datasets.Dataset:
    """Assemble the Arrow columns without a Python object per box."""
    kept = np.flatnonzero(keep)
    order = kept[np.argsort(tables.image_index[kept], kind="stable")]
    counts = np.bincount(tables.image_index[order], minlength=len(tables.image_ids))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), type=pa.int32())
    boxes = boxes[order].astype(np.float32)
    areas = np.where(np.isnan(tables.areas[order]), boxes[:, 2] * boxes[:, 3], tables.areas[order])
    columns = {
        "id": pa.array(tables.annotation_ids[order]),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), 4),
        "category": pa.array(label_of_category[tables.category_index[order]]),
        "area": pa.array(areas.astype(np.float32)),
        "iscrowd": pa.array(tables.is_crowd[order]),
    }
    objects = pa.StructArray.from_arrays(
        [pa.ListArray.from_arrays(offsets, values) for values in columns.values()], names=list(columns)
    )
    paths = pa.array([str(images_dir / name) for name in tables.file_names])
    pictures = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], names=["bytes", "path"])
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "image_id": datasets.Value("int64"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=labels)),
                "area": datasets.List(datasets.Value("float32")),
                "iscrowd": datasets.List(datasets.Value("int8")),
            },
        }
    )
    table = {
        "image": pictures,
        "image_id": pa.array(tables.image_ids),
        "width": pa.array(tables.widths),
        "height": pa.array(tables.heights),
        "objects": objects,
    }
    return datasets.Dataset.from_dict(table, features=features)
