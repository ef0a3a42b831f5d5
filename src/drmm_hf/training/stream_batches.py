"""Batches of augmented images for a training from a stream, which goes on in the middle of an epoch."""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object

from ..data import DatasetReport, DetectionDataset, load_streaming_dataset
from ..data.rows import turned_notice
from ..data.stream import mixed_seed, store_split
from .batches import Place, TrainingData, Transform, make_batch

logger = logging.getLogger(__name__)

_MAX_EMPTY_EPOCHS = 50
"""A share of the shards without a row can be full in the next epoch, which deals them anew; after so many it is not."""
_FIRST_ROWS = 64
"""So many images tell how the images of a stream lie."""


class StreamData(TrainingData):
    """A stream: every process and worker reads shards of its own where there are enough, and else every n-th row.

    Each epoch of a reader (a worker, or a process without workers) has all its rows once, in an order of its own; where
    one ends the next follows, in the middle of a batch if need be. A run goes on in the middle of an epoch if the
    numbers of processes and workers are those of before: the readers pass over the rows of the epoch that they have
    seen, without decoding them. With other numbers it goes on at the beginning of the epoch.
    """

    def _open(self, id2label: dict[int, str] | None) -> dict[int, str]:
        config = self.config
        self.stream = load_streaming_dataset(
            config.data, config.train_split, id2label=id2label, image_frame=config.image_frame
        )
        self.epoch_images = self.epoch_images or self.stream.listed_images
        # The places in the stream where each reader goes on: of rows that wait for their batch, and of the next one.
        self._positions: dict[int, list[Place]] = {}
        even = self.stream.num_shards % self.num_processes == 0
        shards = self.stream.num_shards // self.num_processes if even else self.stream.num_shards
        self.num_workers = min(config.num_workers, shards)
        if not even:
            self._warn(
                f"{shards} shards cannot be dealt evenly to {self.num_processes} processes: each reads all shards for "
                "its images"
            )
        if self.num_workers < config.num_workers:
            self._warn(
                f"--num-workers {config.num_workers}, but only {shards} shards for each process; the other workers are "
                "left out"
            )
        return self.stream.id2label

    def _warn(self, message: str) -> None:
        if self.process_index == 0:
            logger.warning("%s: %s", self.stream.name, message)

    def landscape_share(self) -> float:
        wide = list(map(_is_wide, itertools.islice(self.stream, _FIRST_ROWS)))
        return sum(wide) / max(len(wide), 1)

    def identity(self) -> dict[str, Any]:
        return {"shards": self.stream.num_shards}

    def evaluation_dataset(self) -> DetectionDataset:
        """The split is read once and stored in the cache folder of `datasets`."""
        return store_split(self.config.data, self.config.eval_split, self.id2label, self.config.image_frame)

    def position(self) -> Any:
        """The readers of every process and their positions."""
        positions = {str(reader): places for reader, places in self._positions.items()}
        return gather_object([{"readers": max(self.num_workers, 1), "positions": positions}])

    def batches(self, transform: Transform, first_step: int = 0, position: Any = None) -> Iterator[dict[str, Any]]:
        report = DatasetReport()
        for batch in super().batches(transform, first_step, position):
            self._positions[batch.pop("reader")] = batch.pop("position")
            before, report = report.turned_images, report + batch.pop("report")
            if report.turned_images and not before:
                self._warn(turned_notice(report, self.config.image_frame))
            yield batch

    def _start(self, first_step: int, position: Any) -> tuple[int, int]:
        """The epoch in which readers without a position begin, and how many of the readers had their turn already."""
        readers = max(self.num_workers, 1)
        idle = first_step * self.config.gradient_accumulation % readers
        if position is None:
            return 0, idle
        saved = [process["readers"] for process in position]
        if saved == [readers] * self.num_processes:
            own = position[self.process_index]["positions"]
            self._positions = {int(reader): places for reader, places in own.items()}
            return 0, idle
        epoch = min((places[0][0] for process in position for places in process["positions"].values()), default=0)
        self._warn(
            f"the checkpoint is of {len(saved)} processes with {saved[0]} readers each, this run has "
            f"{self.num_processes} with {readers}: it goes on at the beginning of epoch {epoch + 1} of the stream"
        )
        return epoch, 0

    def read(
        self, transform: Transform, start: tuple[int, int], reader: int, readers: int
    ) -> Iterator[dict[str, Any] | None]:
        first_epoch, idle = start
        if reader < idle:
            yield None
        self.stream.report = DatasetReport()
        waiting: defaultdict[bool, list[tuple[Place, dict[str, Any]]]] = defaultdict(list)
        rows = self._rows(self._positions.get(reader, [(first_epoch, 0)]), reader)
        for place, row, sample in self._samples(rows, transform):
            group = waiting[self.config.aspect_ratio_batches and _is_wide(row)]
            group.append((place, sample))
            if len(group) == self.config.batch_size:
                batch = make_batch([entry for _, entry in group])
                group.clear()
                others = sorted(other for entries in waiting.values() for other, _ in entries)
                read, self.stream.report = self.stream.report, DatasetReport()
                position = [*others, (place[0], place[1] + 1)]
                yield {**batch, "reader": reader, "position": position, "report": read}

    def _rows(self, position: Sequence[Sequence[int]], reader: int) -> Iterator[tuple[Place, dict[str, Any], int]]:
        """Rows with their places and seeds: those that wait, and all from the last place of the position on."""
        *held, first = [(epoch, number) for epoch, number in position]
        empty = 0
        for epoch in itertools.count(position[0][0]):
            rows = self.stream.epoch(
                epoch,
                self.config.seed,
                buffer_size=self.config.shuffle_buffer,
                num_processes=self.num_processes,
                process_index=self.process_index,
            )
            empty += 1
            for number, row in enumerate(rows):
                if self.config.skip_empty_images and all(row["objects"]["iscrowd"]):
                    continue
                empty = 0
                place = epoch, number
                if place >= first or place in held:
                    known = row["image_id"] >= 0
                    which = (0, row["image_id"]) if known else (1, self.process_index, reader, number)
                    yield place, row, mixed_seed(self.config.seed, epoch, *which)
            if empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(
                    f"{self.stream.name}: process {self.process_index}, reader {reader}, finds no image to train on in "
                    "its part of the shards; use fewer processes and --num-workers, or a data set with more images"
                )


def _is_wide(row: Mapping[str, Any]) -> bool:
    """Whether the image is at least as wide as tall."""
    return (row["width"] or 0) >= (row["height"] or 0)
