"""Data sets with one row an image and an `objects` column, as on the Hub, as detection data sets."""

import json
import logging
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher

from .coco import DetectionDataset, build_detection_dataset
from .coco_tables import CocoTables
from .images import image_source, unreadable
from .objects_fields import (
    OBJECT_FIELDS,
    RENAME,
    SCHEMA,
    areas_of,
    boxes_of,
    categories_of,
    check_absolute,
    class_label_names,
    crowd_flags,
    flat_objects,
    is_number,
    unique_ids,
)

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "image_id", "width", "height", "objects")
_BATCH = 1000


def objects_dataset(
    dataset: datasets.Dataset,
    *,
    id2label: Mapping[int, str] | None = None,
    name: str = "dataset",
    columns: Mapping[str, str] | None = None,
) -> DetectionDataset:
    """Make a detection data set of one with the `objects` schema (that of cppe-5).

    A row is an image: `image` (a `datasets.Image`), `image_id`, `width`, `height` (pixels of the stored image, without
    EXIF rotation) and `objects`, a dict of lists or a list of dicts: `id`, `bbox` `[x, y, width, height]` in pixels of
    the stored image, `category` (ClassLabel, name, or integer), `area` (px²) and `iscrowd`. All but `image`,
    `objects.bbox` and `objects.category` may be missing; `categories` is accepted for `category`.

    Names are those of the ClassLabel, or the sorted texts, or for integers those of `id2label` at that label and
    `class_0`, `class_1`, ... without it. Missing sizes are read from the headers of the image files; no pixel is
    decoded. Image ids that are missing, repeated or no integers are replaced by row numbers, box ids by 0, 1, ....
    Boxes are cleaned as in `load_detection_dataset`. The ground truth is written once as COCO json to
    `drmm_hf/` in the cache folder of `datasets`, and is the result's `annotations_path`.

    Args:
        dataset: one split.
        id2label: labels 0..C-1 and names of an existing model; every category of the data must be in it.
        name: what messages call the data set.
        columns: names of the data set by those of the schema, where they differ: `{"image": "photo",
            "bbox": "boxes"}`.

    Raises:
        FileNotFoundError: an image whose size is needed is missing.
        ValueError: columns are missing or hold values that cannot be right, or the categories do not fit `id2label`.
    """
    names = check_names(columns, name)
    dataset = _select_columns(dataset, names, name)
    table = dataset.select_columns([c for c in dataset.column_names if c != "image"]).with_format("arrow")[:]
    pictures = _picture_column(dataset, name)
    objects = flat_objects(table.column("objects").combine_chunks(), names, name)
    boxes = boxes_of(objects)
    class_names = class_label_names(dataset.features["objects"], objects.names["category"])
    category_index, category_names = categories_of(objects, class_names, id2label)
    widths, heights = _sizes(table, pictures, name)
    check_absolute(boxes, widths, name)
    image_ids = unique_ids(table.column("image_id") if "image_id" in table.column_names else None)
    if image_ids is None:
        if "image_id" in table.column_names:
            logger.warning("%s: image_id are not different integers; row numbers are used instead", name)
        image_ids = np.arange(len(dataset))
    annotation_ids = unique_ids(objects.fields.get("id"))
    tables = CocoTables(
        image_ids=image_ids,
        widths=widths,
        heights=heights,
        file_names=[""] * len(dataset),
        category_ids=list(range(len(category_names))),
        category_names=category_names,
        annotation_ids=np.arange(len(boxes)) if annotation_ids is None else annotation_ids,
        image_index=objects.rows,
        category_index=category_index,
        boxes=boxes,
        areas=areas_of(objects),
        is_crowd=crowd_flags(objects),
    )
    cache = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "drmm_hf"
    result = build_detection_dataset(tables, id2label, name, annotations_path=cache, images_dir=cache)
    rows = datasets.concatenate_datasets([pictures, result.dataset.remove_columns("image")], axis=1)
    result = replace(result, dataset=rows)
    return replace(result, annotations_path=_write_ground_truth(result, cache, name))


