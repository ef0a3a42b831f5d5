"""Endless augmented samples of a stream, from any position on."""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..data import StreamingDetectionDataset
from .batches import MAX_REPLACEMENTS
from .sampling import sample_seed

_MAX_EMPTY_EPOCHS = 50
"""A share of the shards without a row can be full in the next epoch, which deals them anew; after so many it is not."""

Row = tuple[int, int]
"""Epoch, and number of the row among those that a reader gets in that epoch."""


@dataclass(frozen=True)
class Position:
    """Where a reader is: the next row, and the rows before it whose samples still wait for their batch."""

    next: Row = (0, 0)
    waiting: tuple[Row, ...] = ()

    def to_json(self) -> list:
        """Plain lists."""
        return [list(self.next), [list(row) for row in self.waiting]]

    @classmethod
    def from_json(cls, value: list) -> "Position":
        """What `to_json` gave."""
        return cls((value[0][0], value[0][1]), tuple((epoch, number) for epoch, number in value[1]))

    @property
    def first_epoch(self) -> int:
        """The epoch of the earliest row that is still needed."""
        return min((self.next, *self.waiting))[0]


class StreamedSamples(IterableDataset):
    """Samples of one process, for a `DataLoader` with this batch size; each of its workers reads a part.

    Samples are what `TrainingSamples` gives. Each epoch of a reader (a worker, or a process without workers) has all
    its rows once, in an order of its own; where one ends the next follows, in the middle of a batch if need be. The
    same arguments and number of workers give the same samples. The last sample of every batch has `reader`, the number
    of the worker, and `position`, its `Position` after the batch.

    Rows before a position are read and thrown away, not decoded.

    Args:
        dataset: shuffled, and split by process.
        transform: makes a sample of a row, drawing from torch's global generator.
        seed: of the augmentation.
        batch_size: of the DataLoader.
        rank: number of the process.
        positions: where the workers begin, by their number; the others begin at `first_epoch`.
        first_epoch: see there.
        idle_workers: the first so many workers begin with a batch of None, because it is another one's turn.
        by_orientation: a batch has images at least as wide as tall, or taller ones only.
        skip_empty: leave out images without a box that is no crowd.
        strict: give the error of an unreadable image in place of a sample.
    """

    def __init__(
        self,
        dataset: StreamingDetectionDataset,
        transform: Callable,
        seed: int,
        batch_size: int,
        rank: int = 0,
        *,
        positions: Mapping[int, Position] | None = None,
        first_epoch: int = 0,
        idle_workers: int = 0,
        by_orientation: bool = False,
        skip_empty: bool = False,
        strict: bool = False,
    ):
        self.dataset, self.transform, self.seed, self.batch_size, self.rank = dataset, transform, seed, batch_size, rank
        self.positions, self.first_epoch, self.idle_workers = dict(positions or {}), first_epoch, idle_workers
        self.by_orientation, self.skip_empty, self.strict = by_orientation, skip_empty, strict

    def __iter__(self) -> Iterator[Any]:
        reader = _reader()
        if reader < self.idle_workers:
            yield from itertools.repeat(None, self.batch_size)
        waiting: defaultdict[bool, list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
        samples = self._samples(self.positions.get(reader, Position((self.first_epoch, 0))))
        while True:
            try:
                row, wide, sample = next(samples)
            except (ValueError, OSError) as error:
                # As items, since a worker's own report is a page of traceback; a subclass may not survive the way.
                plain = error if type(error) in (ValueError, FileNotFoundError) else ValueError(str(error))
                yield from itertools.repeat(plain)
            group = wide and self.by_orientation
            waiting[group].append((row, sample))
            if len(waiting[group]) == self.batch_size:
                batch = waiting.pop(group)
                others = tuple(sorted(place for held in waiting.values() for place, _ in held))
                yield from (sample for _, sample in batch[:-1])
                yield {**batch[-1][1], "reader": reader, "position": Position((row[0], row[1] + 1), others)}

    def _samples(self, start: Position) -> Iterator[tuple[Row, bool, dict[str, Any]]]:
        """Row, whether the image is at least as wide as tall, and the sample."""
        skipped: list[str] = []
        for place, row in self._rows(start.first_epoch):
            if place < start.next and place not in start.waiting:
                continue
            try:
                sample = self._sample(row, place)
            except (ValueError, OSError) as error:
                if self.strict:
                    raise
                skipped.append(str(error))
                if len(skipped) == MAX_REPLACEMENTS:
                    raise ValueError(f"{len(skipped)} images in a row cannot be read; the last: {error}") from error
            else:
                yield place, (row["width"] or 0) >= (row["height"] or 0), {**sample, "skipped": skipped}
                skipped = []

    def _rows(self, first_epoch: int) -> Iterator[tuple[Row, dict[str, Any]]]:
        dataset, empty = copy.copy(self.dataset), 0
        for epoch in itertools.count(first_epoch):
            dataset.set_epoch(epoch)
            empty += 1
            for number, row in enumerate(dataset):
                if self.skip_empty and all(row["objects"]["iscrowd"]):
                    continue
                empty = 0
                yield (epoch, number), row
            if empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(
                    f"{dataset.name}: process {self.rank}, reader {_reader()}, finds no image to train on in its part "
                    "of the shards; use fewer processes and --num-workers, or a data set with more images"
                )

    def _sample(self, row: dict[str, Any], place: Row) -> dict[str, Any]:
        known = row["image_id"] >= 0
        which = (0, row["image_id"]) if known else (1, self.rank, _reader(), place[1])
        before = torch.get_rng_state()
        # not torch.manual_seed, which would seed the accelerator as well
        torch.default_generator.manual_seed(sample_seed(self.seed, place[0], *which))
        try:
            return self.transform(row)
        finally:
            torch.set_rng_state(before)


def _reader() -> int:
    worker = get_worker_info()
    return 0 if worker is None else worker.id
