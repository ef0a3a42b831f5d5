"""YOLO and Pascal VOC folders: a file of annotations beside each image, or in a folder of the same form.

All files of the folder are listed once. An image and its annotations are those whose paths differ in nothing but the
ending and folders that say what they hold, such as `images` and `labels`. The split is the one that a list names, or
the names of the folders.
"""

import functools
import logging
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import yaml

from .images import ImageFrame, image_size
from .splits import SPLITS, Part, by_split, split_in, usual_name

logger = logging.getLogger(__name__)

_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
_OF_IMAGES = frozenset(("images", "jpegimages"))
_CONTENTS = _OF_IMAGES | {"labels", "annotations", "xmls"}
"""Names of folders, in any case, that say what is in them and not of which images."""


class Files:
    """The files of a folder, without hidden ones, in order. Nothing outside of it is read.

    Attributes:
        files: all of them.
        by_name: each by its path relative to the folder, as it is and in its plain form.
        images: those that are pictures by their names, and not what macOS writes beside each.
        image_of: each picture by its `key`; of several, one in a folder of images.
    """

    def __init__(self, root: Path) -> None:
        self.root, found = root, []
        for folder, inner, names in os.walk(root, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".") and not _leads_back(Path(folder, name))]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        self.files = sorted(found)
        self.by_name = {_plain(self.relative(file)): file for file in self.files}
        self.by_name |= {self.relative(file): file for file in self.files}
        self.images = self.ending(*_SUFFIXES)
        self.image_of = {self.key(image): image for image in sorted(self.images, key=self.in_place)}

    def relative(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def ending(self, *suffixes: str) -> list[Path]:
        """The files with one of these endings."""
        return [file for file in self.files if file.as_posix().casefold().endswith(suffixes)]

    def key(self, file: Path) -> str:
        """What the path of an image has in common with that of its annotations."""
        folders = [part for part in file.relative_to(self.root).parts[:-1] if part.casefold() not in _CONTENTS]
        return unicodedata.normalize("NFC", "/".join((*folders, file.stem)))

    def in_place(self, file: Path) -> bool:
        """Whether a file is in a folder that says what is in it; images among labels may be masks."""
        names = _OF_IMAGES if file.suffix.lower() in _SUFFIXES else _CONTENTS
        return any(part.casefold() in names for part in file.relative_to(self.root).parts[:-1])

    def split_of(self, file: Path) -> str:
        """The split that the folders of a file tell, or ""; one with no other word in its name tells it first."""
        folders = file.relative_to(self.root).parts[:-1]
        exact = (usual_name(re.sub("[^a-z]", "", name.lower())) for name in folders)
        return next((split for split in exact if split in SPLITS), split_in("/".join(folders)))

    def listed(self, base: str, entry: str) -> list[Path]:
        """The images that an entry of data.yaml means: those of a folder, or of a list, or one.

        A path may be that of another machine, or begin with `..`, as Roboflow's: its end is what counts.
        """
        path = f"{base}/{entry}"
        file = self.find(path)
        if file is not None:
            return self.in_list(file) if file.suffix == ".txt" else [file]
        for ending in _endings(_plain(path)):
            inside = [image for image in self.images if _plain(self.relative(image)).startswith(ending + "/")]
            if inside and (ending != "images" or _endings(_plain(entry)) == [ending]):  # tells nothing of the split
                return inside
        return []

    def find(self, path: str) -> Path | None:
        endings = (*_endings(path), *_endings(_plain(path)))
        return next((self.by_name[ending] for ending in endings if ending in self.by_name), None)

    def in_list(self, place: Path) -> list[Path]:
        found = {line: self.find(line) for line in read_lines(place) if line}
        if lost := [line for line, file in found.items() if file is None]:
            raise FileNotFoundError(f"{place}: {lost[0]} is not in {self.root}; correct or remove the line")
        return [file for file in found.values() if file is not None]


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it is in."""
    return folder.is_symlink() and any(above.resolve().is_relative_to(folder.resolve()) for above in folder.parents)


def _endings(path: str) -> list[str]:
    """A path without what leads out of a folder, and without its first parts."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    parts = tuple(part for part in parts if part not in ("/", ".."))
    return ["/".join(parts[first:]) for first in range(len(parts))]


def find_sidecars(files: Files) -> dict[str, Part]:
    """The splits of a YOLO or Pascal VOC folder by their names; empty for another one."""
    return _yolo_parts(files) or _voc_parts(files)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without the space around them; some editors of Windows write UTF-16."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is no text in UTF-8; save it as such") from None
    return [line.strip() for line in text.splitlines()]


