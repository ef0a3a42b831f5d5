"""Where a COCO-format data set keeps its files: annotation json, image folder, image files."""

import os
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath

AnyPath = str | PathLike[str]
_SHOWN = 3


def find_annotations(path: AnyPath, split: str, annotations: AnyPath | None) -> Path:
    """The json file of a split.

    Args:
        path: the data set's folder; `annotations/instances_{split}.json` is tried, then
            `..._{split}2017.json`.
        split: name of the split.
        annotations: an explicit file; relative to the working directory or, where that does not exist, to
            `path`.

    Raises:
        FileNotFoundError: no such folder or file; the message lists the json files that are there.
        ValueError: `split` is not a plain name.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        if root.is_file():
            raise FileNotFoundError(f"{root}: is a file; `path` must be the folder (give the json as `annotations=`)")
        raise FileNotFoundError(f"{root}: no such folder; `path` must be a COCO-format data set")
    if annotations is not None:
        candidates = [Path(annotations).expanduser().absolute(), root / annotations]
    else:
        if not split or set(split) & set("/\\") or split in (".", ".."):
            raise ValueError(f"split={split!r}: must be the plain name of a split, such as 'train'")
        candidates = [root / "annotations" / f"instances_{name}.json" for name in (split, f"{split}2017")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    folders = dict.fromkeys([root / "annotations", *(c.parent for c in candidates), root])
    present = [str(file) for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
    found = f"json files there: {_shorten(present, 10)}" if present else "there are no json files there"
    fix = f"split={split!r} may be wrong: pass another, or the file as" if annotations is None else "correct"
    raise FileNotFoundError(f"{candidates[0]}: no such annotation file; {found}; {fix} `annotations=`")


def find_images_dir(path: AnyPath, split: str, images: AnyPath | None, file_names: Sequence[str]) -> Path:
    """The folder that the json's `file_name`s are relative to.

    Without `images`, the first of `images/{split}2017`, `{split}2017`, `images/{split}`, `{split}`, `images`
    that holds one of the first files of the split; otherwise the first that exists.

    Raises:
        FileNotFoundError: none of the folders exists.
    """
    root = Path(path).expanduser().absolute()
    if images is not None:
        candidates = [Path(images).expanduser().absolute(), root / images]
    else:
        names = (f"images/{split}2017", f"{split}2017", f"images/{split}", split, "images")
        candidates = [root / name for name in names]
    existing = [folder for folder in candidates if folder.is_dir()]
    if not existing:
        looked = ", ".join(str(folder) for folder in dict.fromkeys(candidates))
        raise FileNotFoundError(f"{root}: no image folder (looked for {looked}); pass it as `images=`")
    for folder in existing:
        if any((folder / name).is_file() for name in file_names[:_SHOWN]):
            return folder
    return existing[0]


def check_file_names(file_names: Sequence[str], annotations_path: Path) -> None:
    """Refuse a `file_name` that points outside the image folder (on any operating system).

    Raises:
        ValueError: an absolute path, a drive, a `..`, or a NUL character.
    """
    for index, name in enumerate(file_names):
        windows = PureWindowsPath(name)  # splits on both kinds of slash
        outside = PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts
        if outside or "\0" in name:
            raise ValueError(
                f"{annotations_path}: images[{index}].file_name is {name!r}, which leaves the image folder; "
                "make it a path inside the folder, without '..'"
            )


def check_images_exist(images_dir: Path, file_names: Sequence[str], annotations_path: Path) -> None:
    """Every image must be there. Folders are listed once: no system call a file.

    Raises:
        FileNotFoundError: with the number of missing images, the first few names and where they were looked
            for.
    """
    present = _list_files(images_dir, {os.path.dirname(name) for name in file_names})
    missing = [name for name in file_names if os.path.normpath(name) not in present]
    if not missing:
        return
    by_stem = {os.path.splitext(name)[0].lower(): name for name in present}
    similar = by_stem.get(os.path.splitext(os.path.normpath(missing[0]))[0].lower())
    hint = f" (there is {similar!r}: renamed?)" if similar else ""
    raise FileNotFoundError(
        f"{annotations_path}: {len(missing)} of {len(file_names)} images are missing in {images_dir}: "
        f"{_shorten(missing, _SHOWN)}{hint}; restore the files, correct images[].file_name, or pass the "
        "right folder as `images=`"
    )


def _list_files(images_dir: Path, folders: Iterable[str]) -> set[str]:
    files: set[str] = set()
    for folder in folders:
        try:
            with os.scandir(images_dir / folder) as entries:
                files.update(os.path.normpath(os.path.join(folder, e.name)) for e in entries if not e.is_dir())
        except OSError:  # a missing folder: its files are then reported as missing
            continue
    return files


def _shorten(names: Sequence[str], count: int) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
