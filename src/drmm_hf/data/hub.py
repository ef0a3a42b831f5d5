"""Data sets with one row an image and an `objects` column, as on the Hub, as detection data sets."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher
from huggingface_hub.errors import HFValidationError

from ..configuration_drmm import shown
from ..files import collection_paused, to_json, write_text
from .coco import AnyPath, coco_ground_truth
from .images import stored_size
from .rows import (
    OBJECT_FIELDS,
    Column,
    DetectionDataset,
    build_detection_dataset,
    different_ids,
    object_annotations,
    ordered_labels,
)

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "image_id", "width", "height", "objects")
MAX_SIDE = 2**31
PIXELS = "a positive number of pixels"
_SCHEMA = (
    "`image` and `objects` with `bbox` ([x, y, width, height] in pixels) and `category`; `image_id`, `width`, "
    "`height`, `objects.id`, `objects.area` and `objects.iscrowd` may be left out; rename the columns, or give "
    "`columns=`"
)
_MAX_CLASSES = 10_000
"""Integer categories above this are category ids or a mistake, not labels 0..C-1."""
_BATCH = 1000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPLIT_ALIASES = {"val": "validation", "validation": "val"}
_UNREADABLE = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException)


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
    names = schema_names(columns, name)
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{name}: is a {type(dataset).__name__}; give a `datasets.Dataset`, one split")
    check_columns(dataset.features, names, name)
    if not len(dataset):
        raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    present = {names[key]: key for key in IMAGE_COLUMNS if names[key] in dataset.column_names}
    dataset = dataset.with_format(None).select_columns(list(present))
    dataset = dataset.rename_columns({old: new for old, new in present.items() if old != new})
    pictures = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    _check_pictures(pictures, name)
    table = dataset.select_columns([c for c in dataset.column_names if c != "image"]).with_format("arrow")[:]

    with collection_paused():
        image_index, objects = flatten_objects(
            table.column("objects").to_pylist(), names, name, lambda row: f"row {row}"
        )
    class_names = class_label_names(dataset.features["objects"], names)
    category = read_categories(objects["category"], class_names, id2label)
    widths, heights = _sizes(table, pictures, name)
    boxes = objects["bbox"].boxes()
    if isinstance(boxes, np.ndarray):
        check_absolute(boxes.max(initial=0.0), widths.min(), name)
    image_ids = np.arange(len(dataset))
    if "image_id" in table.column_names:
        given = different_ids(table.column("image_id").to_pylist())
        if given is None:
            logger.warning("%s: image_id are not different integers; row numbers are used instead", name)
        image_ids = image_ids if given is None else given
    annotations = object_annotations(objects, category, image_index, image_ids, (widths, heights))
    cache = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "drmm_hf"
    result = build_detection_dataset(
        annotations, id2label, name, pictures=pictures, annotations_path=cache, images_dir=cache
    )
    return replace(result, annotations_path=_write_ground_truth(result, cache, name))


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
    root = Path(path).expanduser()
    try:
        # Absolute, since a folder called "parquet" would otherwise be taken for the loader of that name.
        place = str(root.absolute() if root.is_dir() else path)
        loaded = datasets.load_from_disk(place) if is_saved(root) else datasets.load_dataset(place)
    except _UNREADABLE as error:
        raise unreadable(path, error) from error
    if isinstance(loaded, datasets.Dataset):
        # A slice such as train[:10%] keeps its whole expression as its name.
        loaded = {str(loaded.split or "train").split("[")[0]: loaded}
    splits = {str(key): part for key, part in loaded.items()}
    found = find_split(splits, split, path)
    return objects_dataset(splits[found], id2label=id2label, name=f"{path} ({found})")


def is_objects_source(path: AnyPath) -> bool:
    """Whether `path` is a folder of `datasets` (saved, parquet, imagefolder) or, no folder, looks like a Hub id."""
    root = Path(path).expanduser()
    if root.is_dir():
        patterns = ("*.parquet", "*/*.parquet", "metadata.jsonl", "*/metadata.jsonl")
        files = is_saved(root) or any(next(root.glob(pattern), None) for pattern in patterns)
        return files and not (root / "annotations").is_dir()
    return isinstance(path, str) and not root.exists() and _HUB_ID.fullmatch(path) is not None


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def find_split(splits: Collection[str], split: str, path: AnyPath) -> str:
    """The split of that name, or of its alias; ValueError where there is neither."""
    found = split if split in splits else _SPLIT_ALIASES.get(split, split)
    if found not in splits:
        raise ValueError(f"{path}: has no split {split!r}; give one of {sorted(splits)}")
    return found


def unreadable(path: AnyPath, error: BaseException) -> Exception:
    """What is said of a folder or a Hub id that `datasets` cannot read."""
    missing = isinstance(error, ConnectionError | FileNotFoundError | HFValidationError)
    root = Path(path).expanduser().absolute()
    if missing and not root.is_dir():
        return FileNotFoundError(
            f"{path}: neither a folder nor a data set of the Hub that can be reached: {reason_of(error)}"
        )
    return ValueError(f"{path}: cannot be read as a data set ({reason_of(error)}); download or write it again")


def reason_of(error: BaseException) -> str:
    """The first line of what `datasets` has to say."""
    while type(error) is datasets.exceptions.DatasetGenerationError and error.__cause__ is not None:
        error = error.__cause__  # its own text is only "An error occurred"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def schema_names(columns: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """The data set's name of every column and field of the schema."""
    known = IMAGE_COLUMNS + OBJECT_FIELDS
    unknown = sorted(set(columns or {}) - set(known))
    if unknown:
        raise ValueError(f"{name}: columns={columns}: {unknown} are not in the schema; the keys must be of {known}")
    return {**{key: key for key in known}, **(columns or {})}


