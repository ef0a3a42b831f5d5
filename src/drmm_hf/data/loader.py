"""Batches of augmented images for a training, from a table or a stream, from any step on.

Of a table, the images of a step follow from the seed and the step alone, however many processes share it. Of a stream,
every process and worker reads a part of its own, and its position is what a checkpoint keeps.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from .layouts import AnyPath
from .load import load_detection_dataset
from .rows import DetectionDataset
from .stream import mixed_seed
from .stream_batches import StreamedData
from .training_data import MAX_REPLACEMENTS, Row, Settings, TrainingData, Transform, make_batch, plain_error, seeded


def open_training_data(
    path: AnyPath,
    split: str = "train",
    *,
    eval_split: str | None = "val",
    accelerator: Accelerator,
    batch_size: int,
    accumulation: int = 1,
    seed: int = 0,
    num_workers: int = 0,
    id2label: Mapping[int, str] | None = None,
    streaming: bool = False,
    epoch_images: int | None = None,
    shuffle_buffer: int = 1000,
    skip_empty: bool = False,
    by_orientation: bool = False,
    strict: bool = False,
) -> TrainingData:
    """Open the images of a training, as one process sees them.

    Args:
        path, split: as in `load_detection_dataset`, or with `streaming` in `load_streaming_dataset`.
        eval_split: the split of `evaluation_dataset`.
        accelerator: gives the number of the process, and of processes.
        batch_size: images of a batch of one process.
        accumulation: batches of a process per step of the optimizer.
        seed: of the order and the augmentation.
        num_workers: processes that read images.
        id2label: labels 0..C-1 and names, where they are not the data's own.
        epoch_images: images of an epoch of a stream, where its card does not tell it.
        shuffle_buffer: rows of a stream that every reader shuffles at a time.
        skip_empty: leave out images without a box that is no crowd.
        by_orientation: a batch has only images at least as wide as tall, or only taller ones, as in mmdet.
        strict: an image that cannot be read is an error; otherwise the next one replaces it.

    Raises:
        FileNotFoundError, ValueError: the data cannot be read, or have no boxes.
    """
    settings = Settings(
        path, split, eval_split, batch_size, accumulation, seed, num_workers, skip_empty, by_orientation, strict
    )
    if streaming:
        return StreamedData(settings, accelerator, id2label, epoch_images, shuffle_buffer)
    return _TableData(settings, accelerator, id2label)


class TrainingOrder(Sampler[list[Row]]):
    """Endless batches of one process, as lists of (epoch, image index): a function of the seed and the step.

    Every epoch is a new permutation, cut into batches of `batch_size` images that are dealt to the processes in turn:
    two processes with batches of one image see together what one process with batches of two sees. What does not fill
    a step of all processes is left out of the epoch (other images each time); a data set smaller than a step is
    repeated to fill it.

    Args:
        num_images: size of the data set.
        batch_size: images per batch.
        seed: decides the permutations.
        groups: (num_images,) group of each image; a batch has images of one group only.
        num_processes, process_index: whose batches.
        accumulation: batches of a process per step.
        first_step: steps already done.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        groups: Sequence[int] | np.ndarray | None = None,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation: int = 1,
        first_step: int = 0,
    ):
        if num_images < 1:
            raise ValueError("There are no images to train on.")
        self.batch_size, self.seed, self.first_step = batch_size, seed, first_step
        self.groups = np.zeros(num_images, dtype=int) if groups is None else np.asarray(groups, dtype=int)
        self.num_processes, self.process_index, self.accumulation = num_processes, process_index, accumulation
        self.steps_per_epoch = max(1, len(self._batches(0)) // (num_processes * accumulation))

    def __iter__(self) -> Iterator[list[Row]]:
        epoch, step = divmod(self.first_step, self.steps_per_epoch)
        while True:
            batches = self._batches(epoch)
            for current in range(step, self.steps_per_epoch):
                for turn in range(self.accumulation):
                    position = (current * self.accumulation + turn) * self.num_processes + self.process_index
                    yield [(epoch, index) for index in batches[position % len(batches)].tolist()]
            epoch, step = epoch + 1, 0

    def _batches(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.groups))
        batches: list[np.ndarray] = []
        for group in np.unique(self.groups):
            members = order[self.groups[order] == group]
            whole = max(len(members) // self.batch_size * self.batch_size, min(len(members), self.batch_size))
            batches += np.split(members[:whole], range(self.batch_size, whole, self.batch_size))
        if len(np.unique(self.groups)) > 1:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches


class _TableData(TrainingData):
    """A data set that can be read in any order."""

    def __init__(self, settings: Settings, accelerator: Accelerator, id2label: Mapping[int, str] | None):
        super().__init__(settings, accelerator)
        dataset = load_detection_dataset(settings.path, settings.split, id2label=id2label)
        if dataset.report.boxes == dataset.report.crowd:  # crowd is not trained on
            raise ValueError(f"{dataset.annotations_path}: no boxes to learn from in the split {settings.split!r}.")
        if settings.skip_empty:
            keep = [i for i, objects in enumerate(dataset.dataset["objects"]) if not all(objects["iscrowd"])]
            dataset = dataclasses.replace(dataset, dataset=dataset.dataset.select(keep))
        self.dataset = dataset
        self.id2label, self.label2id = dataset.id2label, dataset.label2id
        self.epoch_images = len(dataset)

    def landscape_share(self) -> float:
        return float(self._wide().mean())

    def identity(self) -> dict[str, Any]:
        return {"training images": len(self.dataset)}

    def evaluation_dataset(self) -> DetectionDataset:
        return load_detection_dataset(self.settings.path, self.settings.eval_split or "val", id2label=self.id2label)

    def _wide(self) -> np.ndarray:
        """Whether each image is at least as wide as tall (I,); nothing is decoded."""
        return np.array(self.dataset.dataset["width"]) >= np.array(self.dataset.dataset["height"])

    def _loader(self, transform: Transform, first_step: int, position: Any) -> DataLoader:
        settings = self.settings
        order = TrainingOrder(
            len(self.dataset),
            settings.batch_size,
            settings.seed,
            groups=self._wide() if settings.by_orientation else None,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            accumulation=settings.accumulation,
            first_step=first_step,
        )
        batches = _TableBatches(self.dataset.dataset, transform, settings.seed, settings.strict)
        return self.batch_loader(batches, settings.num_workers, order)


class _TableBatches(Dataset):
    """The batch of a list of (epoch, image index); every sample is a function of these and the seed alone."""

    def __init__(self, rows: datasets.Dataset, transform: Transform, seed: int, strict: bool):
        self.rows, self.transform, self.seed, self.strict = rows, transform, seed, strict

    def __getitem__(self, keys: list[Row]) -> dict[str, Any] | Exception:
        try:
            return make_batch([self._sample(epoch, index) for epoch, index in keys])
        except (ValueError, OSError) as error:
            return plain_error(error)

    def _sample(self, epoch: int, index: int) -> dict[str, Any]:
        """The sample of an image, or of the next one that can be read; it names the others in `skipped`."""
        skipped: list[str] = []
        seed = mixed_seed(self.seed, epoch, index)
        for candidate in range(index, index + MAX_REPLACEMENTS):
            try:
                sample = self.transform(self.rows[candidate % len(self.rows)], seeded(seed))
            except (ValueError, OSError) as error:
                if self.strict:
                    raise
                skipped.append(str(error))
            else:
                return {**sample, "skipped": skipped}
        raise ValueError(f"{len(skipped)} images in a row cannot be read; the last: {skipped[-1]}")
