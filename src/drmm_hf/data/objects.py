"""Data sets with one row an image and an `objects` column, as on the Hub, as detection data sets."""

import json
import logging
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher
from huggingface_hub.errors import HFValidationError

from .coco import DetectionDataset, build_detection_dataset, ordered_labels
from .coco_layout import AnyPath
from .coco_tables import CocoTables
from .images import image_source, unreadable

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "image_id", "width", "height", "objects")
_OBJECT_FIELDS = ("id", "bbox", "category", "area", "iscrowd")
_SCHEMA = (
    "`image` and `objects` with `bbox` ([x, y, width, height] in pixels) and `category`; `image_id`, `width`, "
    "`height`, `objects.id`, `objects.area` and `objects.iscrowd` may be left out"
)
_RENAME = "rename the columns, or give `columns=` to `objects_dataset`"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPLIT_ALIASES = {"val": "validation", "validation": "val"}
_MAX_CLASSES = 10_000
"""Integer categories above this are category ids or a mistake, not labels 0..C-1."""
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
    names = _check_names(columns, name)
    dataset = _select_columns(dataset, names, name)
    table = dataset.select_columns([c for c in dataset.column_names if c != "image"]).with_format("arrow")[:]
    pictures = _picture_column(dataset, name)
    objects = _flat_objects(table.column("objects").combine_chunks(), names, name)
    boxes = _boxes(objects)
    class_names = _class_label_names(dataset.features["objects"], objects.names["category"])
    category_index, category_names = _categories(objects, class_names, id2label)
    widths, heights = _sizes(table, pictures, name)
    _check_absolute(boxes, widths, name)
    image_ids = _unique_ids(table.column("image_id") if "image_id" in table.column_names else None)
    if image_ids is None:
        if "image_id" in table.column_names:
            logger.warning("%s: image_id are not different integers; row numbers are used instead", name)
        image_ids = np.arange(len(dataset))
    annotation_ids = _unique_ids(objects.fields.get("id"))
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
        areas=_areas(objects),
        is_crowd=_crowd_flags(objects),
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
                    *(objects[field] for field in _OBJECT_FIELDS), strict=True
                )
            ]
    return {
        "images": images,
        "categories": sorted(categories, key=lambda category: category["id"]),
        "annotations": annotations,
    }


def is_objects_source(path: AnyPath) -> bool:
    """Whether `path` is a folder of `datasets` (saved, parquet, imagefolder) or, no folder, looks like a Hub id."""
    root = Path(path).expanduser()
    if root.is_dir():
        return not (root / "annotations").is_dir() and (_is_saved(root) or _holds_parquet(root) or _has_metadata(root))
    return isinstance(path, str) and not root.exists() and _HUB_ID.fullmatch(path) is not None


def load_objects_dataset(
    path: AnyPath, split: str = "train", *, id2label: Mapping[int, str] | None = None
) -> DetectionDataset:
    """Read one split of a Hub data set or of a folder of `datasets` with the `objects` schema.

    Args:
        path: a Hub id, or a folder written by `save_to_disk`, with parquet files, or an `imagefolder` with
            metadata.jsonl. A single saved `Dataset` without the name of a split counts as "train".
        split: name of the split; "val" also finds "validation" and vice versa.
        id2label: as in `objects_dataset`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a data set that can be reached.
        ValueError: it cannot be read, has no such split, or as `objects_dataset`.
    """
    splits = _load_splits(path)
    found = split if split in splits else _SPLIT_ALIASES.get(split, split)
    if found not in splits:
        raise ValueError(f"{path}: has no split {split!r}; give one of {sorted(splits)}")
    return objects_dataset(splits[found], id2label=id2label, name=f"{path} ({found})")


def _load_splits(path: AnyPath) -> dict[str, datasets.Dataset]:
    root = Path(path).expanduser()
    try:
        if not root.is_dir():
            loaded = datasets.load_dataset(str(path))
        elif _is_saved(root):
            loaded = datasets.load_from_disk(str(root))
        else:
            # Absolute, since a folder called "parquet" would otherwise be taken for the loader of that name.
            loaded = datasets.load_dataset(str(root.absolute()))
    except (ConnectionError, FileNotFoundError, HFValidationError) as error:
        if root.is_dir():
            raise ValueError(f"{path}: cannot be read as a data set ({_reason(error)}); write it again") from error
        raise FileNotFoundError(
            f"{path}: there is no such folder ({root.absolute()}), and no such data set on the Hub that can be "
            f"reached: {_reason(error)}; correct the name, or go online"
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read as a data set ({_reason(error)}); load it with `datasets` and give it to "
            "`objects_dataset`"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        # A slice such as train[:10%] keeps its whole expression as its name.
        return {str(loaded.split or "train").split("[")[0]: loaded}
    return {str(split): part for split, part in loaded.items()}


def _reason(error: BaseException) -> str:
    while type(error) is datasets.exceptions.DatasetGenerationError and error.__cause__ is not None:
        error = error.__cause__  # its own text is only "An error occurred"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _is_saved(root: Path) -> bool:
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _holds_parquet(root: Path) -> bool:
    return any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))


