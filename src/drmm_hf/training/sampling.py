"""Which images a step sees: a function of the seed and the step alone, so that a run can stop and go on anywhere."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ..data.streaming import mixed_seed


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Endless batches of one process, as lists of (epoch, image index).

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
        groups: Sequence[int] | None = None,
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
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


def sample_seed(seed: int, epoch: int, *image: int) -> int:
    """Seed of the augmentation of one image in one epoch, whichever process and worker makes it."""
    return mixed_seed(seed, epoch, *image)