def check_columns(present: Mapping[str, Any], names: Mapping[str, str], name: str) -> None:
    """Refuse a data set without images or objects; values of `present` are types where they are known."""
    missing = [names[key] for key in ("image", "objects") if names[key] not in present]
    if missing:
        raise ValueError(f"{name}: has no column {missing}, only {sorted(present)}; needed are {_SCHEMA}")
    kind = present[names["image"]]
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # parquet not written by `datasets`
    if isinstance(present, datasets.Features) and not isinstance(kind, datasets.Image) and kind != plain:
        raise ValueError(f"{name}: `{names['image']}` is {kind}, not a `datasets.Image`; cast the column to it")


def flatten_objects(
    rows: Sequence[Any], names: Mapping[str, str], source: str, label: Callable[[int], str]
) -> tuple[np.ndarray, dict[str, Column]]:
    """The boxes of all rows one after the other.

    Args:
        rows: each a dict of lists, a list of dicts, or None.
        names: the data set's names of the fields.
        label: what messages call a row.

    Returns:
        the row (M,) of every box, and for each of `OBJECT_FIELDS` a column of M values, None where they are not given.
    """
    values: dict[str, list[Any]] = {field: [] for field in OBJECT_FIELDS}
    counts = []
    for number, row in enumerate(rows):
        lists = _dict_of_lists(row, names, f"{source}: {names['objects']} of {label(number)}")
        counts.append(len(lists["bbox"]))
        for field, entries in lists.items():
            values[field] += entries
    index = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts, dtype=np.int64) - counts

    def column(field: str) -> Column:
        return Column(
            source,
            values[field],
            lambda i: f"objects.{names[field]} of {label(int(index[i]))} (box {i - first[index[i]]})",
        )

    return index, {field: column(field) for field in OBJECT_FIELDS}


def _dict_of_lists(row: Any, names: Mapping[str, str], where: str) -> dict[str, list[Any]]:
    """The fields of one row's objects, all of the same length."""
    if isinstance(row, list) and all(isinstance(entry, Mapping) for entry in row):
        keys = dict.fromkeys(key for entry in row for key in entry)
        row = {key: [entry.get(key) for entry in row] for key in keys} if row else None
    if row is None:
        return {field: [] for field in OBJECT_FIELDS}
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is {shown(row)}; it must be a dict of lists or a list of dicts")
    own = {**names, "category": _category_name(row, names)}
    for field in ("bbox", "category"):
        if own[field] not in row:
            raise ValueError(f"{where} has no `{own[field]}`, only {sorted(row)}; needed are {_SCHEMA}")
    count = len(row[own["bbox"]] or ())
    lists = {}
    for field in OBJECT_FIELDS:
        entries = row.get(own[field])
        if entries is None:
            entries = [None] * count
        if not isinstance(entries, list) or len(entries) != count:
            raise ValueError(f"{where}: `{own[field]}` is {shown(entries)}; it must be a list of {count}, as the boxes")
        lists[field] = entries
    return lists