def _has_metadata(root: Path) -> bool:
    return any(next(root.glob(pattern), None) for pattern in ("metadata.jsonl", "*/metadata.jsonl"))


def _check_names(columns: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """The data set's name of every column and field of the schema."""
    known = _IMAGE_COLUMNS + _OBJECT_FIELDS
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
        raise ValueError(
            f"{name}: has no column {missing}, only {dataset.column_names}; needed are {_SCHEMA}; {_RENAME}"
        )
    if not len(dataset):
        raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    present = {names[key]: key for key in _IMAGE_COLUMNS if names[key] in dataset.column_names}
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


@dataclass(frozen=True)
class _Objects:
    """The boxes of all rows one after the other.

    `rows` (M,) and `positions` (M,) are each box's row and place in it; `fields[name]` has M values; `names` are the
    data set's names of the fields.
    """

    source: str
    rows: np.ndarray
    positions: np.ndarray
    fields: dict[str, pa.Array]
    names: dict[str, str]

    def fail_at(self, field: str, bad: np.ndarray, wanted: str) -> None:
        """Raise for the first of the boxes where `bad` (M,) is true."""
        if not bad.any():
            return
        index = int(bad.argmax())
        shown = repr(self.fields[field][index].as_py())
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise ValueError(
            f"{self.source}: objects.{self.names[field]} of row {self.rows[index]} (box {self.positions[index]}) is "
            f"{shown}; it must be {wanted}: correct or remove it"
        )

    def fail_type(self, field: str, wanted: str) -> NoReturn:
        kind = self.fields[field].type
        raise ValueError(f"{self.source}: objects.{self.names[field]} are {kind}; they must be {wanted}: convert them")


def _flat_objects(column: pa.Array, names: Mapping[str, str], name: str) -> _Objects:
    kind = column.type
    if pa.types.is_struct(kind):  # a dict of lists
        present = {field.name: pc.struct_field(column, field.name) for field in kind}
    elif _is_list(kind) and pa.types.is_struct(kind.value_type):
        flat = pc.list_flatten(column)
        present = {field.name: pc.struct_field(flat, field.name) for field in kind.value_type}
    elif _is_list(kind) and pa.types.is_null(kind.value_type):
        raise ValueError(f"{name}: `{names['objects']}` is empty in every row; a data set needs boxes")
    else:
        raise ValueError(f"{name}: `{names['objects']}` is {kind}; it must be a dict of lists or a list of dicts")

    names = dict(names)
    if names["category"] not in present and names["category"] == "category" and "categories" in present:
        names["category"] = "categories"  # as in the documentation of imagefolder
    missing = [names[field] for field in ("bbox", "category") if names[field] not in present]
    if missing:
        raise ValueError(
            f"{name}: `{names['objects']}` has no {missing}, only {sorted(present)}; needed are {_SCHEMA}; {_RENAME}"
        )
    fields = {field: present[names[field]] for field in _OBJECT_FIELDS if names[field] in present}
    if pa.types.is_struct(kind):
        counts = _list_lengths(fields["bbox"], names["bbox"], name)
        for field, values in fields.items():
            others = _list_lengths(values, names[field], name)
            if (others != counts).any():
                row = int((others != counts).argmax())
                raise ValueError(
                    f"{name}: objects.{names[field]} of row {row} has {others[row]} entries, but "
                    f"objects.{names['bbox']} has {counts[row]}; give every box one, or leave the field out"
                )
            fields[field] = pc.list_flatten(values)
    else:
        counts = pc.list_value_length(column).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return _Objects(name, rows, np.arange(len(rows)) - first[rows], fields, names)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _list_lengths(column: pa.Array, field: str, name: str) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64)
    if not _is_list(column.type):
        raise ValueError(f"{name}: objects.{field} is {column.type}; it must be a list with one entry a box")
    return pc.list_value_length(column).fill_null(0).to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _boxes(objects: _Objects) -> np.ndarray:
    """(M, 4) float64 xywh, finite, sides not negative."""
    column = objects.fields["bbox"]
    if not len(column):
        return np.zeros((0, 4))
    wanted = "four numbers [x, y, width, height]"
    if not _is_list(column.type) or not _is_number(column.type.value_type):
        objects.fail_type("bbox", f"lists of {wanted}")
    objects.fail_at("bbox", pc.list_value_length(column).fill_null(0).to_numpy() != 4, wanted)
    boxes = pc.list_flatten(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, 4)
    objects.fail_at("bbox", ~np.isfinite(boxes).all(axis=1), "four finite numbers (no NaN, no infinity)")
    objects.fail_at("bbox", (boxes[:, 2:] < 0).any(axis=1), f"{wanted} with width and height not negative")
    return boxes


