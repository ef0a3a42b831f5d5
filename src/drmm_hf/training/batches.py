"""Batches of augmented images for a training, from any step on: what tables and streams share, and tables.

The images of a step of a table follow from the seed and the step alone, however many processes share it.
"""

import itertools
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.ops import box_convert

from ..data import DetectionDataset, load_detection_dataset
from ..data.load import find_part
from ..data.splits import VALIDATION_SHARE
from ..data.stream import mixed_seed
from ..loading import label_names
from .config import TrainConfig

Transform = Callable[[Mapping[str, Any], torch.Generator], dict[str, Any]]
Place = tuple[int, int]
"""Epoch, and number of the row in it."""

_MAX_REPLACEMENTS = 10
"""So many unreadable images in a row are no accident."""


class TrainingData(ABC):
    """The training split, as one process of a training sees it: a `TableData` or a `StreamData`.

    Args:
        config: says what is read and how it is divided.
        num_processes, process_index: how many share the training, and which of them this is.

    Attributes:
        id2label, label2id: labels 0..C-1 and names.
        epoch_images: images of an epoch of all processes; None where nothing tells.
        num_workers: processes that read images.

    Raises:
        FileNotFoundError, ValueError: the data cannot be read, or have no boxes.
    """

    def __init__(self, config: TrainConfig, num_processes: int = 1, process_index: int = 0) -> None:
        self.config, self.num_processes, self.process_index = config, num_processes, process_index
        self.epoch_images, self.num_workers = config.epoch_images, config.num_workers
        self.id2label = self._open(None if config.classes is None else dict(enumerate(config.classes)))
        if config.model and config.classes is None:  # classes that it knows keep the labels that they have there
            known = label_names(config.model)
            if known != self.id2label and sorted(known.values()) == sorted(self.id2label.values()):
                self.id2label = self._open(known)
        self.label2id = {name: label for label, name in self.id2label.items()}

    @abstractmethod
    def _open(self, id2label: dict[int, str] | None) -> dict[int, str]:
        """Open the split; the names of its labels, which are those of `id2label` where it is given."""

    @abstractmethod
    def landscape_share(self) -> float:
        """Share of the images (of some, in a stream) that are at least as wide as tall."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one before, as plain values."""

    @abstractmethod
    def evaluation_dataset(self) -> DetectionDataset:
        """The split to evaluate, with the same labels; every process calls it."""

    def position(self) -> Any:
        """What a checkpoint has to keep to go on from here, besides the step, as JSON; every process calls it."""
        return None

    def batches(self, transform: Transform, first_step: int = 0, position: Any = None) -> Iterator[dict[str, Any]]:
        """Endless batches of this process.

        Args:
            transform: makes a sample of a row, such as `TrainTransform`.
            first_step: steps already done.
            position: what `position` gave after that step.

        Returns:
            `images`, a list of (3, h, w) uint8; `annotations`, COCO annotations of each in its pixels, as
            `DrmmImageProcessor` takes them; `objects`, how many these are, and `dropped_boxes`, how many others are too
            small in the augmented images or outside of them; and `skipped`, messages of images that could not be read.

        Raises:
            ValueError, FileNotFoundError: the data cannot be read.
            OSError: a worker has died.
        """
        loader: DataLoader = DataLoader(
            _Batches(self, transform, self._start(first_step, position)),
            batch_size=None,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or each iterator would take a number from torch's global one
            pin_memory=torch.cuda.is_available(),
        )
        batches = iter(loader)
        try:
            while True:
                batch = next(batches)
                if isinstance(batch, Exception):
                    raise batch
                if batch is not None:
                    yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                f"A process that reads images has died ({str(error).splitlines()[0]}). Often memory is short: "
                "lower --num-workers or --batch-size, and add --resume."
            ) from error
        finally:
            del batches  # ends the workers now, not when the error and its traceback are collected

    def _start(self, first_step: int, position: Any) -> Any:
        """Where the readers begin."""
        return first_step

    @abstractmethod
    def read(self, transform: Transform, start: Any, reader: int, readers: int) -> Iterator[dict[str, Any] | None]:
        """Every batch of one of the `readers`, which take turns; None where its turn is to be passed over."""

    def _samples(
        self, rows: Iterable[tuple[Place, Mapping[str, Any], int]], transform: Transform
    ) -> Iterator[tuple[Place, Mapping[str, Any], dict[str, Any]]]:
        """The samples of rows (with their places and seeds); the next one names those that cannot be read.

        Raises:
            ValueError, OSError: of an image, with `strict`, or of too many in a row.
        """
        skipped: list[str] = []
        for place, row, seed in rows:
            try:
                sample = transform(row, torch.Generator().manual_seed(seed))
            except (ValueError, OSError) as error:
                if not self.config.max_bad_images:
                    raise
                skipped.append(str(error))
                if len(skipped) == _MAX_REPLACEMENTS:
                    raise ValueError(f"{len(skipped)} images in a row cannot be read; the last: {error}") from error
            else:
                yield place, row, {**sample, "skipped": skipped}
                skipped = []


