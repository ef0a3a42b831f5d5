"""Where the samples of a training come from: a table of images here, shards in `streamed_source`."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data import DetectionDataset, load_detection_dataset
from .batches import TrainingSamples, orientation_groups, training_loader
from .config import TrainConfig
from .faults import TrainingStopped
from .sampling import TrainingOrder


class SampleSource(ABC):
    """The training split, as one process of a training sees it.

    Attributes:
        id2label, label2id: labels 0..C-1 and names.
        epoch_images: images of an epoch of all processes; None where nothing tells.
    """

    id2label: dict[int, str]
    label2id: dict[str, int]
    epoch_images: int | None

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator

    @abstractmethod
    def landscape_share(self) -> float:
        """Share of the images (of some, in a stream) that are at least as wide as tall."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one before, as plain values."""

    @abstractmethod
    def evaluation_dataset(self) -> DetectionDataset:
        """The split to evaluate, with the same labels; every process calls it."""

    @abstractmethod
    def loader(self, transform: Callable, first_step: int, position: Any) -> DataLoader:
        """Endless batches of this process, as `collate` makes them."""

    def position(self) -> Any:
        """What a checkpoint has to keep to go on from here, besides the step; every process calls it."""
        return None

    def batches(self, transform: Callable, first_step: int = 0, position: Any = None) -> Iterator[dict[str, Any]]:
        """Endless batches of this process.

        Args:
            transform: makes a sample of a row.
            first_step: steps already done.
            position: what `position` gave after that step.

        Raises:
            TrainingStopped: a worker has died.
            ValueError, OSError: the data cannot be read.
        """
        batches = iter(self.loader(transform, first_step, position))
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise TrainingStopped(
                    f"A process that reads images has died ({str(error).splitlines()[0]}). Often memory is short: "
                    "lower --num-workers or --batch-size, and add --resume."
                ) from error
            if isinstance(batch, Exception):
                raise batch
            if batch is not None:
                yield batch


class TableSource(SampleSource):
    """A data set that can be read in any order: the images of a step follow from the seed and the step."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        super().__init__(config, accelerator)
        dataset = load_detection_dataset(config.data, config.train_split, id2label=given_labels(config))
        if dataset.report.boxes == 0:
            raise ValueError(f"{dataset.annotations_path}: no boxes to learn from in the split {config.train_split!r}.")
        self.dataset = without_empty_images(dataset) if config.skip_empty_images else dataset
        self.id2label, self.label2id = dataset.id2label, dataset.label2id
        self.epoch_images = len(self.dataset)

    def landscape_share(self) -> float:
        """See `SampleSource`."""
        return float(np.mean(orientation_groups(self.dataset)))

    def identity(self) -> dict[str, Any]:
        """See `SampleSource`."""
        return {"training images": len(self.dataset)}

    def evaluation_dataset(self) -> DetectionDataset:
        """See `SampleSource`."""
        return load_detection_dataset(self.config.data, self.config.eval_split, id2label=self.id2label)

    def loader(self, transform: Callable, first_step: int, position: Any) -> DataLoader:
        """See `SampleSource`."""
        config = self.config
        samples = TrainingSamples(self.dataset, transform, config.seed, strict=config.max_bad_images == 0)
        order = TrainingOrder(
            len(samples),
            config.batch_size,
            config.seed,
            groups=orientation_groups(self.dataset) if config.aspect_ratio_batches else None,
            num_processes=self.accelerator.num_processes,
            process_index=self.accelerator.process_index,
            accumulation=config.gradient_accumulation,
            first_step=first_step,
        )
        return training_loader(samples, config.num_workers, order=order)


def given_labels(config: TrainConfig) -> dict[int, str] | None:
    """Labels 0..C-1 and names of `--classes`, if there are any."""
    return None if config.classes is None else dict(enumerate(config.classes))


def without_empty_images(dataset: DetectionDataset) -> DetectionDataset:
    """Only the images with a box that is no crowd."""
    keep = [i for i, crowd in enumerate(dataset.dataset["objects"]) if not all(crowd["iscrowd"])]
    return dataclasses.replace(dataset, dataset=dataset.dataset.select(keep))
