"""Training on shards that are read in order: parquet files or tars, on the Hub or on disk."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from ..data import DetectionDataset, StreamingDetectionDataset, load_streaming_dataset, objects_dataset
from .batches import training_loader
from .config import TrainConfig
from .sources import SampleSource, given_labels
from .streamed_samples import Position, StreamedSamples

logger = logging.getLogger(__name__)

_FIRST_ROWS = 64
"""So many images tell how the images of a data set lie."""


class StreamedSource(SampleSource):
    """Every process and worker reads shards of its own where there are enough, and else every n-th row.

    A run goes on in the middle of an epoch if the numbers of processes and workers are those of before: the readers
    pass over what they had read, without decoding it. With other numbers it goes on at the beginning of the epoch.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        super().__init__(config, accelerator)
        self.stream = _open(config.data, config.train_split, given_labels(config))
        self.id2label, self.label2id = self.stream.id2label, self.stream.label2id
        self.epoch_images = config.epoch_images or _listed_images(self.stream)
        if self.epoch_images is None and (config.epochs is not None or config.eval_every_epochs is not None):
            raise ValueError(
                f"{self.stream.name}: nothing tells how many images a stream has, so it has no --epochs or "
                "--eval-every-epochs; use --train-images and --eval-every, or give --epoch-images as well"
            )
        self.part = self.stream.shuffle(config.seed, config.shuffle_buffer)
        self.part = self.part.split_by_node(accelerator.process_index, accelerator.num_processes)
        self.workers = min(config.num_workers, self.part.shards_per_process)
        self._positions: dict[int, Position] = {}
        if accelerator.is_main_process:
            self._note_unused_readers()

    def _note_unused_readers(self) -> None:
        processes, shards = self.accelerator.num_processes, self.part.num_shards
        if shards % processes:
            logger.warning(
                "%s: %d shards cannot be dealt evenly to %d processes, so each reads all and takes every %d-th image; "
                "for less reading, write a multiple of %d shards",
                *(self.stream.name, shards, processes, processes, processes),
            )
        if self.workers < self.config.num_workers:
            logger.warning(
                "%s: --num-workers %d, but only %d shards for each process; the other workers are left out",
                *(self.stream.name, self.config.num_workers, self.part.shards_per_process),
            )

    def landscape_share(self) -> float:
        """See `SampleSource`; of the first images."""
        rows = list(itertools.islice(self.stream, _FIRST_ROWS))
        return sum((row["width"] or 0) >= (row["height"] or 0) for row in rows) / max(len(rows), 1)

    def identity(self) -> dict[str, Any]:
        """See `SampleSource`."""
        return {"shards": self.stream.num_shards}

    def evaluation_dataset(self) -> DetectionDataset:
        """See `SampleSource`. The split is read once and stored in the cache folder of `datasets`."""
        with self.accelerator.local_main_process_first():
            return stored_split(self.config.data, self.config.eval_split, self.id2label)

    def position(self) -> Any:
        """See `SampleSource`: of every process, the workers and their positions."""
        workers = {str(reader): place.to_json() for reader, place in self._positions.items()}
        return gather_object([{"readers": max(self.workers, 1), "positions": workers}])

    def loader(self, transform: Callable, first_step: int, position: Any) -> DataLoader:
        """See `SampleSource`."""
        config, readers = self.config, max(self.workers, 1)
        first_epoch, done = 0, first_step * config.gradient_accumulation
        if position is not None:
            saved = [process["readers"] for process in position]
            if saved == [readers] * self.accelerator.num_processes:
                own = position[self.accelerator.process_index]["positions"]
                self._positions = {int(reader): Position.from_json(place) for reader, place in own.items()}
            else:
                places = [place for process in position for place in process["positions"].values()]
                first_epoch, done = min((Position.from_json(place).first_epoch for place in places), default=0), 0
                if self.accelerator.is_main_process:
                    logger.warning(
                        "the checkpoint is of %d processes with %d readers each, this run has %d with %d: it goes on "
                        "at the beginning of epoch %d of the stream",
                        *(len(saved), saved[0], self.accelerator.num_processes, readers, first_epoch + 1),
                    )
        samples = StreamedSamples(
            self.part,
            transform,
            config.seed,
            config.batch_size,
            self.accelerator.process_index,
            positions=self._positions,
            first_epoch=first_epoch,
            # batches come from the workers in turn, the first from worker 0
            idle_workers=done % readers,
            by_orientation=config.aspect_ratio_batches,
            skip_empty=config.skip_empty_images,
            strict=config.max_bad_images == 0,
        )
        return training_loader(samples, self.workers, batch_size=config.batch_size)

    def batches(self, transform: Callable, first_step: int = 0, position: Any = None) -> Iterator[dict[str, Any]]:
        """See `SampleSource`."""
        for batch in super().batches(transform, first_step, position):
            self._positions[batch.pop("reader")] = batch.pop("position")
            yield batch


def stored_split(path: str, split: str, id2label: Mapping[int, str]) -> DetectionDataset:
    """One split of a sharded data set as a table, which is made from the stream where it is not in the cache yet."""
    labels = dict(id2label)
    stream = _open(path, split, labels)
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            **{name: datasets.Value("int64") for name in ("image_id", "width", "height")},
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(stream.id2label.values()))),
                "area": datasets.List(datasets.Value("float32")),
                "iscrowd": datasets.List(datasets.Value("int8")),
            },
        }
    )
    # the builder's cache folder changes with the shards, and so does the name under which this is stored
    version = datasets.load_dataset_builder(str(path)).cache_dir
    arguments = {"path": str(path), "split": split, "labels": labels, "version": version}
    try:
        table = datasets.Dataset.from_generator(_rows_of, features=features, gen_kwargs=arguments)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise
    return objects_dataset(table, id2label=labels, name=stream.name)


def _rows_of(path: str, split: str, labels: dict[int, str], version: str) -> Iterator[dict[str, Any]]:
    yield from _open(path, split, labels)


def _open(path: str, split: str, id2label: Mapping[int, str] | None) -> StreamingDetectionDataset:
    root = Path(path).expanduser()
    if (root / "annotations").is_dir():
        raise ValueError(
            f"--streaming: {path} is a folder in COCO format, whose images are read one by one anyway; leave out "
            "--streaming"
        )
    try:
        return load_streaming_dataset(path, split, id2label=id2label)
    except ValueError as error:
        if "give `id2label`" not in str(error):
            raise
        raise ValueError(str(error).replace("`id2label`", "--classes")) from error


def _listed_images(stream: StreamingDetectionDataset) -> int | None:
    """Number of images of the split where the data set's own card tells it."""
    rows = stream.rows
    split = (rows.info.splits or {}).get(str(rows.split))
    return split.num_examples or None if split is not None else None
