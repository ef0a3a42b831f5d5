"""What a folder of a data set is: where its splits have their annotations and images, as the usual tools write them."""

import contextlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from ..files import read_json
from . import voc, yolo
from .images import ImageFrame

logger = logging.getLogger(__name__)

AnyPath = str | PathLike[str]
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the same split."""
_TOOLS = {"_annotations.coco": "Roboflow", "instances_default": "CVAT", "result": "Label Studio", "labels": "FiftyOne"}
_PEEK = 1 << 16
_SHOWN = 3


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


def find_parts(root: Path) -> dict[str, Part]:
    """The splits of a folder by their names.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of what was looked for is in it.
    """
    if not root.is_dir():
        hints = {".zip": "unpack it and give the folder", ".json": "give it as --annotations, and its folder as --data"}
        hint = hints.get(root.suffix.lower(), "give the folder of the data set that it is in")
        what = f"is a file; {hint}" if root.is_file() else None
        raise FileNotFoundError(f"{root}: {what or 'no such folder; give that of a data set'}")
    parts = _coco_parts(root)
    for name, find in (("YOLO", yolo.find_splits), ("Pascal VOC", voc.find_splits)):
        parts = parts or {
            split: Part(name, place, folders, read) for split, (place, folders, read) in find(root, SPLITS).items()
        }
    inside = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    if not parts and len(inside) == 1:
        with contextlib.suppress(FileNotFoundError):
            return find_parts(inside[0])  # an archive that was unpacked into a folder of its own
    if not parts:
        present = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
        tars = " (tars are read with --streaming)" if any(name.endswith(".tar") for name in present) else ""
        raise FileNotFoundError(
            f"{root}: no data set was found. Looked for COCO (annotations/*.json, SPLIT/_annotations.coco.json, "
            "result.json, labels.json or another json of images, annotations and categories), YOLO (labels/*.txt or "
            "text files beside the images), Pascal VOC (Annotations/*.xml or xml files beside the images), and for "
            "parquet files, a metadata.jsonl or what save_to_disk writes; there are "
            f"{shorten(present, 10) or 'no files'}{tars}. Give files that are elsewhere as --annotations and --images"
        )
    return parts


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


def _coco_parts(root: Path) -> dict[str, Part]:
    names = ("annotations", "labels", *(name for names in SPLITS.values() for name in names))
    folders = [root, *(entry for entry in sorted(root.iterdir()) if entry.name.lower() in names)]
    folders += [folder / "annotations" for folder in folders[1:]]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("[!.]*.json"))]
    instances = [file for file in files if file.stem.startswith("instances")]  # COCO has captions and keypoints beside
    found: dict[str, list[Path]] = {}
    for file in instances or filter(_is_coco, files):
        found.setdefault(_split_of(file, root), []).append(file)
    unnamed = found.pop("", [])
    if unnamed:
        found.setdefault("train", unnamed)
    return {split: coco_part(root, split, _only(files, split, root)) for split, files in found.items()}


def _only(files: Sequence[Path], split: str, root: Path) -> Path:
    """The one file of a split, which of several is that with exactly its name."""
    usual = [
        f"{prefix}{name}{year}" for prefix in ("instances_", "") for year in ("", "2017") for name in aliases(split)
    ]
    exact = [file for name in usual for file in files if file.stem.lower() == name]
    if len(files) > 1 and not exact:
        raise ValueError(
            f"{root}: several files may be the annotations of {split!r}: {shorten([file.name for file in files], 10)}; "
            "give one as --annotations, or name it after its split (instances_train.json)"
        )
    return (exact or files)[0]


def coco_part(root: Path, split: str, file: Path) -> Part:
    """The split whose annotations are in this COCO file."""
    here, names = file.parent, [name.lower() for name in (split, *aliases(split))]
    inside = [entry for entry in sorted(root.iterdir()) if entry.is_dir()] if root.is_dir() else []
    usual = [entry for entry in inside if entry.name.lower() in ("images", "data", "jpegimages", "img", "imgs")]
    folders = [root / f"images/{split}2017", root / f"{split}2017"]
    for entries in (*([*sorted(folder.iterdir())] for folder in usual), inside):
        folders += [entry for name in names for entry in entries if entry.name.lower() == name]
    folders += [*usual, *(folder / "default" for folder in usual), here / "images", here / "data", here]
    if here.name.lower() == "annotations" and here.parent.is_relative_to(root):
        folders += [here.parent / "images", here.parent]
    if not any(folder.is_dir() for folder in folders if folder not in (here, root)):
        folders += inside  # pictures in a folder of another name
    tool = _TOOLS.get(file.stem)
    kind = f"{tool} COCO" if tool else "COCO"
    return Part(kind, file, [*dict.fromkeys([*folders, root])], lambda _: (read_json(file), None))


def _split_of(file: Path, root: Path) -> str:
    """The split that a file is of by its name, or that of its folder; "" where neither tells."""
    if exact := re.fullmatch(r"instances_(.+?)(2017)?", file.stem):
        name = exact[1].lower()
        return "" if name == "default" else name
    words = re.findall("[a-z]+", " ".join((*file.relative_to(root).parts[:-1], file.stem)).lower())
    return next((split for split, names in SPLITS.items() if set(names) & set(words)), "")


def _is_coco(file: Path) -> bool:
    """Whether a json seems to hold COCO instances, by its two ends."""
    with file.open("rb") as content:
        text = content.read(_PEEK)
        size = content.seek(0, os.SEEK_END)
        content.seek(max(size - _PEEK, 0))
        text += content.read()
    sections = [name for name in (b"images", b"annotations", b"categories") if re.search(b'"%s"\\s*:' % name, text)]
    return len(sections) >= (2 if size <= 2 * _PEEK else 1)


def find_images(part: Part, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The image folder of a split and the path of every image, none of them outside the folders of the split.

    Names that are not there as they stand may be written in another way: with backslashes, with %20 for a space, in
    another Unicode form or case, or with other folders before the file. Of one that leads out of the folders (it is
    absolute, has a drive or ..), what is left without that counts.

    Raises:
        FileNotFoundError: there is no folder, or images are missing: how many, and the first few.
    """
    written, names = names, [_without_way_out(name) for name in names]
    existing = [folder for folder in part.images if folder.is_dir()]
    if not existing:
        looked = shorten([str(folder) for folder in part.images], 8)
        raise FileNotFoundError(f"{part.annotations}: no image folder (looked for {looked}); give it as --images")
    first = names[:_SHOWN]
    folder = next((folder for folder in existing if any((folder / name).is_file() for name in first)), existing[0])
    present = _list_files(folder, {os.path.dirname(name) for name in names})
    paths = [str(folder / name) if os.path.normpath(name) in present else None for name in names]
    if None in paths:
        similar = _files_by_name(existing)
        guesses = [path or _similar(name, similar) for path, name in zip(paths, names, strict=True)]
        often = Counter(guess for guess, _ in set(zip(guesses, names, strict=True)))  # of two names neither is it
        paths = [path or (guess if often[guess] == 1 else None) for path, guess in zip(paths, guesses, strict=True)]
    missing = [f"images[{index}].file_name {written[index]!r}" for index, path in enumerate(paths) if path is None]
    if missing:
        raise FileNotFoundError(
            f"{part.annotations}: {len(missing)} of {len(names)} images are missing in {folder}, or may be several "
            f"files: {shorten(missing, _SHOWN)}; restore or correct them, or give their folder as --images"
        )
    if foreign := [old for old, new in zip(written, names, strict=True) if old != new]:
        logger.warning(
            "%s: %d of %d file names lead out of the image folder, such as %r; files of the same names in it are taken",
            *(part.annotations, len(foreign), len(names), foreign[0]),
        )
    return folder, [path for path in paths if path is not None]


