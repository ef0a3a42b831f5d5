"""Batches of a stream of shards: which reader reads what, and how it goes on in the middle of an epoch."""

import copy
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import datasets
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .layouts import AnyPath
from .rows import DetectionDataset, row_features
from .stream import StreamingDetectionDataset, load_streaming_dataset, mixed_seed
from .tables import objects_dataset
from .training_data import (
    MAX_REPLACEMENTS,
    Row,
    Settings,
    TrainingData,
    Transform,
    is_wide,
    make_batch,
    plain_error,
    seeded,
)

logger = logging.getLogger(__name__)

_MAX_EMPTY_EPOCHS = 50
"""A share of the shards without a row can be full in the next epoch, which deals them anew; after so many it is not."""
_FIRST_ROWS = 64
"""So many images tell how the images of a stream lie."""


class StreamedData(TrainingData):
    """Every process and worker reads shards of its own where there are enough, and else every n-th row.

    A run goes on in the middle of an epoch if the numbers of processes and workers are those of before: the readers
    pass over the rows of the epoch that they have seen, without decoding them. With other numbers it goes on at the
    beginning of the epoch.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        id2label: Mapping[int, str] | None,
        epoch_images: int | None,
        shuffle_buffer: int,
    ):
        super().__init__(settings, accelerator)
        self.stream = load_streaming_dataset(settings.path, settings.split, id2label=id2label)
        self.id2label, self.label2id = self.stream.id2label, self.stream.label2id
        self.epoch_images = epoch_images or _listed_images(self.stream)
        processes = accelerator.num_processes
        self.part = self.stream.shuffle(settings.seed, shuffle_buffer)
        self.part = self.part.split_by_node(accelerator.process_index, processes)
        shards = self.part.shards_per_process
        self.workers = min(settings.num_workers, shards)
        self._positions: dict[int, Position] = {}
        if not accelerator.is_main_process:
            return
        if self.part.num_shards % processes:
            logger.warning(
                "%s: %d shards cannot be dealt evenly to %d processes: each reads all shards for its images",
                *(self.stream.name, shards, processes),
            )
        if self.workers < settings.num_workers:
            logger.warning(
                "%s: --num-workers %d, but only %d shards for each process; the other workers are left out",
                *(self.stream.name, settings.num_workers, shards),
            )

    def landscape_share(self) -> float:
        rows = list(itertools.islice(self.stream, _FIRST_ROWS))
        return sum(map(is_wide, rows)) / max(len(rows), 1)

    def identity(self) -> dict[str, Any]:
        return {"shards": self.stream.num_shards}

    def evaluation_dataset(self) -> DetectionDataset:
        """The split is read once and stored in the cache folder of `datasets`."""
        with self.accelerator.local_main_process_first():
            return store_split(self.settings.path, self.settings.eval_split or "val", self.id2label)

    def position(self) -> Any:
        """The workers of every process and their positions."""
        places = {str(reader): place for reader, place in self._positions.items()}
        return gather_object([{"readers": max(self.workers, 1), "positions": places}])

    def _loader(self, transform: Transform, first_step: int, position: Any) -> DataLoader:
        readers, processes = max(self.workers, 1), self.accelerator.num_processes
        first_epoch, done = 0, first_step * self.settings.accumulation
        if position is not None:
            saved = [process["readers"] for process in position]
            if saved == [readers] * processes:
                own = position[self.accelerator.process_index]["positions"]
                self._positions = {int(reader): place for reader, place in own.items()}
            else:
                places = [place for process in position for place in process["positions"].values()]
                first_epoch, done = min(map(_first_epoch, places), default=0), 0
                if self.accelerator.is_main_process:
                    logger.warning(
                        "the checkpoint is of %d processes with %d readers each, this run has %d with %d: it goes on "
                        "at the beginning of epoch %d of the stream",
                        *(len(saved), saved[0], processes, readers, first_epoch + 1),
                    )
        batches = _StreamedBatches(
            self.part,
            transform,
            self.settings,
            self.accelerator.process_index,
            positions=self._positions,
            first_epoch=first_epoch,
            # batches come from the workers in turn, the first from worker 0
            idle_workers=done % readers,
        )
        return self.batch_loader(batches, self.workers)

    def batches(self, transform: Transform, first_step: int = 0, position: Any = None) -> Iterator[dict[str, Any]]:
        for batch in super().batches(transform, first_step, position):
            self._positions[batch.pop("reader")] = batch.pop("position")
            yield batch


class Position(TypedDict):
    """Where a reader is: the first row that it has not seen, and those before it that wait for their batch."""

    next: Row
    waiting: list[Row]


def _first_epoch(position: Position) -> int:
    return min(epoch for epoch, _ in [position["next"], *position["waiting"]])


class _StreamedBatches(IterableDataset):
    """Endless batches of one process; each worker of its DataLoader reads a part.

    Each epoch of a reader (a worker, or a process without workers) has all its rows once, in an order of its own; where
    one ends the next follows, in the middle of a batch if need be. The same arguments and number of workers give the
    same batches. A batch has also `reader`, the number of the worker, and `position`, its `Position` after the batch.
    Rows before a position are not decoded.

    Args:
        dataset: shuffled, and split by process.
        rank: number of the process.
        positions: where the workers begin, by their number; the others begin at `first_epoch`.
        idle_workers: the first so many workers begin with None, because it is another one's turn.
    """

    def __init__(
        self,
        dataset: StreamingDetectionDataset,
        transform: Transform,
        settings: Settings,
        rank: int,
        *,
        positions: Mapping[int, Position],
        first_epoch: int,
        idle_workers: int,
    ):
        self.dataset, self.transform, self.settings, self.rank = dataset, transform, settings, rank
        self.positions, self.first_epoch, self.idle_workers = dict(positions), first_epoch, idle_workers

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        reader = 0 if worker is None else worker.id
        if reader < self.idle_workers:
            yield None
        try:
            yield from self._batches(reader)
        except (ValueError, OSError) as error:
            yield plain_error(error)

    def _batches(self, reader: int) -> Iterator[dict[str, Any]]:
        begin = self.positions.get(reader, Position(next=(self.first_epoch, 0), waiting=[]))
        first, held = tuple(begin["next"]), {tuple(place) for place in begin["waiting"]}
        waiting: defaultdict[bool, list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
        skipped: list[str] = []
        for place, row in self._rows(_first_epoch(begin), reader):
            if place < first and place not in held:
                continue
            try:
                sample = self.transform(row, seeded(self._seed(place, row, reader)))
            except (ValueError, OSError) as error:
                if self.settings.strict:
                    raise
                skipped.append(str(error))
                if len(skipped) == MAX_REPLACEMENTS:
                    raise ValueError(f"{len(skipped)} images in a row cannot be read; the last: {error}") from error
                continue
            group = waiting[self.settings.by_orientation and is_wide(row)]
            group.append((place, {**sample, "skipped": skipped}))
            skipped = []
            if len(group) == self.settings.batch_size:
                batch = make_batch([entry for _, entry in group])
                group.clear()
                others = sorted(other for entries in waiting.values() for other, _ in entries)
                position = Position(next=(place[0], place[1] + 1), waiting=others)
                yield {**batch, "reader": reader, "position": position}

    def _rows(self, first_epoch: int, reader: int) -> Iterator[tuple[Row, dict[str, Any]]]:
        dataset, empty = copy.copy(self.dataset), 0
        for epoch in itertools.count(first_epoch):
            dataset.set_epoch(epoch)
            empty += 1
            for number, row in enumerate(dataset):
                if not (self.settings.skip_empty and all(row["objects"]["iscrowd"])):
                    empty = 0
                    yield (epoch, number), row
            if empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(
                    f"{dataset.name}: process {self.rank}, reader {reader}, finds no image to train on in its part "
                    "of the shards; use fewer processes and --num-workers, or a data set with more images"
                )

    def _seed(self, place: Row, row: Mapping[str, Any], reader: int) -> int:
        known = row["image_id"] >= 0
        which = (0, row["image_id"]) if known else (1, self.rank, reader, place[1])
        return mixed_seed(self.settings.seed, place[0], *which)


def store_split(path: AnyPath, split: str, id2label: Mapping[int, str]) -> DetectionDataset:
    """One split of a sharded data set as a table, which is made from the stream where it is not in the cache yet.

    Raises:
        FileNotFoundError, ValueError: as `load_streaming_dataset` and its rows.
    """
    labels = dict(id2label)
    stream = load_streaming_dataset(path, split, id2label=labels)
    # the builder's cache folder changes with the shards, and so does the name under which this is stored
    root = Path(path).expanduser()
    version = datasets.load_dataset_builder(str(root.absolute() if root.is_dir() else path)).cache_dir
    arguments = {"path": str(path), "split": split, "labels": labels, "version": version}
    features = row_features(list(stream.id2label.values()))
    features |= {"width": datasets.Value("int64"), "height": datasets.Value("int64")}
    try:
        table = datasets.Dataset.from_generator(_rows_of, features=datasets.Features(features), gen_kwargs=arguments)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise
    return objects_dataset(table, id2label=labels, name=stream.name)


def _rows_of(path: str, split: str, labels: dict[int, str], version: str) -> Iterator[dict[str, Any]]:
    yield from load_streaming_dataset(path, split, id2label=labels)


def _listed_images(stream: StreamingDetectionDataset) -> int | None:
    """Number of images of the split where the data set's own card tells it."""
    rows = stream.rows
    split = (rows.info.splits or {}).get(str(rows.split))
    return split.num_examples or None if split is not None else None
