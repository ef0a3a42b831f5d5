"""Batches of preprocessed images: the same ones whatever the number of processes, workers and restarts."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data import DetectionDataset, StreamingDetectionDataset, decode_image
from .prefetch import prefetch

Dataset = DetectionDataset | StreamingDetectionDataset


@dataclass(frozen=True)
class Batch:
    """Consecutive images of a data set.

    Attributes:
        index: its number, from 0.
        rows: of the data set, without their images.
        inputs: what the processor made of the images.
        sizes: (height, width) of each image, stored pixels.
    """

    index: int
    rows: list[dict[str, Any]]
    inputs: dict[str, torch.Tensor]
    sizes: list[tuple[int, int]]


def read_batches(
    dataset: Dataset,
    processor: Any,
    batch_size: int,
    *,
    num_workers: int = 0,
    skipped: Collection[int] = (),
    num_processes: int = 1,
    process_index: int = 0,
) -> Iterator[Batch]:
    """The batches of one process, in the order of the data set.

    The batches that are left are dealt in turn. Of a stream every process reads all rows, since only so are the batches
    the same ones, but decodes only the images of its own.

    Args:
        num_workers: processes that decode and resize, of a stream threads; 0 does it in this thread.
        skipped: numbers of the batches to leave out, which nobody is dealt.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    own = _Share(frozenset(skipped), num_processes, process_index)
    prepare = _Prepare(processor)
    prepared: Iterable[tuple[int, Any]]
    if isinstance(dataset, StreamingDetectionDataset):
        numbered = ((index, rows) for index, rows in enumerate(_groups(dataset, batch_size)) if own(index))
        prepared = prefetch(lambda pair: (pair[0], prepare(pair[1])), numbered, num_workers)
    else:
        wanted = [index for index in range(-(-len(dataset) // batch_size)) if own(index)]
        images = list(range(len(dataset)))
        loader: DataLoader = DataLoader(
            dataset.dataset,  # type: ignore[arg-type]
            batch_sampler=[images[index * batch_size : (index + 1) * batch_size] for index in wanted],
            num_workers=num_workers,
            collate_fn=prepare,
        )
        prepared = zip(wanted, loader, strict=True)
    for index, batch in _without_lost_workers(prepared):
        if isinstance(batch, Exception):
            raise batch
        yield Batch(index, *batch)


def _without_lost_workers(items: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The same items; the end of a worker is an OSError that says what to do."""
    try:
        yield from items
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "A process that reads images has died, most likely because the memory is full; lower --workers or "
            "--batch-size, then go on with --resume"
        ) from error


def _groups(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    # `itertools.batched` is of Python 3.12.
    rows = iter(rows)
    while group := list(itertools.islice(rows, size)):
        yield group


class _Share:
    """Whether a batch belongs to this process; asked for every number from 0 on, in order."""

    def __init__(self, skipped: frozenset[int], num_processes: int, process_index: int) -> None:
        self.skipped, self.num_processes, self.process_index = skipped, num_processes, process_index
        self.dealt = 0

    def __call__(self, index: int) -> bool:
        if index in self.skipped:
            return False
        mine = self.dealt % self.num_processes == self.process_index
        self.dealt += 1
        return mine


class _Prepare:
    """Decodes and preprocesses the rows of a batch; a class, since workers started afresh must pickle it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, ...] | Exception:
        try:
            images = [decode_image(row) for row in rows]
        except (OSError, ValueError) as error:
            # Raised by the caller: a worker's exception would arrive wrapped in the worker's traceback.
            return error
        inputs = self.processor(images=images, return_tensors="pt")
        sizes = [(image.height, image.width) for image in images]
        plain = [{name: value for name, value in row.items() if name != "image"} for row in rows]
        return plain, dict(inputs), sizes
