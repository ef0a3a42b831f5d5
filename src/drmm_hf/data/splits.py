"""Splits of a data set: their names, which of them is meant, and where in a folder one is."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .images import ImageFrame

logger = logging.getLogger(__name__)

AnyPath = str | PathLike[str]
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the same split, by the one that is used here."""


VALIDATION_SHARE = 0.15
"""Share of the images that the commands hold out for validation where the data have no split for it."""


@dataclass(frozen=True)
class Part:
    """One split of a folder.

    Attributes:
        kind: the format, and the tool where its name tells.
        annotations: the file, or the folder of the files, that messages name.
        images: folders in which the images may be, the most likely first.
        read: gives the content as COCO instances, in pixels of the frame in which the images are read, and the path of
            every image where that follows from the format.
    """

    kind: str
    annotations: Path
    images: Sequence[Path]
    read: Callable[[ImageFrame], tuple[Any, list[str] | None]]


@dataclass(frozen=True)
class Portion:
    """A share of a split's images that is held out for validation; or the others.

    Every command that asks for it gets the same images, since they follow from their number alone.
    """

    held_out: bool
    share: float

    def indices(self, images: int, source: str) -> np.ndarray:
        """Of so many images those of the portion, in order."""
        count = min(max(1, round(images * self.share)), images - 1)
        if count < 1:
            raise ValueError(f"{source}: has no split for validation, and one image is not enough to split off a share")
        message = "%s: no split for validation; %d of its %d images, chosen at random, are %s"
        logger.warning(message, source, count, images, "taken for it" if self.held_out else "left out of training")
        order = np.random.default_rng(0).permutation(images)
        return np.sort(order[:count] if self.held_out else order[count:])


def split_in(text: str) -> str:
    """The split that the words of a name tell, such as `obj_train_data`; "" where none does."""
    words = set(re.findall("[a-z]+", text.lower()))
    return next((split for split, names in SPLITS.items() if words.intersection(names)), "")


def by_split(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Files by the split that is told of them; those of which none is told are training data where no other is."""
    found: dict[str, list[Path]] = {}
    for split, file in named:
        found.setdefault(split, []).append(file)
    if unnamed := found.pop("", []):
        found.setdefault("train", unnamed)
    return found


def usual_name(split: str) -> str:
    """The name under which a split is known here: "val" for "Validation"; other names in lower case."""
    return next((usual for usual, names in SPLITS.items() if split.lower() in names), split.lower())


def choose_split(names: Collection[str], split: str, share: float, source: str) -> tuple[str, Portion | None]:
    """Which of the splits of a data set is meant, and which portion of it.

    Args:
        names: of the splits that are there, as `usual_name` has them.
        split: what is asked for.
        share: to hold out for validation of a training split without one beside it.
        source: what messages call the data set.

    Returns:
        The name, and the portion of its images where it is not all.

    Raises:
        ValueError: there is no such split.
    """
    split = usual_name(split)
    if share and split == "train" and "val" not in names and split in names:
        return split, Portion(False, share)
    if split in names:
        return split, None
    if share and split == "val" and "train" in names:
        return "train", Portion(True, share)
    raise ValueError(f"{source}: has no split {split!r}; give one of {sorted(names)}, or the files themselves")