def _without_way_out(name: str) -> str:
    """A file name without root, drive and `..`, on any operating system; others as they are."""
    path = PureWindowsPath(name)  # splits on both kinds of slash
    if not path.anchor and ".." not in path.parts:
        return name
    return "/".join(part for part in path.parts if part not in ("..", path.anchor))


def _list_files(folder: Path, subfolders: Collection[str]) -> set[str]:
    """Files of a folder: each of its folders is listed once, without a system call a file."""
    files: set[str] = set()
    for name in subfolders:
        try:
            with os.scandir(folder / name) as entries:
                files.update(os.path.normpath(os.path.join(name, e.name)) for e in entries if not e.is_dir())
        except OSError:  # a missing folder: its files are then reported as missing
            continue
    return files


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()


def _files_by_name(folders: Sequence[Path]) -> Mapping[str, list[str]]:
    """Paths of all files below the folders by their plain names; of a folder that holds others, its own files alone."""
    found: dict[str, dict[str, None]] = {}
    for folder in folders:
        holds_others = any(folder in other.parents for other in folders)
        for parent, _, files in os.walk(folder):
            for file in files:
                found.setdefault(_plain(file), {})[os.path.join(parent, file)] = None
            if holds_others:
                break
    return {name: list(paths) for name, paths in found.items()}


def _similar(name: str, files: Mapping[str, Sequence[str]]) -> str | None:
    """The one file that a name can mean, or None: of several, the one in folders of the same names."""
    *parents, last = _plain(name).split("/")
    # Label Studio puts eight digits before the name of an upload.
    candidates = files.get(last) or files.get(re.sub("^[0-9a-f]{8}-", "", last), ())
    while len(candidates) > 1 and parents:
        ending = "/".join((*parents, last))
        closer = [path for path in candidates if _plain(path).endswith("/" + ending)]
        candidates, parents = closer or candidates, parents[1:]
    return candidates[0] if len(candidates) == 1 else None


def shorten(names: Sequence[str], count: int) -> str:
    """The first so many names."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
