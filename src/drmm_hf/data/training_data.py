"""What a training asks of its data, and what a batch is: the part that a table and a stream share."""

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, Sampler

from .layouts import AnyPath
from .rows import DetectionDataset

MAX_REPLACEMENTS = 10
"""So many unreadable images in a row are no accident."""

Transform = Callable[[Mapping[str, Any], torch.Generator], dict[str, Any]]
Row = tuple[int, int]
"""Epoch, and number of the row in it."""


@dataclass(frozen=True)
class Settings:
    """See `open_training_data`."""

    path: AnyPath
    split: str
    eval_split: str | None
    batch_size: int
    accumulation: int
    seed: int
    num_workers: int
    skip_empty: bool
    by_orientation: bool
    strict: bool


class TrainingData(ABC):
    """The training split, as one process of a training sees it; `open_training_data` makes it.

    Attributes:
        id2label, label2id: labels 0..C-1 and names.
        epoch_images: images of an epoch of all processes; None where nothing tells.
    """

    id2label: dict[int, str]
    label2id: dict[str, int]
    epoch_images: int | None

    def __init__(self, settings: Settings, accelerator: Accelerator):
        self.settings, self.accelerator = settings, accelerator

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
    def _loader(self, transform: Transform, first_step: int, position: Any) -> DataLoader:
        """Endless batches of this process; an Exception in place of a batch is to be raised, None passed over."""

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
            `DrmmImageProcessor` takes them; and `skipped`, messages of images that could not be read.

        Raises:
            ValueError, FileNotFoundError: the data cannot be read.
            OSError: a worker has died.
        """
        batches = iter(self._loader(transform, first_step, position))
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

    def batch_loader(self, batches: Dataset, num_workers: int, order: Sampler | None = None) -> DataLoader:
        """The `DataLoader` of a data set whose items are batches."""
        return DataLoader(
            batches,
            batch_size=None,
            sampler=order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or each iterator would take a number from torch's global one
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_interrupts,
        )


def make_batch(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples (`image`, `boxes` xyxy, `labels`, `image_id`, `skipped`) to what `TrainingData.batches` gives."""
    return {
        "images": [sample["image"] for sample in samples],
        "annotations": [_annotation(sample) for sample in samples],
        "skipped": [message for sample in samples for message in sample["skipped"]],
    }


def _annotation(sample: Mapping[str, Any]) -> dict[str, Any]:
    corners = sample["boxes"].double()
    boxes = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1).tolist()
    records = [
        {"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0}
        for box, label in zip(boxes, sample["labels"].tolist(), strict=True)
    ]
    return {"image_id": sample["image_id"], "annotations": records}


def seeded(seed: int) -> torch.Generator:
    """The source of a sample's draws."""
    return torch.Generator().manual_seed(seed)


def is_wide(row: Mapping[str, Any]) -> bool:
    """Whether the image is at least as wide as tall."""
    return (row["width"] or 0) >= (row["height"] or 0)


def plain_error(error: Exception) -> Exception:
    """The error as an item, since a worker's own report is a page of traceback; a subclass may not survive the way."""
    return (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(str(error))


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_: int) -> None:
    """What a DataLoader worker does with Ctrl-C, which the terminal sends to it as well: the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
