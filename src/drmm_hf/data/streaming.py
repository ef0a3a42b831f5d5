"""Detection data sets read as a stream of shards: more images than fit on the disk or in memory."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from huggingface_hub.errors import HFValidationError
from torch.utils.data import IterableDataset

from ..annotations_drmm import shown
from .coco import _clean_boxes, ordered_labels
from .coco_layout import AnyPath
from .coco_tables import CocoTables
from .objects import IMAGE_COLUMNS, check_names, header_size
from .objects_fields import (
    SCHEMA,
    areas_of,
    boxes_of,
    categories_of,
    check_absolute,
    class_label_names,
    crowd_flags,
    flat_objects,
    unique_ids,
)
from .objects_sources import find_split, is_saved, reason_of, unreachable
from .tar_shards import read_tars

_CHECKED_BOXES = 100
"""So many boxes tell whether they are relative to the image."""
_NO_LIMIT = 2**31 - 1


class StreamingDetectionDataset(IterableDataset):
    """One split, read from its shards whenever it is iterated; `load_streaming_dataset` makes it.

    Iterating gives rows as those of `DetectionDataset.dataset`, cleaned by the same rules: `image` (the path or the
    bytes, not decoded), `image_id` (-1 where the data have none), `width` and `height` (stored pixels; None where they
    are not given and the image cannot be read), and `objects`, a dict of lists. In a DataLoader each worker reads its
    own shards; workers beyond the number of shards get nothing.

    Attributes:
        id2label, label2id: labels 0..C-1 and names.
        class_names: names that the stream's own schema gives its category numbers, or None.
        name: what messages call the data set.
        rows: the `datasets.IterableDataset` below, neither shuffled nor split.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        id2label: Mapping[int, str],
        *,
        name: str,
        columns: Mapping[str, str],
        class_names: list[str] | None = None,
    ):
        self.rows, self.name = rows, name
        self.id2label = dict(enumerate(ordered_labels(id2label)))
        self.label2id = {label_name: label for label, label_name in self.id2label.items()}
        self._columns, self.class_names = dict(columns), class_names
        self._objects_type = None
        if rows.features is not None:
            feature = {"objects": rows.features[columns["objects"]]}
            self._objects_type = datasets.Features(feature).arrow_schema.field("objects").type
        self._seed: int | None = None
        self._buffer_size, self._rank, self._world_size, self._epoch = 1, 0, 1, 0

    @property
    def num_shards(self) -> int:
        """Number of files (or other pieces) of the whole split that can be read independently."""
        return self.rows.num_shards

    @property
    def shards_per_process(self) -> int:
        """Of how many shards each process reads at least a part."""
        even = self.num_shards % self._world_size == 0
        return self.num_shards // self._world_size if even else self.num_shards

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "StreamingDetectionDataset":
        """The data set in an order that depends on the seed and the epoch.

        Shards are read in random order, ten at a time, and their rows mixed in a buffer.

        Args:
            seed: must be the same in all processes.
            buffer_size: rows, with their encoded images, that every reading process keeps in memory.
        """
        result = copy.copy(self)
        result._seed, result._buffer_size = seed, buffer_size
        return result

    def split_by_node(self, rank: int, world_size: int) -> "StreamingDetectionDataset":
        """The part of one of `world_size` processes.

        These are shards of its own where their number is a multiple of `world_size`, and else every n-th row of all.
        """
        result = copy.copy(self)
        result._rank, result._world_size = rank, world_size
        return result

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration. DataLoader workers that are already running do not notice."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = self.rows
        # Not `rows.set_epoch`, which would change the epoch of all DataLoader workers at once.
        if self._seed is not None:
            rows = rows.shuffle(seed=mixed_seed(self._seed, self._epoch), buffer_size=self._buffer_size)
        if self._world_size > 1:
            rows = split_dataset_by_node(rows, self._rank, self._world_size)
        scale = _ScaleCheck(self.name)
        for number, raw in enumerate(_readable(rows, self.name)):
            row = self._clean(raw, number)
            scale.add(row)
            yield row
        scale.finish()

    def _clean(self, raw: Mapping[str, Any], number: int) -> dict[str, Any]:
        row = {key: raw.get(column) for key, column in self._columns.items()}
        image_id = _first_id(row["image_id"], raw.get("__key__"))
        label = f"image {image_id}" if image_id >= 0 else f"example {number} of the stream"
        picture = row["image"]
        if isinstance(picture, Mapping) and not picture.get("path"):
            picture = {**picture, "path": f"{self.name}, {label}"}
        elif isinstance(picture, Mapping) and image_id < 0:
            label = str(picture["path"])
        width, height = self._size(row, picture, label)
        try:
            objects = self._objects(row["objects"], width or _NO_LIMIT, height or _NO_LIMIT)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise ValueError(_stream_words(error, self.name, label)) from error
        return {"image": picture, "image_id": image_id, "width": width, "height": height, "objects": objects}

    def _size(self, row: Mapping[str, Any], picture: Any, label: str) -> tuple[int | None, int | None]:
        for field in ("width", "height"):
            value = row[field]
            if value is not None and not _is_size(value):
                raise ValueError(
                    f"{self.name}: {self._columns[field]} of {label} is {shown(value)}; it must be a positive number "
                    "of pixels: correct it, or remove the column"
                )
        if row["width"] is not None and row["height"] is not None:
            return int(row["width"]), int(row["height"])
        try:
            return header_size({"image": picture}, self.name)
        except (OSError, ValueError):  # what decodes the image will say why
            return None, None

    def _objects(self, value: Any, width: int, height: int) -> dict[str, list]:
        """Cleaned objects of one image of `width` x `height` stored pixels."""
        if isinstance(value, list) and not value:
            value = {self._columns["bbox"]: [], self._columns["category"]: []}
            column = pa.array([value])
        else:
            column = pa.array([value], type=self._objects_type)
        objects = flat_objects(column, self._columns, self.name)
        boxes = boxes_of(objects)
        known = None if self.class_names is not None else self.id2label
        category, names = categories_of(objects, self.class_names, known)
        unknown = [name for name in names if name not in self.label2id]
        if unknown:
            raise ValueError(f"{self.name}: categories {unknown[:10]} are not in id2label; add them, or rename them")
        labels = np.array([self.label2id[name] for name in names], dtype=np.int64)[category]
        ids = unique_ids(objects.fields.get("id"))
        tables = CocoTables(
            image_ids=np.zeros(1, dtype=np.int64),
            widths=np.array([width]),
            heights=np.array([height]),
            file_names=[""],
            category_ids=[],
            category_names=[],
            annotation_ids=np.arange(len(boxes)) if ids is None else ids,
            image_index=objects.rows,
            category_index=category,
            boxes=boxes,
            areas=areas_of(objects),
            is_crowd=crowd_flags(objects),
        )
        clean, keep, _ = _clean_boxes(tables)
        areas = np.where(np.isnan(tables.areas), clean[:, 2] * clean[:, 3], tables.areas)
        return {
            "id": tables.annotation_ids[keep].tolist(),
            "bbox": clean[keep].astype(np.float32).tolist(),
            "category": labels[keep].tolist(),
            "area": areas[keep].astype(np.float32).tolist(),
            "iscrowd": tables.is_crowd[keep].tolist(),
        }


