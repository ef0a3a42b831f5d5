"""What a folder of a data set is: where its splits have their annotations and images, as the usual tools write them."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..files import read_json
from .sidecars import Files, class_settings, find_sidecars
from .splits import SPLITS, Part, by_split, split_in, usual_name

_TOOLS = {"_annotations.coco": "Roboflow", "instances_default": "CVAT", "result": "Label Studio", "labels": "FiftyOne"}
_PEEK = 1 << 16


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
    if parts := _coco_parts(root):
        return parts
    files = Files(root)
    inside = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))]
    if len(inside) == 1 and not _has_own(files):
        with contextlib.suppress(FileNotFoundError):
            inner = find_parts(inside[0])  # an archive that was unpacked into a folder of its own
            return inner if [*inner] != ["train"] else {split_in(inside[0].name) or "train": inner["train"]}
    parts = find_sidecars(files)
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


def _has_own(files: Files) -> bool:
    """Whether a folder has annotations or names of classes itself, not only in the folders inside."""
    own = [file for file in files.files if file.parent == files.root]
    beside = any(file.suffix == ".xml" or (file.suffix == ".txt" and files.key(file) in files.image_of) for file in own)
    return beside or class_settings(files)[1] is not None


def _coco_parts(root: Path) -> dict[str, Part]:
    names = ("annotations", "labels", *(name for names in SPLITS.values() for name in names))
    folders = [root, *(entry for entry in sorted(root.iterdir()) if entry.name.lower() in names)]
    folders += [folder / "annotations" for folder in folders[1:]]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("[!.]*.json"))]
    instances = [file for file in files if file.stem.startswith("instances")]  # COCO has captions and keypoints beside
    found = by_split((_split_of(file, root), file) for file in instances or filter(_is_coco, files))
    return {split: coco_part(root, split, _only(files, split, root)) for split, files in found.items()}


def _only(files: Sequence[Path], split: str, root: Path) -> Path:
    """The one file of a split, which of several is that with exactly its name."""
    names = SPLITS.get(split, (split,))
    usual = [f"{prefix}{name}{year}" for prefix in ("instances_", "") for year in ("", "2017") for name in names]
    exact = [file for name in usual for file in files if file.stem.lower() == name]
    if len(files) > 1 and not exact:
        raise ValueError(
            f"{root}: several files may be the annotations of {split!r}: {shorten([file.name for file in files], 10)}; "
            "give one as --annotations, or name it after its split (instances_train.json)"
        )
    return (exact or files)[0]


def coco_part(root: Path, split: str, file: Path) -> Part:
    """The split whose annotations are in this COCO file."""
    here, names = file.parent, SPLITS.get(split, (split,))
    inside = [entry for entry in sorted(root.iterdir()) if entry.is_dir()] if root.is_dir() else []
    usual = [entry for entry in inside if entry.name.lower() in ("images", "data", "jpegimages", "img", "imgs")]
    folders = [folder / f"{name}2017" for name in names for folder in (root / "images", root)]
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
        return "" if exact[1].lower() == "default" else usual_name(exact[1])
    return split_in(" ".join((*file.relative_to(root).parts[:-1], file.stem)))


def _is_coco(file: Path) -> bool:
    """Whether a json seems to hold COCO instances, by its two ends."""
    with file.open("rb") as content:
        text = content.read(_PEEK)
        size = content.seek(0, os.SEEK_END)
        content.seek(max(size - _PEEK, 0))
        text += content.read()
    sections = [name for name in (b"images", b"annotations", b"categories") if re.search(b'"%s"\\s*:' % name, text)]
    return len(sections) >= (2 if size <= 2 * _PEEK else 1)


def shorten(names: Sequence[str], count: int) -> str:
    """The first so many names."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