def coco_ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """The COCO instances dict of a detection data set, of its cleaned boxes.

    Args:
        dataset: one split, which stays as it is.

    Returns:
        `images` (id, file_name, width, height in pixels), `categories` (id, name: those of the data, not the further
        ones of a given `id2label`) and `annotations` (id, image_id, category_id, bbox `[x, y, width, height]` in pixels
        of the stored image, area in px², iscrowd).
    """
    categories = [
        {"id": category_id, "name": dataset.id2label[label]}
        for label, category_id in enumerate(dataset.category_ids)
        if category_id >= 0
    ]
    images, annotations = [], []
    # In Arrow batches, since rows as Python objects would copy the bytes of every image.
    for batch in dataset.dataset.with_format("arrow").iter(_BATCH):
        paths = pc.struct_field(batch.column("image"), "path").to_pylist()
        rows = batch.select(["image_id", "width", "height", "objects"]).to_pylist()
        for row, path in zip(rows, paths, strict=True):
            image_id = row["image_id"]
            images.append(
                {
                    "id": image_id,
                    "file_name": path or str(image_id),
                    "width": row["width"],
                    "height": row["height"],
                }
            )
            objects = row["objects"]
            annotations += [
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": crowd,
                }
                for annotation_id, bbox, label, area, crowd in zip(
                    *(objects[field] for field in OBJECT_FIELDS), strict=True
                )
            ]
    return {
        "images": images,
        "categories": sorted(categories, key=lambda category: category["id"]),
        "annotations": annotations,
    }


def check_names(columns: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """The data set's name of every column and field of the schema."""
    known = IMAGE_COLUMNS + OBJECT_FIELDS
    unknown = sorted(set(columns or {}) - set(known))
    if unknown:
        raise ValueError(f"{name}: columns={columns}: {unknown} are not in the schema; the keys must be of {known}")
    return {**{key: key for key in known}, **(columns or {})}


def _select_columns(dataset: datasets.Dataset, names: Mapping[str, str], name: str) -> datasets.Dataset:
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"{name}: is a {type(dataset).__name__}; give a `datasets.Dataset`: one split, not read as a stream"
        )
    missing = [names[key] for key in ("image", "objects") if names[key] not in dataset.column_names]
    if missing:
        raise ValueError(f"{name}: has no column {missing}, only {dataset.column_names}; needed are {SCHEMA}; {RENAME}")
    if not len(dataset):
        raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    present = {names[key]: key for key in IMAGE_COLUMNS if names[key] in dataset.column_names}
    dataset = dataset.with_format(None).select_columns(list(present))
    return dataset.rename_columns({old: new for old, new in present.items() if old != new})


def _picture_column(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    feature = dataset.features["image"]
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # parquet not written by `datasets`
    if not isinstance(feature, datasets.Image) and feature != plain:
        raise ValueError(
            f"{name}: `image` is {feature}, not a `datasets.Image`; cast it: "
            'dataset.cast_column("image", datasets.Image())'
        )
    pictures = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    start = 0
    for batch in pictures.with_format("arrow").iter(_BATCH):
        empty = np.ones(len(batch), dtype=bool)
        for field in ("bytes", "path"):
            empty &= np.asarray(pc.is_null(pc.struct_field(batch.column("image"), field)))
        if empty.any():
            raise ValueError(f"{name}: image of row {start + int(empty.argmax())} is missing; remove the row")
        start += len(batch)
    return pictures


def _sizes(table: pa.Table, pictures: datasets.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights (I,) int32 in stored pixels; those not given are read from the image headers."""
    sizes = np.full((len(table), 2), np.nan)
    for index, field in enumerate(("width", "height")):
        if field not in table.column_names or pa.types.is_null(table.column(field).type):
            continue
        column = table.column(field)
        if not is_number(column.type):
            raise ValueError(f"{name}: {field} is {column.type}; it must be a number of pixels: convert or remove it")
        values = column.cast(pa.float64(), safe=False).to_numpy()
        bad = ~np.isnan(values) & ~((values > 0) & (values < 2**31) & (values == np.floor(values)))
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{name}: {field} of row {row} is {column[row].as_py()}; it must be a positive number of pixels: "
                "correct it, or remove the column"
            )
        sizes[:, index] = values
    for row in np.flatnonzero(np.isnan(sizes).any(axis=1)).tolist():
        sizes[row] = header_size(pictures[row], f"{name}: image of row {row}")
    return sizes[:, 0].astype(np.int32), sizes[:, 1].astype(np.int32)


def header_size(example: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Width and height of an image in stored pixels, of its header alone; `where` begins the message of an error."""
    source, file = image_source(example)
    try:
        with PIL.Image.open(source) as image:  # type: ignore[arg-type]
            return image.size
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: {file}: no such image file; restore it or remove the row") from None
    except Exception as error:
        raise unreadable(f"{where}: {file}", error) from error


def _write_ground_truth(dataset: DetectionDataset, folder: Path, name: str) -> Path:
    """Path of the COCO json, which is written unless an equal data set has been read before."""
    # The fingerprint covers the rows; the ids of the categories are not among them.
    fingerprint = Hasher.hash([dataset.dataset._fingerprint, dataset.category_ids])
    title = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")[-60:]
    path = folder / f"{title or 'dataset'}-{fingerprint}.json"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        temporary.write_text(json.dumps(coco_ground_truth(dataset)))
        os.replace(temporary, path)  # several processes may read the same data set at a time
    finally:
        temporary.unlink(missing_ok=True)
    return path