class TableData(TrainingData):
    """A data set that can be read in any order."""

    def _open(self, id2label: dict[int, str] | None) -> dict[int, str]:
        config = self.config
        held_out = config.eval_split and not config.eval_annotations
        self.dataset = load_detection_dataset(
            config.data or ".",
            config.train_split,
            annotations=config.annotations,
            images=config.images,
            id2label=id2label,
            validation_share=VALIDATION_SHARE if held_out else 0.0,
            image_frame=config.image_frame,
        )
        self.rows = self.dataset.dataset
        if config.skip_empty_images:
            crowd = (objects["iscrowd"] for objects in self.rows["objects"])
            self.rows = self.rows.select([i for i, flags in enumerate(crowd) if not all(flags)])
        self.epoch_images = len(self.rows)
        return self.dataset.id2label

    def landscape_share(self) -> float:
        return float(self._wide().mean())

    def identity(self) -> dict[str, Any]:
        return {"training images": len(self.rows)}

    def evaluation_dataset(self) -> DetectionDataset:
        config = self.config
        share = 0.0 if config.annotations else VALIDATION_SHARE
        images = config.eval_images
        if config.images and not images and not config.eval_annotations:
            of_training = find_part(config.data or ".", config.eval_split, validation_share=share)[1]
            images = config.images if of_training else None
        return load_detection_dataset(
            config.data or ".",
            config.eval_split,
            annotations=config.eval_annotations,
            images=images,
            id2label=self.id2label,
            validation_share=share,
            image_frame=config.image_frame,
        )

    def _wide(self) -> np.ndarray:
        """Whether each image is at least as wide as tall (I,); nothing is decoded."""
        return np.array(self.rows["width"]) >= np.array(self.rows["height"])

    def read(self, transform: Transform, start: int, reader: int, readers: int) -> Iterator[dict[str, Any]]:
        order = training_order(
            self._wide() if self.config.aspect_ratio_batches else np.zeros(len(self.rows), dtype=bool),
            self.config.batch_size,
            self.config.seed,
            num_processes=self.num_processes,
            process_index=self.process_index,
            accumulation=self.config.gradient_accumulation,
            first_step=start,
        )
        for places in itertools.islice(order, reader, None, readers):
            yield make_batch([self._sample(place, transform) for place in places])

    def _sample(self, place: Place, transform: Transform) -> dict[str, Any]:
        """The sample of an image, or of the next one that can be read: of its place and the seed alone."""
        seed = mixed_seed(self.config.seed, *place)
        candidates = ((place, self.rows[i % len(self.rows)], seed) for i in itertools.count(place[1]))
        return next(self._samples(candidates, transform))[2]


def training_order(
    groups: np.ndarray,
    batch_size: int,
    seed: int,
    *,
    num_processes: int = 1,
    process_index: int = 0,
    accumulation: int = 1,
    first_step: int = 0,
) -> Iterator[list[Place]]:
    """Endless batches of one process, as lists of (epoch, image index): a function of the seed and the step.

    Every epoch is a new permutation, cut into batches that are dealt to the processes in turn: two processes with
    batches of one image see together what one process with batches of two sees. What does not fill a step of all
    processes is left out of the epoch (other images each time); a group smaller than a batch and a data set smaller
    than a step are repeated to fill it.

    Args:
        groups: (num_images,) group of each image; a batch has images of one group only.
        batch_size, accumulation: images of a batch, and batches of a process per step of the optimizer.
        num_processes, process_index: as in `TrainingData`.
        first_step: steps already done.
    """

    def batches_of(epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(groups))
        batches: list[np.ndarray] = []
        for group in np.unique(groups):
            members = order[groups[order] == group]
            count = max(len(members) // batch_size, 1)
            batches += np.split(np.resize(members, count * batch_size), count)
        if len(np.unique(groups)) > 1:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    steps = max(1, len(batches_of(0)) // (num_processes * accumulation))
    first_epoch, step = divmod(first_step, steps)
    for epoch in itertools.count(first_epoch):
        batches = batches_of(epoch)
        for turn in range(step * accumulation, steps * accumulation):
            position = (turn * num_processes + process_index) % len(batches)
            yield [(epoch, index) for index in batches[position].tolist()]
        step = 0


@dataclass
class _Batches(IterableDataset):
    """What a worker of the `DataLoader` reads; an error is its last item."""

    data: TrainingData
    transform: Transform
    start: Any

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        reader, readers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker is not None:  # the terminal sends Ctrl-C to it as well, but the main process decides
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            yield from self.data.read(self.transform, self.start, reader, readers)
        except (ValueError, OSError) as error:
            # As an item, since a worker's own report is a page of traceback; a subclass may not survive the way.
            yield (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(str(error))


def make_batch(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples of a transform, with `skipped`, to what `TrainingData.batches` gives."""
    annotations = []
    for sample in samples:
        boxes = box_convert(sample["boxes"].double(), "xyxy", "xywh").tolist()
        records = [
            {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
            for box, label in zip(boxes, sample["labels"].tolist(), strict=True)
        ]
        annotations.append({"image_id": sample["image_id"], "annotations": records})
    return {
        "images": [sample["image"] for sample in samples],
        "annotations": annotations,
        "objects": sum(len(annotation["annotations"]) for annotation in annotations),
        "dropped_boxes": sum(sample["dropped_boxes"] for sample in samples),
        "skipped": [message for sample in samples for message in sample["skipped"]],
    }
