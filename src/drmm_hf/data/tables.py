"""Data sets with one row an image and an `objects` column, as on the Hub, as detection data sets."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub.errors import HFValidationError

from ..annotations import Records
from ..configuration_drmm import shown
from ..files import collection_paused
from .coco import with_ground_truth
from .images import ImageFrame, image_size
from .rows import (
    OBJECT_FIELDS,
    Annotations,
    DetectionDataset,
    build_detection_dataset,
    image_sizes,
    ordered_labels,
)
from .splits import AnyPath, Portion, usual_name

logger = logging.getLogger(__name__)

COLUMNS = ("image", "image_id", "width", "height", "objects")
_SCHEMA = (
    "`image` and `objects` with `bbox` ([x, y, width, height] in pixels) and `category`; `image_id`, `width`, "
    "`height`, `objects.id`, `objects.area` and `objects.iscrowd` may be left out; rename the columns"
)
_MAX_CLASSES = 10_000
"""Integer categories above this are category ids or a mistake, not labels 0..C-1."""
_BATCH = 1000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_UNREADABLE = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException)


def objects_dataset(
    dataset: datasets.Dataset,
    *,
    id2label: Mapping[int, str] | None = None,
    name: str = "dataset",
    portion: Portion | None = None,
    image_frame: ImageFrame = "upright",
) -> DetectionDataset:
    """Make a detection data set of one with the `objects` schema (that of cppe-5).

    A row is an image: `image` (a `datasets.Image`), `image_id`, `width`, `height` (pixels) and `objects`, a dict of
    lists or a list of dicts: `id`, `bbox` `[x, y, width, height]` in pixels of the image, `category` (or `categories`:
    ClassLabel, name, or integer), `area` (px²) and `iscrowd`. All but `image`, `bbox` and `category` may be missing:
    sizes are those of the files, and ids that are no different integers become 0, 1, ....

    Names of integer categories are those of `id2label`, or `class_0`, `class_1`, ... without it. Boxes are cleaned as
    in `load_detection_dataset`. The ground truth is written once as COCO json, the result's `annotations_path`.

    Args:
        dataset: one split.
        id2label: labels 0..C-1 and names of an existing model; every category of the data must be in it.
        name: what messages call the data set.
        portion: which of the images; None for all.
        image_frame: as in `load_detection_dataset`.

    Raises:
        FileNotFoundError: an image whose size is needed is missing.
        ValueError: columns are missing or hold values that cannot be right, or the categories do not fit `id2label`.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{name}: is a {type(dataset).__name__}; give a `datasets.Dataset`, one split")
    names = class_names_of(dataset.features, name)
    if not len(dataset):
        raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    dataset = dataset.with_format(None).select_columns([key for key in COLUMNS if key in dataset.column_names])
    pictures = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    _check_pictures(pictures, name)
    table = dataset.remove_columns("image")
    with collection_paused():
        images = Records(table.with_format("arrow")[:].to_pylist(), lambda row: f"{name}: row {row}")
        sizes = image_sizes(images, lambda row: image_size({**pictures[row], "image_frame": image_frame}))
        image_ids, given = images.ids_or_numbers("image_id")
        if not given and any(value is not None for value in images.values("image_id")):
            logger.warning("%s: image_id are not different integers; row numbers are used instead", name)
        objects = images.values("objects")
        annotations = read_objects(name, objects, image_ids, sizes, names, id2label, images.where)
    cache = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "drmm_hf"
    builder = dataset.info.builder_name
    result = build_detection_dataset(
        annotations,
        id2label,
        pictures=pictures,
        annotations_path=cache,
        images_dir=cache,
        kind=f"datasets{f' ({builder})' if builder else ''}, {name}",
        portion=portion,
        image_frame=image_frame,
    )
    return with_ground_truth(result, name)