# YOLO: text files of class and box as fractions of the image, and data.yaml


def _yolo_parts(files: Files) -> dict[str, Part]:
    """The images are where data.yaml says, or `SPLIT.txt` lists them, or in a folder of the split's name."""
    labels = {files.key(file): file for file in files.ending(".txt")}
    if not labels.keys() & files.image_of.keys():
        return {}
    settings, source = class_settings(files)
    chosen: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        entries = [entry for name in names for entry in _as_list(settings.get(name))]
        entries = entries or [f"{name}.txt" for name in names if source]
        base = str(settings.get("path") or "")
        if images := [image for entry in entries for image in files.listed(base, entry)]:
            chosen[split] = images
    given = {image for images in chosen.values() for image in images}
    inner = {files.key(image) for image in files.images if files.in_place(image)}
    # Beside folders of images lie previews, drawn boxes and plots of trainings.
    stray = inner if inner.isdisjoint(labels) else inner | {*files.image_of}.difference(labels)
    others = [image for image in files.images if files.in_place(image) or files.key(image) not in stray]
    chosen = {**by_split((files.split_of(image), image) for image in others if image not in given), **chosen}
    lost = [file for key, file in labels.items() if key not in files.image_of and file.stem != "classes"]
    if lost := [file for file in lost if "labels" in files.relative(file).casefold().split("/")]:
        logger.warning("%d label files have no image and are left out, such as %s", len(lost), lost[0])
    known, keypoints, parts = _names(settings.get("names"), source), bool(settings.get("kpt_shape")), {}
    for split, images in chosen.items():
        pairs = [(image, labels.get(files.key(image))) for image in dict.fromkeys(images)]
        if any(file is not None for _, file in pairs):
            read = functools.partial(_read_yolo, known, pairs, keypoints)
            parts[split] = Part("YOLO", source or files.root, [files.root], read)
    return parts


def class_settings(files: Files) -> tuple[Mapping[str, Any], Path | None]:
    """Content and path of data.yaml, or names of classes from a text file; nothing where there is neither."""
    candidates = [file for file in files.ending(".yaml", ".yml") if file.parent == files.root]
    for file in sorted(candidates, key=lambda file: (file.stem != "data", file)):
        try:
            content = yaml.BaseLoader(file.read_bytes()).get_single_data()  # all texts: a class may be called "no"
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            if file.stem not in ("data", "dataset"):
                continue
            raise ValueError(f"{file}: is no YAML ({' '.join(str(error).split())[:200]}); correct it") from None
        if isinstance(content, Mapping) and ("names" in content or "nc" in content):
            return content, file
    for name in ("classes.txt", "obj.names", "labels/classes.txt"):
        if name in files.by_name:
            file = files.by_name[name]
            return {"names": [line for line in read_lines(file) if line]}, file
    return {}, None


def _names(names: Any, source: Path | None) -> dict[int, str]:
    """The names of the classes by their numbers; none where they are not given."""
    pairs = dict(names if isinstance(names, Mapping) else enumerate(names) if isinstance(names, list) else {})
    good = all(str(label).isdecimal() and isinstance(name, str) for label, name in pairs.items())
    if not good or (names and not pairs):
        raise ValueError(f"{source}: `names` is {str(names)[:80]!r}; it must be a list, or 0: NAME, 1: NAME and so on")
    return {int(label): name for label, name in pairs.items()}


def _as_list(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)] if value else []


def _read_yolo(
    known: Mapping[int, str], pairs: Sequence[tuple[Path, Path | None]], keypoints: bool, frame: ImageFrame
) -> tuple[dict[str, Any], list[str]]:
    """The content as COCO instances, in pixels of images that are read in this frame; and their paths."""
    records: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    unknown = ""
    for image, file in pairs:
        try:
            height, width = image_size({"image": image, "image_frame": frame})
        except ValueError as error:  # its boxes are fractions of nobody knows what
            logger.warning("left out: %s", error)
            continue
        for place, line in enumerate(read_lines(file) if file is not None else [], 1):
            if line:
                label, (x, y, w, h) = _label(line.split(), f"{file}, line {place}", keypoints)
                if known and label not in known:
                    unknown = unknown or f"{file}, line {place}: class {label} is not in `names`, which has {[*known]}"
                box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                records.append({"id": len(records), "image_id": len(sizes), "category_id": label, "bbox": box})
        sizes.append({"id": len(sizes), "file_name": str(image), "width": width, "height": height})
    used = {record["category_id"] for record in records}
    highest = max(used, default=0)
    if unknown:
        from_one = min(used) == 1 and highest == len(known)
        raise ValueError(unknown + "; the classes seem to count from 1: subtract 1 in every label file" * from_one)
    labels = known or {label: f"class_{label}" for label in range(highest + 1)}
    categories = [{"id": label, "name": name} for label, name in labels.items()]
    content = {"images": sizes, "annotations": records, "categories": categories}
    return content, [size["file_name"] for size in sizes]