def _check_absolute(boxes: np.ndarray, widths: np.ndarray, name: str) -> None:
    if len(boxes) and boxes.max() <= 1 and boxes.max() > 0 and widths.min() > 2:
        raise ValueError(
            f"{name}: no objects.bbox has a value above 1, so they seem relative to the image; multiply them by its "
            "width and height in pixels"
        )


def _class_label_names(feature: Any, field: str) -> list[str] | None:
    """Names of the ClassLabel of a field of `objects`, inside lists in whichever order."""
    for _ in range(3):
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            feature = feature.feature
        elif isinstance(feature, Mapping):
            feature = feature[field]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _categories(
    objects: _Objects, class_names: list[str] | None, id2label: Mapping[int, str] | None
) -> tuple[np.ndarray, list[str]]:
    """Category (M,) of every box and the names that it points into."""
    column = objects.fields["category"]
    if pa.types.is_null(column.type) and not len(column):
        column = column.cast(pa.int64())
    objects.fail_at("category", np.asarray(column.is_null()), "the category of the box")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
        objects.fail_at("category", np.array([not text.strip() for text in texts], dtype=bool), "a text not empty")
        names = sorted(set(texts))
        position = {text: index for index, text in enumerate(names)}
        return np.array([position[text] for text in texts], dtype=np.int64), names
    if not pa.types.is_integer(column.type):
        objects.fail_type("category", "ClassLabel, texts or integers")
    values = column.to_numpy()
    objects.fail_at("category", values < 0, "0 or more")
    limit = len(class_names or id2label or ()) or _MAX_CLASSES
    known_from = "ClassLabel" if class_names else "id2label" if id2label else "integers without names"
    objects.fail_at("category", values >= limit, f"a label below {limit} ({known_from})")
    if class_names is not None:
        return values.astype(np.int64), class_names
    if id2label is not None:
        return values.astype(np.int64), ordered_labels(id2label)
    if not len(values):
        raise ValueError(f"{objects.source}: has no boxes to tell the classes from; give `id2label`")
    return values.astype(np.int64), [f"class_{label}" for label in range(int(values.max()) + 1)]


def _areas(objects: _Objects) -> np.ndarray:
    """(M,) float64 px², NaN where not given."""
    column = objects.fields.get("area")
    if column is None or pa.types.is_null(column.type):
        return np.full(len(objects.rows), np.nan)
    if not _is_number(column.type):
        objects.fail_type("area", "numbers of square pixels")
    areas = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    objects.fail_at("area", (areas < 0) | (areas >= 1e30), "a number of pixels, 0 or more")
    return areas


def _crowd_flags(objects: _Objects) -> np.ndarray:
    column = objects.fields.get("iscrowd")
    if column is None or pa.types.is_null(column.type):
        return np.zeros(len(objects.rows), dtype=np.int8)
    if not pa.types.is_boolean(column.type) and not _is_number(column.type):
        objects.fail_type("iscrowd", "0 or 1")
    flags = column.cast(pa.float64(), safe=False).fill_null(0).to_numpy()
    objects.fail_at("iscrowd", (flags != 0) & (flags != 1), "0 or 1")
    return flags.astype(np.int8)


def _unique_ids(column: pa.Array | pa.ChunkedArray | None) -> np.ndarray | None:
    """The column as int64, or None where it is no column of different integers."""
    if column is None or column.null_count or not pa.types.is_integer(column.type):
        return None
    values = column.to_numpy()
    if len(np.unique(values)) != len(values) or (values.dtype == np.uint64 and (values >= 2**63).any()):
        return None
    return values.astype(np.int64)


def _sizes(table: pa.Table, pictures: datasets.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights (I,) int32 in stored pixels; those not given are read from the image headers."""
    sizes = np.full((len(table), 2), np.nan)
    for index, field in enumerate(("width", "height")):
        if field not in table.column_names or pa.types.is_null(table.column(field).type):
            continue
        column = table.column(field)
        if not _is_number(column.type):
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
        sizes[row] = _header_size(pictures[row], f"{name}: image of row {row}")
    return sizes[:, 0].astype(np.int32), sizes[:, 1].astype(np.int32)


def _header_size(example: Mapping[str, Any], where: str) -> tuple[int, int]:
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