def load_splits(path: AnyPath) -> dict[str, datasets.Dataset]:
    """The splits of a Hub data set or of a folder of `datasets`.

    Args:
        path: a Hub id, or a folder written by `save_to_disk`, with parquet files, or an `imagefolder` with
            metadata.jsonl. A single saved `Dataset` without the name of a split counts as "train".

    Raises:
        FileNotFoundError: there is neither such a folder nor such a data set that can be reached.
        ValueError: it cannot be read.
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
    return {usual_name(str(key)): part for key, part in loaded.items()}


def is_objects_source(path: AnyPath) -> bool:
    """Whether `path` is a folder of `datasets` (saved, parquet, imagefolder) or, no folder, looks like a Hub id."""
    root = Path(path).expanduser()
    if root.is_dir():
        patterns = (f"{folders}{file}" for folders in ("", "*/", "*/*/") for file in ("*.parquet", "metadata.jsonl"))
        files = is_saved(root) or any(next(root.glob(pattern), None) for pattern in patterns)
        return files and not (root / "annotations").is_dir()
    return isinstance(path, str) and not root.exists() and _HUB_ID.fullmatch(path) is not None


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


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


def class_names_of(present: Mapping[str, Any], name: str) -> list[str] | None:
    """The names that a ClassLabel gives the numbers of the category, if it is one.

    Args:
        present: features of a data set, or a row where these are not known.
        name: what messages call the data set.

    Raises:
        ValueError: it has no images or objects.
    """
    if missing := [column for column in ("image", "objects") if column not in present]:
        raise ValueError(f"{name}: has no column {missing}, only {sorted(present)}; needed are {_SCHEMA}")
    if not isinstance(present, datasets.Features):
        return None
    kind = present["image"]
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # not written by `datasets`
    if not isinstance(kind, datasets.Image) and kind != plain:
        raise ValueError(f"{name}: `image` is {kind}, not a `datasets.Image`; cast the column to it")
    feature = present["objects"]
    for _ in range(3):  # inside lists, in whichever order
        if isinstance(feature, (datasets.List, datasets.LargeList)):
            feature = feature.feature
        elif isinstance(feature, Mapping):
            feature = feature.get("category", feature.get("categories"))
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def read_objects(
    source: str,
    objects: Sequence[Any],
    image_ids: np.ndarray,
    sizes: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str] | None,
    id2label: Mapping[int, str] | None,
    where: Callable[[int], str],
) -> Annotations:
    """The objects of rows as columns.

    Args:
        source: what messages call the data set.
        objects: of each row, a dict of lists, a list of dicts, or None.
        image_ids: of the rows (I,).
        sizes: widths and heights (I,) in pixels.
        class_names: of integer categories, if the data set has them; else those of `id2label` are meant.
        where: what messages call a row.
    """
    of_rows = [_records(row, f"{where(index)}, objects") for index, row in enumerate(objects)]
    image_index = np.repeat(np.arange(len(of_rows)), [len(records) for records in of_rows])
    first = np.searchsorted(image_index, image_index)  # the first box of the same row
    records = Records(
        [record for records in of_rows for record in records],
        lambda index: f"{where(int(image_index[index]))}, objects[{index - first[index]}]",
    )
    known = class_names if class_names is not None or id2label is None else ordered_labels(id2label)
    category_index, names = _categories(records, class_names is None, known, source)
    return Annotations(
        source=source,
        image_ids=image_ids,
        widths=sizes[0],
        heights=sizes[1],
        category_ids=range(len(names)),
        category_names=names,
        ids=records.ids_or_numbers("id")[0],
        image_index=image_index,
        category_index=category_index,
        boxes=records.boxes(),
        areas=records.areas(),
        is_crowd=records.flags("iscrowd"),
    )


def _records(row: Any, where: str) -> list[dict[str, Any]]:
    """The objects of one row, each a dict."""
    if isinstance(row, Mapping):
        lists = {field: values for field, values in _named(row).items() if values is not None}
        for field in ("bbox", "category"):
            if field not in _named(row):
                raise ValueError(f"{where} has no `{field}`, only {sorted(row)}; needed are {_SCHEMA}")
        count = len(lists.get("bbox", ()))
        for field, values in lists.items():
            if not isinstance(values, list) or len(values) != count:
                raise ValueError(f"{where}: `{field}` is {shown(values)}; it must be a list of {count}, as the boxes")
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if row is None or (isinstance(row, list) and all(isinstance(entry, Mapping) for entry in row)):
        return [_named(entry) for entry in row or ()]
    raise ValueError(f"{where} is {shown(row)}; it must be a dict of lists or a list of dicts")


def _named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields; imagefolder's documentation calls the category `categories`."""
    known = {field: fields[field] for field in OBJECT_FIELDS if field in fields}
    return {"category": fields["categories"], **known} if "categories" in fields else known


def _categories(
    records: Records, may_be_texts: bool, known: Sequence[str] | None, source: str
) -> tuple[np.ndarray, list[str]]:
    """Category (M,) of every box, and the names that it points into."""
    if may_be_texts and len(records) and isinstance(records.records[0].get("category"), str):
        texts = records.texts("category")
        names = sorted(set(texts))
        return np.searchsorted(names, texts), names
    limit = _MAX_CLASSES if known is None else len(known)
    labels = records.integers("category", f"a label from 0 to {limit - 1}, or all must be texts", 0, limit)
    if known is None and not len(labels):
        raise ValueError(f"{source}: has no boxes to tell the classes from; give `id2label`")
    return labels, [f"class_{label}" for label in range(int(labels.max()) + 1)] if known is None else list(known)


def _check_pictures(pictures: datasets.Dataset, name: str) -> None:
    start = 0
    for batch in pictures.with_format("arrow").iter(_BATCH):
        fields = (pc.struct_field(batch.column("image"), field) for field in ("bytes", "path"))
        empty = np.logical_and(*(np.asarray(pc.is_null(field)) for field in fields))
        if empty.any():
            raise ValueError(f"{name}: image of row {start + int(empty.argmax())} is missing; remove the row")
        start += len(batch)
