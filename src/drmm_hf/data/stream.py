"""Detection data sets read as a stream of shards: more images than fit on the disk or in memory."""

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
from datasets.utils.file_utils import xopen
from torch.utils.data import IterableDataset

from ..annotations import Records, frame_problem
from .images import ImageFrame, Size, read_header
from .rows import MAX_SIDE, PIXELS, DatasetReport, DetectionDataset, check_known, ordered_labels, row_features
from .splits import AnyPath, choose_split, usual_name
from .tables import COLUMNS, class_names_of, is_saved, objects_dataset, read_objects, reason_of, unreadable
from .tars import TarError, read_tars

_SHUFFLE = inspect.signature(datasets.IterableDataset.shuffle).parameters
_CHECKED_BOXES = 100
"""So many boxes tell whether they are relative to the image."""
_ONE_SHARD = {"max_buffer_input_shards": 1} if "max_buffer_input_shards" in _SHUFFLE else {}
"""`datasets` 5 reads ten shards at once otherwise, in threads for whose end it sleeps five seconds in every epoch."""
_DAMAGED = (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError)


class StreamingDetectionDataset(IterableDataset):
    """One split, read from its shards whenever it is iterated; `load_streaming_dataset` makes it.

    Iterating gives rows as those of `DetectionDataset.dataset`, cleaned by the same rules: `image` (the path or the
    bytes, not decoded), `image_id` (-1 where the data have none), `width` and `height` (stored pixels; None where they
    are not given and the image cannot be read), and `objects`, a dict of lists. In a DataLoader each worker reads its
    own shards; workers beyond the number of shards get nothing.

    Attributes:
        rows: the `datasets.IterableDataset` below.
        id2label, label2id: labels 0..C-1 and names.
        name: what messages call the data set.
        class_names: names that the stream's own schema gives its category numbers, or None.
        image_frame: as in `load_streaming_dataset`.
        report: counts of what was iterated over so far in this process, and of what was changed.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        id2label: Mapping[int, str],
        name: str,
        class_names: Sequence[str] | None = None,
        image_frame: ImageFrame = "upright",
    ):
        self.rows, self.name, self.class_names = rows, name, class_names
        self.id2label = dict(enumerate(ordered_labels(id2label)))
        self.label2id = {label_name: label for label, label_name in self.id2label.items()}
        self.image_frame, self.report = image_frame, DatasetReport()

    @property
    def num_shards(self) -> int:
        """Number of files (or other pieces) of the split that can be read independently."""
        return self.rows.num_shards

    @property
    def listed_images(self) -> int | None:
        """Number of images of the split where the data set's own card tells it."""
        split = (self.rows.info.splits or {}).get(str(self.rows.split))
        return split.num_examples or None if split is not None else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._clean_all(self.rows)

    def epoch(
        self, number: int, seed: int, *, buffer_size: int = 1000, num_processes: int = 1, process_index: int = 0
    ) -> Iterator[dict[str, Any]]:
        """The rows of one process in an order that depends on the seed and the epoch.

        A process reads shards of its own where their number is a multiple of the processes, and else every n-th row.

        Args:
            number: of the epoch.
            seed: must be the same in all processes.
            buffer_size: rows, with their encoded images, that every reading process keeps in memory to mix them.
        """
        # not `set_epoch` of `datasets`: all workers would share the one number
        rows = self.rows.shuffle(seed=mixed_seed(seed, number), buffer_size=buffer_size, **_ONE_SHARD)
        return self._clean_all(split_dataset_by_node(rows, process_index, num_processes))

    def _clean_all(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        first: list[tuple[Any, int, int]] = []
        checked = False
        for number, raw in enumerate(self._read(rows)):
            row, boxes = self._clean(raw, number)
            if not checked:
                first += [(box, row["width"] or MAX_SIDE, row["height"] or MAX_SIDE) for box in boxes]
                if checked := len(first) >= _CHECKED_BOXES:
                    self._check(first)
            yield row
        if not checked:
            self._check(first)

    def _check(self, boxes: Sequence[tuple[Any, int, int]]) -> None:
        """Refuse boxes `(box, width, height)` that are in no pixels of their images."""
        if boxes:
            values, widths, heights = (np.array(column, dtype=np.float64) for column in zip(*boxes, strict=True))
            if problem := frame_problem(values, widths, heights):
                raise ValueError(f"{self.name}: {problem}")

    def _read(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except TarError:
            raise
        except _DAMAGED as error:
            raise ValueError(f"{self.name}: a shard cannot be read ({reason_of(error)}); write it again") from error

    def _clean(self, raw: Mapping[str, Any], number: int) -> tuple[dict[str, Any], np.ndarray]:
        """The row, and its boxes (n, 4) as they came."""
        row = {key: raw.get(key) for key in COLUMNS}
        ids = [Records([{"id": one}], "").ids_or_numbers("id") for one in (row["image_id"], raw.get("__key__"))]
        image_id = next((int(found[0]) for found, given in ids if given and found[0] >= 0), -1)
        label = f"{self.name}: " + (f"image {image_id}" if image_id >= 0 else f"example {number} of the stream")
        picture = _fetched(row["image"])
        if isinstance(picture, Mapping) and not picture.get("path"):
            picture = {**picture, "path": label}
        elif isinstance(picture, Mapping) and image_id < 0:
            label = f"{self.name}: {picture['path']}"
        (height, width), turned = self._size(row, picture, label)
        sizes = np.array([width or MAX_SIDE]), np.array([height or MAX_SIDE])
        number_of = np.zeros(1, dtype=np.int64)
        annotations = read_objects(
            self.name, [row["objects"]], number_of, sizes, self.class_names, self.id2label, lambda _: label
        )
        labels = list(self.label2id)
        check_known(annotations.category_names, labels, label)
        _, clean, report = annotations.clean(labels)
        self.report += replace(report, turned_images=int(turned))
        objects = {field: values.tolist() for field, values in clean.items()}
        row = {"image": picture, "image_id": image_id, "width": width, "height": height, "objects": objects}
        if self.image_frame != "upright":
            row["image_frame"] = self.image_frame
        return row, annotations.boxes

    def _size(self, row: Mapping[str, Any], picture: Any, label: str) -> tuple[Size | tuple[None, None], bool]:
        """(height, width) in the frame, if it is known, and whether the image has an EXIF orientation."""
        known = row["height"] is not None and row["width"] is not None
        given = Records([row], lambda _: label)
        size: Any = tuple(int(given.integers(side, PIXELS, 1, MAX_SIDE)[0]) for side in ("height", "width") if known)
        try:
            header = read_header({"image": picture})
        except (OSError, ValueError):  # what decodes the image will say why
            return size or (None, None), False
        if not known or size == header.stored:
            size = header.upright if self.image_frame == "upright" else header.stored
        return size, header.turned


def _fetched(picture: Any) -> Any:
    """With the bytes of its file, which an imagefolder of the Hub names by a URL such as hf://...; else as it is."""
    place = picture.get("path") if isinstance(picture, Mapping) and picture.get("bytes") is None else None
    if place and "://" in place:
        # else what decodes the image will say that there is none
        with contextlib.suppress(OSError), xopen(place, "rb") as file:
            return {**picture, "bytes": file.read()}
    return picture


def load_streaming_dataset(
    path: AnyPath,
    split: str = "train",
    *,
    id2label: Mapping[int, str] | None = None,
    image_frame: ImageFrame = "upright",
) -> StreamingDetectionDataset:
    """Open one split of a sharded data set; only what is iterated over is read, and nothing is kept on disk.

    Rows have the schema of `objects_dataset`. In WebDataset tars a sample is an image (`000139.jpg`, or png, webp, bmp)
    next to a `000139.json` with `objects` and, optionally, `width`, `height` and `image_id`.

    Args:
        path: a Hub id, or a folder with parquet files, with tars, or an `imagefolder`.
        split: name of the split; "val" also finds "validation" and vice versa.
        id2label: labels 0..C-1 and names. Needed unless the category is a ClassLabel, whose names must be in it;
            integer categories are labels, texts are names.
        image_frame: as in `load_detection_dataset`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a data set that can be reached.
        ValueError: it cannot be read as a stream, has no such split, lacks columns, or `id2label` is needed.
    """
    root = Path(path).expanduser()
    if is_saved(root) or (root / "annotations").is_dir():
        raise ValueError(f"{path}: is not made of shards; read it with `load_detection_dataset` (no --streaming)")
    try:
        builder = datasets.load_dataset_builder(str(root.absolute() if root.is_dir() else path))
        if builder.name == "webdataset":
            # Our own reader: that of `datasets` wants the types of all files to be those of the first five.
            tars = {usual_name(str(key)): list(files) for key, files in builder.config.data_files.items()}
            found, _ = choose_split(tars, split, 0, str(path))
            # A list in `gen_kwargs` is what `datasets` splits between processes.
            rows = datasets.IterableDataset.from_generator(read_tars, gen_kwargs={"tars": tars[found]})
        else:
            streams: Any = {usual_name(str(key)): value for key, value in builder.as_streaming_dataset().items()}
            found, _ = choose_split(streams, split, 0, str(path))
            rows = streams[found]
    except (*_DAMAGED, RuntimeError) as error:
        raise error if f"has no split {split!r}" in str(error) else unreadable(path, error) from error
    name = f"{path} ({found})"
    present: Any = rows.features if rows.features is not None else next(iter(rows), None)  # a row of a tar, or json
    if present is None:
        raise ValueError(f"{name}: has no rows; a data set needs at least one image")
    class_names = class_names_of(present, name)
    if rows.features is not None:  # without further columns, which would only fill the memory
        rows = rows.select_columns([key for key in COLUMNS if key in rows.features])
        rows = rows.cast_column("image", datasets.Image(decode=False))
    if id2label is None and class_names is None:
        raise ValueError(f"{name}: objects.category is no ClassLabel; give `id2label` (--classes)")
    labels = dict(enumerate(class_names or ())) if id2label is None else id2label
    result = StreamingDetectionDataset(rows, labels, name, class_names, image_frame)
    check_known(class_names or (), list(result.label2id), name)
    return result


def store_split(
    path: AnyPath, split: str, id2label: Mapping[int, str], image_frame: ImageFrame = "upright"
) -> DetectionDataset:
    """One split of a sharded data set as a table, which is made from the stream where it is not in the cache yet.

    Raises:
        FileNotFoundError, ValueError: as `load_streaming_dataset` and its rows.
    """
    stream = load_streaming_dataset(path, split, id2label=id2label, image_frame=image_frame)
    # the builder's cache folder changes with the shards, and so does the name under which this is stored
    root = Path(path).expanduser()
    version = datasets.load_dataset_builder(str(root.absolute() if root.is_dir() else path)).cache_dir
    arguments = {"path": str(path), "split": split, "labels": dict(id2label), "frame": image_frame, "version": version}
    features = row_features(list(stream.id2label.values()))
    try:
        table = datasets.Dataset.from_generator(_rows_of, features=features, gen_kwargs=arguments)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise
    return objects_dataset(table, id2label=id2label, name=stream.name, image_frame=image_frame)


def _rows_of(
    path: str, split: str, labels: dict[int, str], frame: ImageFrame, version: str
) -> Iterator[dict[str, Any]]:
    for row in load_streaming_dataset(path, split, id2label=labels, image_frame=frame):
        image_id = row["image_id"] if row["image_id"] >= 0 else None
        yield {**{name: row[name] for name in COLUMNS}, "image_id": image_id}


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers, for `torch` and `datasets`."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
