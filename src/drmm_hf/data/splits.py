"""Splits of a data set: their names, which of them is meant, and where in a folder one is."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from .images import ImageFrame

AnyPath = str | PathLike[str]
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the same split."""


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


def split_in(text: str) -> str:
    """The split that the words of a name tell, such as `obj_train_data`; "" where none does."""
    words = set(re.findall("[a-z]+", text.lower()))
    return next((split for split, names in SPLITS.items() if words.intersection(names)), "")


def aliases(split: str) -> tuple[str, ...]:
    """The split's name, and others that tools give to the same."""
    return next(((split, *names) for names in SPLITS.values() if split in names), (split,))


def named_split(names: Collection[str], split: str) -> str | None:
    """That of the names which the split has, or None."""
    return next((name for name in (split, split.lower(), *aliases(split.lower())) if name in names), None)


def choose_split(names: Collection[str], split: str, share: float | None, source: str) -> tuple[str, bool | None]:
    """Which of the splits of a data set is meant, and which portion of it.

    Args:
        names: of the splits that are there.
        split: what is asked for.
        share: to hold out for validation of a training split without one beside it: 0 for nothing, None for nothing
            but where the split for validation itself is asked for.
        source: what messages call the data set.

    Returns:
        The name; and true for the share that is held out for validation, false for the others, None for all images.

    Raises:
        ValueError: there is no such split.
    """
    found = named_split(names, split)
    if found is None and split in SPLITS["val"] and share != 0 and (train := named_split(names, "train")):
        return train, True
    if found is None:
        raise ValueError(f"{source}: has no split {split!r}; give one of {sorted(names)}, or the files themselves")
    return found, False if share and split in SPLITS["train"] and not named_split(names, "val") else None