def load_streaming_dataset(
    path: AnyPath,
    split: str = "train",
    *,
    id2label: Mapping[int, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> StreamingDetectionDataset:
    """Open one split of a sharded data set; only what is iterated over is read, and nothing is kept on disk.

    Rows have the schema of `objects_dataset`. In WebDataset tars a sample is an image (`000139.jpg`, or png, webp, bmp)
    next to a `000139.json` with `objects` and, optionally, `width`, `height` and `image_id`.

    Args:
        path: a Hub id, or a folder with parquet files, with tars, or an `imagefolder`.
        split: name of the split; "val" also finds "validation" and vice versa.
        id2label: labels 0..C-1 and names. Needed unless the category is a ClassLabel, whose names must be in it;
            integer categories are labels, texts are names.
        columns: names of the data set by those of the schema, as in `objects_dataset`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a data set that can be reached.
        ValueError: it cannot be read as a stream, has no such split, lacks columns, or `id2label` is needed.
    """
    names = check_names(columns, str(path))
    builder = _find_builder(path)
    if builder.name == "webdataset":
        # Our own reader: that of `datasets` wants the types of all files to be those of the first five.
        splits = {str(key): list(files) for key, files in builder.config.data_files.items()}
        found = find_split(splits, split, path)
        # A list in `gen_kwargs` is what `datasets` splits between processes.
        rows = datasets.IterableDataset.from_generator(read_tars, gen_kwargs={"tars": splits[found]})
        names["image"] = "image"
    else:
        streams = {str(key): value for key, value in _open_streams(builder, path).items()}
        found = find_split(streams, split, path)
        rows = streams[found]
    name = f"{path} ({found})"
    rows = _check_columns(rows, names, name)
    class_names = _class_names(rows, names)
    if id2label is None and class_names is None:
        raise ValueError(
            f"{name}: objects.{names['category']} is no ClassLabel, so the stream does not tell the classes; give "
            "`id2label`, the names of labels 0..C-1"
        )
    labels = dict(enumerate(class_names or ())) if id2label is None else id2label
    result = StreamingDetectionDataset(rows, labels, name=name, columns=names, class_names=class_names)
    unknown = [label for label in class_names or () if label not in result.label2id]
    if unknown:
        raise ValueError(f"{name}: the classes {unknown[:10]} are not in id2label; add them, or leave id2label out")
    return result


class _ScaleCheck:
    """Refuses boxes relative to the image, once there are enough to tell."""

    def __init__(self, name: str):
        self.name, self.boxes, self.largest, self.narrowest = name, 0, 0.0, _NO_LIMIT

    def add(self, row: Mapping[str, Any]) -> None:
        boxes = row["objects"]["bbox"]
        if self.boxes >= _CHECKED_BOXES or not boxes:
            return
        self.boxes += len(boxes)
        self.largest = max(self.largest, *map(max, boxes))
        self.narrowest = min(self.narrowest, row["width"] or _NO_LIMIT)
        if self.boxes >= _CHECKED_BOXES:
            self.finish()

    def finish(self) -> None:
        if self.boxes:
            check_absolute(np.array([self.largest]), np.array([self.narrowest]), self.name)


def _readable(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except (OSError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name}: a shard cannot be read ({reason_of(error)}); download or write it again") from error


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers, for `torch` and `datasets`."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < _NO_LIMIT and value == int(value)


def _first_id(*values: Any) -> int:
    """The first of the values that is, or reads as, an integer from 0 on; else -1."""
    return next((int(v) for v in values if isinstance(v, (int, str)) and str(v).isdecimal()), -1)


def _stream_words(error: Exception, name: str, label: str) -> str:
    """The message of an error in a table of one row, saying which example of the stream that is."""
    text = str(error).replace("`objects_dataset`", "`load_streaming_dataset`")
    text = text if len(text) <= 500 else text[:500] + "..."
    if not text.startswith(name):
        text = f"{name}: `objects` is not a dict of lists or a list of dicts of one type ({text}); correct it"
    return text.replace(" of row 0 ", f" of {label} ") if " of row 0 " in text else f"{text} ({label})"


def _find_builder(path: AnyPath) -> datasets.DatasetBuilder:
    root = Path(path).expanduser()
    if is_saved(root) or (root / "annotations").is_dir():
        raise ValueError(
            f"{path}: is not made of shards to stream; read it with `load_detection_dataset`, which does not hold the "
            "images in memory either, or write it as parquet files"
        )
    try:
        return datasets.load_dataset_builder(str(root.absolute() if root.is_dir() else path))
    except (ConnectionError, FileNotFoundError, HFValidationError) as error:
        if root.is_dir():
            raise ValueError(f"{path}: holds no data to stream ({reason_of(error)}); add parquet files") from error
        raise unreachable(path, error) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{path}: cannot be read as a stream ({reason_of(error)}); write it as parquet") from error


def _open_streams(builder: datasets.DatasetBuilder, path: AnyPath) -> Any:
    try:
        return builder.as_streaming_dataset()
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{path}: a shard cannot be read ({reason_of(error)}); download or write it again") from error


def _check_columns(rows: datasets.IterableDataset, names: Mapping[str, str], name: str) -> datasets.IterableDataset:
    """The stream with the columns of the schema only, images not decoded."""
    features = rows.features
    present: Any = features
    if features is None:  # a tar, or json
        present = next(iter(rows), None)
        if present is None:
            raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    missing = [names[key] for key in ("image", "objects") if names[key] not in present]
    if missing:
        raise ValueError(
            f"{name}: has no column {missing}, only {sorted(present)}; needed are {SCHEMA}; rename the "
            "columns, or give `columns=` to `load_streaming_dataset`"
        )
    if features is None:
        return rows
    column = names["image"]
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}  # parquet not written by `datasets`
    if not isinstance(features[column], datasets.Image) and features[column] != plain:
        raise ValueError(
            f"{name}: `{column}` is {features[column]}, not a `datasets.Image`; write the shards again with that type"
        )
    # Other columns would only fill the shuffle buffer.
    rows = rows.select_columns([names[key] for key in IMAGE_COLUMNS if names[key] in features])
    return rows.cast_column(column, datasets.Image(decode=False))


def _class_names(rows: datasets.IterableDataset, names: Mapping[str, str]) -> list[str] | None:
    if rows.features is None:
        return None
    for field in (names["category"], "categories"):
        with contextlib.suppress(KeyError):
            return class_label_names(rows.features[names["objects"]], field)
    return None