def _category_name(fields: Any, names: Mapping[str, str]) -> str:
    """The name of the field `category`, which imagefolder's documentation calls `categories`."""
    name = names["category"]
    return "categories" if name == "category" and name not in fields and "categories" in fields else name


def class_label_names(feature: Any, names: Mapping[str, str]) -> list[str] | None:
    """Names of the ClassLabel of the category of `objects`, inside lists in whichever order; None for other types."""
    for _ in range(3):
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            feature = feature.feature
        elif isinstance(feature, Mapping):
            feature = feature.get(_category_name(feature, names))
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def read_categories(
    column: Column, class_names: Sequence[str] | None, id2label: Mapping[int, str] | None
) -> tuple[np.ndarray, list[str]]:
    """Category (M,) of every box, and the names that it points into."""
    values = column.values
    if class_names is None and values and isinstance(values[0], str):
        texts = column.texts()
        position = {text: index for index, text in enumerate(sorted(set(texts)))}
        return np.array([position[text] for text in texts], dtype=np.int64), list(position)
    known = class_names if class_names is not None else None if id2label is None else ordered_labels(id2label)
    limit = _MAX_CLASSES if known is None else len(known)
    labels = column.integers(f"a label from 0 to {limit - 1}, or all must be texts", 0, limit)
    if known is None and not len(labels):
        raise ValueError(f"{column.source}: has no boxes to tell the classes from; give `id2label`")
    return labels, [f"class_{label}" for label in range(int(labels.max()) + 1)] if known is None else list(known)


def check_absolute(largest: float, narrowest: float, name: str) -> None:
    """Refuse boxes that are fractions of their images: `largest` of their values, in images at least so wide."""
    if 0 < largest <= 1 and narrowest > 2:
        raise ValueError(f"{name}: no objects.bbox is above 1, so they seem relative to the image; make them pixels")


def _check_pictures(pictures: datasets.Dataset, name: str) -> None:
    start = 0
    for batch in pictures.with_format("arrow").iter(_BATCH):
        fields = (pc.struct_field(batch.column("image"), field) for field in ("bytes", "path"))
        empty = np.logical_and(*(np.asarray(pc.is_null(field)) for field in fields))
        if empty.any():
            raise ValueError(f"{name}: image of row {start + int(empty.argmax())} is missing; remove the row")
        start += len(batch)


def _sizes(table: pa.Table, pictures: datasets.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights (I,) in stored pixels; those not given are read from the image headers."""
    given = [
        table.column(side).to_pylist() if side in table.column_names else [None] * len(table)
        for side in ("width", "height")
    ]
    sizes = []
    for row, size in enumerate(zip(*given, strict=True)):
        if None in size or size[0] != size[0] or size[1] != size[1]:
            try:
                size = stored_size(pictures[row])[::-1]
            except (OSError, ValueError) as error:
                raise type(error)(f"{name}: image of row {row}: {error}") from error
        sizes.append(size)
    widths, heights = zip(*sizes, strict=True)
    return (
        Column(name, widths, lambda row: f"width of row {row}").integers(PIXELS, 1, MAX_SIDE),
        Column(name, heights, lambda row: f"height of row {row}").integers(PIXELS, 1, MAX_SIDE),
    )


def _write_ground_truth(dataset: DetectionDataset, folder: Path, name: str) -> Path:
    """Path of the COCO json, which is written unless an equal data set has been read before."""
    # The fingerprint covers the rows; the ids of the categories are not among them.
    fingerprint = Hasher.hash([dataset.dataset._fingerprint, dataset.category_ids])
    title = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")[-60:]
    path = folder / f"{title or 'dataset'}-{fingerprint}.json"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(coco_ground_truth(dataset)))
    return path
