"""YOLO folders: data.yaml, images, and for each a text file of class and box as fractions of the image."""

import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .images import ImageFrame, image_size

logger = logging.getLogger(__name__)

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
_Found = dict[str, tuple[Path, Sequence[Path], Callable[[ImageFrame], tuple[Any, list[str]]]]]


def find_splits(root: Path, splits: Mapping[str, Sequence[str]]) -> _Found:
    """The splits of a YOLO folder: what messages name, the image folders, and how it is read; empty for another one.

    The images are where data.yaml says, or in `images/SPLIT`, `SPLIT/images` or `SPLIT`, or `SPLIT.txt` lists them;
    without any of these all are training data. A label file is beside its image, or in `labels` where the image is in
    `images`. Names of folders may be in any case, and paths of data.yaml those of another machine.

    Args:
        splits: the names of each split.
    """
    settings, source = _settings(root)
    base = _parts(str(settings.get("path") or ""))
    found: _Found = {}
    for split, names in splits.items():
        given = [_parts(value) for name in names for value in _as_list(settings.get(name))]
        # Roboflow writes ../train/images for what is in train/images; "images" alone tells nothing of the split.
        rest = [parts[first:] for parts in given for first in range(1, len(parts))]
        known = [*(base + parts for parts in given), *given, *(parts for parts in rest if parts != ["images"])]
        usual = ("images/{}", "{}/images", "images/{}2017", "{}", *(("{}.txt",) if source else ()))
        known += [place.format(name).split("/") for name in names for place in usual]
        places = [in_any_case(root, parts) for parts in known]
        images = next((files for place in places if (files := _images(place, root))), [])
        if any(map(_is_labeled, images)):
            found[split] = _part(root, source, settings, images)
    if not found:
        main = [*_images(root / "images", root), *sorted(filter(is_image, root.iterdir()))]
        everywhere = _images(root, root) if source else []  # the names of the classes are in this folder
        images = next((files for files in (main, everywhere) if any(map(_is_labeled, files))), main)
        if any(map(_is_labeled, images)):  # names of classes alone may be those of Pascal VOC's files
            found["train"] = _part(root, source, settings, images)
    return found


def _part(root: Path, source: Path | None, settings: Mapping[str, Any], images: list[Path]) -> Any:
    names = settings.get("names")
    keypoints = bool(settings.get("kpt_shape"))

    def read(frame: ImageFrame) -> tuple[dict[str, Any], list[str]]:
        content = _read(_names(names, source), images, keypoints, frame)
        return content, [image["file_name"] for image in content["images"]]

    return source or root, [root], read


def _names(names: Any, source: Path | None) -> dict[int, str]:
    """The names of the classes by their numbers; none where they are not given."""
    pairs = dict(names if isinstance(names, Mapping) else enumerate(names) if isinstance(names, list) else {})
    good = all(str(label).isdecimal() and isinstance(name, str) for label, name in pairs.items())
    if not good or (names and not pairs):
        raise ValueError(f"{source}: `names` is {str(names)[:80]!r}; it must be a list, or 0: NAME, 1: NAME and so on")
    return {int(label): name for label, name in pairs.items()}


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, without the space around them; some editors of Windows write UTF-16."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is no text in UTF-8; save it as such") from None
    return [line.strip() for line in text.splitlines()]


def _settings(root: Path) -> tuple[Mapping[str, Any], Path | None]:
    """Content and path of data.yaml, or names of classes from a text file; nothing where there is neither."""
    for file in sorted((*root.glob("*.yaml"), *root.glob("*.yml")), key=lambda file: (file.stem != "data", file)):
        try:
            content = yaml.BaseLoader(file.read_bytes()).get_single_data()  # all texts: a class may be called "no"
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            if file.stem not in ("data", "dataset"):
                continue
            raise ValueError(f"{file}: is no YAML ({' '.join(str(error).split())[:200]}); correct it") from None
        if isinstance(content, Mapping) and ("names" in content or "nc" in content):
            return content, file
    for file in (root / "classes.txt", root / "obj.names", root / "labels" / "classes.txt"):
        if file.is_file():
            return {"names": [line for line in read_lines(file) if line]}, file
    return {}, None


def _as_list(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)] if value else []


def is_image(path: Path) -> bool:
    """Whether a file is a picture by its name, and not what macOS writes beside each."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _images(place: Path, root: Path) -> list[Path]:
    """Images of a folder and those below, or of a text file that lists them."""
    if place.suffix == ".txt" and place.is_file():
        return [_inside(root, line) for line in read_lines(place) if line]
    return sorted(filter(is_image, place.rglob("*"))) if place.is_dir() else []


def _parts(path: str) -> list[str]:
    """The names that a path consists of, without what leads out of a folder."""
    return [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", "..")]


def in_any_case(root: Path, names: Sequence[str]) -> Path:
    """The file or folder root/NAME/NAME/..., of which any name may be in another case."""
    for name in names:
        if not (root / name).exists() and root.is_dir():
            name = min((other for other in os.listdir(root) if other.casefold() == name.casefold()), default=name)
        root = root / name
    return root


def _inside(root: Path, path: str) -> Path:
    """A path of a list as one inside the folder: without its first parts, where those are of another machine."""
    parts = _parts(path)
    files = [root.joinpath(*parts[first:]) for first in range(len(parts))]
    return next((file for file in files if file.is_file()), files[0] if files else root)


def _is_labeled(image: Path) -> bool:
    return _label_file(image).is_file()


def _label_file(image: Path) -> Path:
    """Of images/train/a.jpg it is labels/train/a.txt, the last "images" replaced; else a.txt beside it."""
    cut = str(image).lower().rfind(f"{os.sep}images{os.sep}")
    head, tail = str(image)[: cut + 1], str(image)[cut + len("/images/") :]
    places = [Path(head, labels, tail) for labels in ("labels", "Labels", "LABELS") if cut >= 0]
    for place in (*places, image):
        name = f"{place.stem}.txt"
        for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
            if place.with_name(form).is_file():
                return place.with_name(form)
    return image.with_suffix(".txt")


def _warn_of_lost_images(images: Sequence[Path]) -> None:
    """Say how many label files have no image beside the others."""
    lost: list[Path] = []
    for labels, folder in sorted({(_label_file(image).parent, image.parent) for image in images}):
        present = {file.stem for file in folder.iterdir() if is_image(file)} if folder.is_dir() else set()
        if labels.is_dir() and labels != folder:
            lost += [file for file in sorted(labels.glob("[!.]*.txt")) if file.stem not in present | {"classes"}]
    if lost:
        logger.warning("%d label files have no image and are left out, such as %s", len(lost), lost[0])


def _read(known: Mapping[int, str], images: Sequence[Path], keypoints: bool, frame: ImageFrame) -> dict[str, Any]:
    """The content as COCO instances, in pixels of images that are read in this frame."""
    _warn_of_lost_images(images)
    records: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    unknown = ""
    for image in images:
        try:
            height, width = image_size({"image": image, "image_frame": frame})
        except ValueError as error:  # its boxes are fractions of nobody knows what
            logger.warning("left out: %s", error)
            continue
        file = _label_file(image)
        for place, line in enumerate(read_lines(file) if file.is_file() else [], 1):
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
    return {"images": sizes, "annotations": records, "categories": categories}


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
