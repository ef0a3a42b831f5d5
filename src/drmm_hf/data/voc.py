"""Pascal VOC folders: one xml file an image, with the corners of its boxes in pixels."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .images import ImageFrame
from .yolo import in_any_case, is_image, read_lines

_FOLDERS = ("annotations", "labels")
_IMAGES = ("jpegimages", "images")
_Found = dict[str, tuple[Path, Sequence[Path], Callable[[ImageFrame], tuple[Any, None]]]]


def find_splits(root: Path, splits: Mapping[str, Sequence[str]]) -> _Found:
    """The splits of a Pascal VOC folder: the folder of their xml files, the image folders, and how they are read.

    The splits are the lists in `ImageSets/Main` or `ImageSets`, or the folders `SPLIT`, `SPLIT/Annotations` and
    `Annotations/SPLIT`, or those of their images, `images/SPLIT`; without them all files are training data. The files
    may also be in `annotations`, its `xmls`, `labels`, `images`, or beside the images. Empty for a folder without xml
    files. Names of folders may be in any case.

    Args:
        splits: the names of each split.
    """
    places = [in_any_case(root, name.split("/")) for name in (*_FOLDERS, "annotations/xmls", ".", "images")]
    main = next((place for place in places if _xml_files(place)), None)
    main = main or next((folder for folder in places[: len(_FOLDERS)] if folder.is_dir()), root)
    whole = _xml_files(main)
    chosen: dict[str, list[Path]] = {}
    for split, names in splits.items():
        for name in (*names, *(("trainval",) if split == "train" else ())):
            for listed in (in_any_case(root, ["ImageSets", *lists, f"{name}.txt"]) for lists in (["Main"], [])):
                if listed.is_file() and split not in chosen:
                    chosen[split] = [_listed(main, line) for line in read_lines(listed) if line]
            of_split = ([name], *([name, inner] for inner in _FOLDERS))
            for folder in (*(in_any_case(root, place) for place in of_split), in_any_case(main, [name])):
                if split not in chosen and (files := _xml_files(folder)):
                    chosen[split] = files
    if not chosen and whole:
        chosen = _by_images(root, whole, splits) or {"train": whole}
    everything = [file for files in chosen.values() for file in files]
    return {split: _split(root, files, everything) for split, files in chosen.items() if files}


def _by_images(root: Path, files: Sequence[Path], splits: Mapping[str, Sequence[str]]) -> dict[str, list[Path]]:
    """The files of each split whose images are in `images/SPLIT`."""
    chosen: dict[str, list[Path]] = {}
    for split, names in splits.items():
        folders = [in_any_case(root, (parent, name)) for parent in _IMAGES for name in names]
        stems = {image.stem for folder in folders if folder.is_dir() for image in filter(is_image, folder.iterdir())}
        chosen[split] = [file for file in files if file.stem in stems]
    return {split: of for split, of in chosen.items() if of}


def _xml_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.xml")) if folder.is_dir() else []


def _listed(folder: Path, line: str) -> Path:
    """The file of a line of a list: a name, which may have 1 or -1 after it, or that of the image."""
    names = (line, line.split()[0], Path(line).stem)
    return next((file for name in names if (file := folder / f"{name}.xml").is_file()), folder / f"{line}.xml")


def _split(root: Path, files: Sequence[Path], everything: Sequence[Path]) -> Any:
    here = files[0].parent
    folders = [in_any_case(folder, [name]) for folder in (here.parent, root) for name in _IMAGES]
    folders = [*dict.fromkeys([*folders, here])]
    return here, folders, lambda _: (_read(files, everything, folders), None)


def _read(files: Sequence[Path], everything: Sequence[Path], folders: Sequence[Path]) -> dict[str, Any]:
    """The content as COCO instances, with the classes of all splits in the order of their names.

    An image has the name of its xml file; that which is written there is often the one before it was renamed.
    """
    present = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    present += [
        file
        for folder in present
        if folder.is_dir() and folder.parent.name.lower() in _IMAGES
        for file in folder.iterdir()
    ]
    image_of = {file.stem: file.name for file in present if is_image(file)}
    trees = {file: _parse(file) for file in dict.fromkeys([*files, *everything])}
    names = sorted({_text(node, "name", file) for file, tree in trees.items() for node in tree.iter("object")})
    if not names:
        raise ValueError(f"{files[0].parent}: none of {len(trees)} xml files has an <object>; give those with boxes")
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        tree = trees[file]
        written = (tree.findtext("filename") or "").replace("\\", "/").rpartition("/")[2].strip()
        name = image_of.get(file.stem) or written or file.stem
        images.append({"id": number, "file_name": name, **_size(tree)})
        for node in tree.iter("object"):
            box = node.find("bndbox")
            if box is None:
                raise ValueError(f"{file}: an object has no <bndbox>; correct or remove it")
            try:
                x1, y1, x2, y2 = (float(_text(box, name, file)) for name in ("xmin", "ymin", "xmax", "ymax"))
                if not (0 <= x2 - x1 < math.inf and 0 <= y2 - y1 < math.inf):
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f"{file}: <bndbox> must have xmin, ymin, and not less, xmax, ymax; correct it"
                ) from None
            record = {"id": len(records), "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            records.append({**record, "category_id": names.index(_text(node, "name", file))})
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    return {"images": images, "annotations": records, "categories": categories}


def _parse(file: Path) -> ElementTree.Element:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, but a list in ImageSets/Main names it")
    content = file.read_bytes()
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE):  # could make the parser fill the memory
        raise ValueError(f"{file}: has a DOCTYPE, which annotations do not need; remove it")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter of an unknown encoding
        raise ValueError(f"{file}: is no XML ({error}); write it again") from None


def _text(node: ElementTree.Element, name: str, file: Path) -> str:
    text = (node.findtext(name) or "").strip()
    if not text:
        raise ValueError(f"{file}: <{node.tag}> has no <{name}>; correct or remove it")
    return text


def _size(tree: ElementTree.Element) -> dict[str, float]:
    """Width and height where they are given; tools that do not know them write 0."""
    size: dict[str, float] = {}
    for side in ("width", "height"):
        text = (tree.findtext(f"size/{side}") or "").strip()
        if text.replace(".", "", 1).isdigit() and float(text) > 0:
            size[side] = float(text)
    return size