def _label(words: Sequence[str], place: str, keypoints: bool) -> tuple[int, tuple[float, float, float, float]]:
    """Class and normalized (center x, center y, width, height) of a line: a box, or a polygon of at least 3 points."""
    try:
        label, *values = map(float, words)
        box = keypoints or len(values) in (4, 5)
        good = label >= 0 and label.is_integer() and (box or (len(values) >= 6 and len(values) % 2 == 0))
        good &= len(values) >= 4 and all(-0.5 <= value <= 1.5 for value in values[: 4 if box else None])
        good &= not box or min(values[2:4]) >= 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(
            f"{place} is {' '.join(words)[:80]!r}; it must be the number of a class and center x, center y, width and "
            "height as fractions of the image (or the corners of a polygon)"
        )
    if box:
        return int(label), (values[0], values[1], values[2], values[3])
    xs, ys = values[::2], values[1::2]
    return int(label), ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys))


# Pascal VOC: xml files with the corners of boxes in pixels


def _voc_parts(files: Files) -> dict[str, Part]:
    """The splits are the lists in `ImageSets/Main` or `ImageSets`, or those of the folders of the files or images."""
    # Elsewhere are copies, those of other programs, and masks of the same names.
    found = files.ending(".xml")
    if any(map(files.in_place, found)):
        found = [file for file in found if files.in_place(file) or files.key(file) in files.image_of]
    xmls: dict[str, list[Path]] = {}
    for file in found:
        xmls.setdefault(file.stem, []).append(file)
    by_stem = {image.stem: image for image in sorted(files.images, key=files.in_place)}
    image_of = {file: files.image_of.get(files.key(file), by_stem.get(file.stem)) for file in found}
    chosen: dict[str, list[Path]] = {}
    for split, names in SPLITS.items():
        for name in (*names, *(("trainval",) if split == "train" else ())):
            lists = files.ending(f"imagesets/main/{name}.txt", f"imagesets/{name}.txt")
            if lines := [(line, file) for file in lists for line in read_lines(file) if line]:
                chosen.setdefault(split, [*dict.fromkeys(_listed_xml(xmls, *line) for line in lines)])
    if not chosen:
        told = (
            (files.split_of(file) or (image and files.split_of(image)) or "", file) for file, image in image_of.items()
        )
        chosen = by_split(told)
    everything = [file for of_split in chosen.values() for file in of_split]
    images = {file: files.relative(image) for file, image in image_of.items() if image is not None}
    return {
        split: Part(
            "Pascal VOC", of_split[0].parent, [files.root], functools.partial(_read_voc, of_split, everything, images)
        )
        for split, of_split in chosen.items()
    }


def _listed_xml(xmls: Mapping[str, Sequence[Path]], line: str, file: Path) -> Path:
    """The nearest xml of a line of a list: a name, which may have 1 or -1 after it, or that of the image."""
    for name in (line, line.split()[0], Path(line).stem):
        if name in xmls:
            return max(xmls[name], key=lambda xml: len(os.path.commonpath((xml, file))))
    raise FileNotFoundError(f"{file}: there is no {line}.xml; add it, or remove the line")


def _read_voc(
    files: Sequence[Path], everything: Sequence[Path], image_of: Mapping[Path, str], _: ImageFrame
) -> tuple[dict[str, Any], None]:
    """The content as COCO instances, with the classes of all splits in the order of their names.

    An image has the name of its xml file; that which is written there is often the one before it was renamed.
    """
    trees = {file: _parse(file) for file in dict.fromkeys([*files, *everything])}
    names = sorted({_text(node, "name", file) for file, tree in trees.items() for node in tree.iter("object")})
    if not names:
        raise ValueError(f"{files[0].parent}: none of {len(trees)} xml files has an <object>; give those with boxes")
    images: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for number, file in enumerate(file for file in files if trees[file].tag == "annotation" or file in image_of):
        tree = trees[file]
        written = (tree.findtext("filename") or "").replace("\\", "/").rpartition("/")[2].strip()
        images.append({"id": number, "file_name": image_of.get(file) or written or file.stem, **_size(tree)})
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
    return {"images": images, "annotations": records, "categories": categories}, None


def _parse(file: Path) -> ElementTree.Element:
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
