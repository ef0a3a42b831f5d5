"""Where data sets with an `objects` column come from: the Hub, and folders that `datasets` reads."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import datasets
import pyarrow as pa
from huggingface_hub.errors import HFValidationError

from .coco import DetectionDataset
from .coco_layout import AnyPath
from .objects import objects_dataset

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SPLIT_ALIASES = {"val": "validation", "validation": "val"}


def is_objects_source(path: AnyPath) -> bool:
    """Whether `path` is a folder of `datasets` (saved, parquet, imagefolder) or, no folder, looks like a Hub id."""
    root = Path(path).expanduser()
    if root.is_dir():
        return not (root / "annotations").is_dir() and (is_saved(root) or _holds_parquet(root) or _has_metadata(root))
    return isinstance(path, str) and not root.exists() and _HUB_ID.fullmatch(path) is not None


def load_objects_dataset(
    path: AnyPath, split: str = "train", *, id2label: Mapping[int, str] | None = None
) -> DetectionDataset:
    """Read one split of a Hub data set or of a folder of `datasets` with the `objects` schema.

    Args:
        path: a Hub id, or a folder written by `save_to_disk`, with parquet files, or an `imagefolder` with
            metadata.jsonl. A single saved `Dataset` without the name of a split counts as "train".
        split: name of the split; "val" also finds "validation" and vice versa.
        id2label: as in `objects_dataset`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a data set that can be reached.
        ValueError: it cannot be read, has no such split, or as `objects_dataset`.
    """
    splits = _load_splits(path)
    found = find_split(splits, split, path)
    return objects_dataset(splits[found], id2label=id2label, name=f"{path} ({found})")


def _load_splits(path: AnyPath) -> dict[str, datasets.Dataset]:
    root = Path(path).expanduser()
    try:
        if not root.is_dir():
            loaded = datasets.load_dataset(str(path))
        elif is_saved(root):
            loaded = datasets.load_from_disk(str(root))
        else:
            # Absolute, since a folder called "parquet" would otherwise be taken for the loader of that name.
            loaded = datasets.load_dataset(str(root.absolute()))
    except (ConnectionError, FileNotFoundError, HFValidationError) as error:
        if root.is_dir():
            raise ValueError(f"{path}: cannot be read as a data set ({reason_of(error)}); write it again") from error
        raise unreachable(path, error) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read as a data set ({reason_of(error)}); load it with `datasets` and give it to "
            "`objects_dataset`"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        # A slice such as train[:10%] keeps its whole expression as its name.
        return {str(loaded.split or "train").split("[")[0]: loaded}
    return {str(split): part for split, part in loaded.items()}


def find_split(splits: Collection[str], split: str, path: AnyPath) -> str:
    """The split of that name, or of its alias; ValueError where there is neither."""
    found = split if split in splits else _SPLIT_ALIASES.get(split, split)
    if found not in splits:
        raise ValueError(f"{path}: has no split {split!r}; give one of {sorted(splits)}")
    return found


def unreachable(path: AnyPath, error: BaseException) -> FileNotFoundError:
    """The error of a path that is neither a folder nor a data set of the Hub."""
    return FileNotFoundError(
        f"{path}: there is no such folder ({Path(path).expanduser().absolute()}), and no such data set on the Hub that "
        f"can be reached: {reason_of(error)}; correct the name, or go online"
    )


def reason_of(error: BaseException) -> str:
    """The first line of what `datasets` has to say."""
    while type(error) is datasets.exceptions.DatasetGenerationError and error.__cause__ is not None:
        error = error.__cause__  # its own text is only "An error occurred"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _holds_parquet(root: Path) -> bool:
    return any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet"))


def _has_metadata(root: Path) -> bool:
    return any(next(root.glob(pattern), None) for pattern in ("metadata.jsonl", "*/metadata.jsonl"))
