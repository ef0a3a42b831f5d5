"""YOLO folders: data.yaml, images, and for each a text file of class and box as fractions of the image."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
    `images`.

    Args:
        splits: the names of each split.
    """
    settings, source = _settings(root)
    base = root / str(settings.get("path") or "")
    found: _Found = {}
    for split, names in splits.items():
        given = [value for name in names for value in _as_list(settings.get(name))]
        # Roboflow writes ../train/images for what is in train/images.
        places = [place for value in given for place in (base / value, root / value, root / value.lstrip("./"))]
        places = [place for place in places if Path(os.path.normpath(place)).is_relative_to(root)]
        usual = ("images/{}", "{}/images", "images/{}2017", "{}", "{}.txt")
        places += [root / place.format(name) for name in names for place in usual]
        images = next((files for place in places if (files := _images(place, root))), [])
        if any(map(_is_labeled, images)):
            found[split] = _part(root, source, settings, images)
    if not found:
        main = [*_images(root / "images", root), *sorted(filter(is_image, root.iterdir()))]
        everywhere = _images(root, root) if source else []  # the names of the classes are in this folder
        images = next((files for files in (main, everywhere) if any(map(_is_labeled, files))), main)
        if images and (source or any(map(_is_labeled, images))):
            found["train"] = _part(root, source, settings, images)
    return found


def _part(root: Path, source: Path | None, settings: Mapping[str, Any], images: list[Path]) -> Any:
    names = settings.get("names") or {}
    keypoints = bool(settings.get("kpt_shape"))
    return source or root, [root], lambda frame: (_read(names, images, keypoints, frame), list(map(str, images)))


def _settings(root: Path) -> tuple[Mapping[str, Any], Path | None]:
    """Content and path of data.yaml, or names of classes from a text file; nothing where there is neither."""
    for file in sorted((*root.glob("*.yaml"), *root.glob("*.yml")), key=lambda file: (file.stem != "data", file)):
        try:
            content = yaml.load(file.read_bytes(), yaml.BaseLoader)  # all texts: a class may be called "no"
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file}: is no YAML ({' '.join(str(error).split())[:200]}); correct it") from None
        if isinstance(content, Mapping) and ("names" in content or "nc" in content):
            return {**content, "names": _names(content.get("names"), file)}, file
    for file in (root / "classes.txt", root / "obj.names", root / "labels" / "classes.txt"):
        if file.is_file():
            return {"names": dict(enumerate(filter(None, map(str.strip, read_lines(file)))))}, file
    return {}, None


def _names(value: Any, file: Path) -> dict[int, str]:
    """Names of the classes by their numbers; empty where none are given."""
    pairs = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
    good = all(str(label).isdecimal() and isinstance(name, str) for label, name in pairs.items())
    if not good or (value and not pairs):
        raise ValueError(f"{file}: `names` is {str(value)[:80]!r}; it must be a list, or 0: NAME, 1: NAME and so on")
    return {int(label): name for label, name in pairs.items()}


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, which some editors of Windows write in UTF-16."""
    content = file.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: is no text in UTF-8 ({error.reason} at byte {error.start}); save it as such"
        ) from None


def _as_list(value: Any) -> list[str]:
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)] if value else []


def is_image(path: Path) -> bool:
    """Whether a file is a picture by its name, and not what macOS writes beside each."""
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _images(place: Path, root: Path) -> list[Path]:
    """Images of a folder and those below, or of a text file that lists them."""
    if place.suffix == ".txt" and place.is_file():
        lines = [Path(line.strip().replace("\\", "/")) for line in read_lines(place) if line.strip()]
        files = [_listed(line, root) for line in lines if is_image(line)]
        if outside := [file for file in files if not Path(os.path.normpath(file)).is_relative_to(root)]:
            raise ValueError(f"{place}: {outside[0]} is not in the folder of the data set; correct or remove it")
        return files
    return sorted(filter(is_image, place.rglob("*"))) if place.is_dir() else []


def _listed(line: Path, root: Path) -> Path:
    """The image of a line, which may begin with folders of the machine where it was written (CVAT's `data/`)."""
    parts = line.parts
    tails = [Path(os.path.normpath(root / Path(*parts[start:]))) for start in range(len(parts))]
    return next((file for file in tails if file.is_relative_to(root) and file.is_file()), tails[0])


def _is_labeled(image: Path) -> bool:
    return _label_file(image).is_file()


def _label_file(image: Path) -> Path:
    """Of images/train/a.jpg it is labels/train/a.txt, the last "images" replaced; else a.txt beside it."""
    head, found, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    other = Path(f"{head}{os.sep}labels{os.sep}{tail}").with_suffix(".txt")
    return other if found and other.is_file() else image.with_suffix(".txt")


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
    sizes = []
    for number, image in enumerate(images):
        height, width = image_size({"image": image, "image_frame": frame})
        sizes.append({"id": number, "file_name": str(image), "width": width, "height": height})
        file = _label_file(image)
        lines = read_lines(file) if file.is_file() else []
        for place, line in enumerate(lines, 1):
            if line.strip():
                label, (x, y, w, h) = _label(line.split(), f"{file}, line {place}", keypoints)
                box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                record = {"id": len(records), "image_id": number, "category_id": label, "bbox": box}
                records.append(record)
                if known and label not in known:
                    raise ValueError(f"{file}, line {place}: class {label} is not in `names`, which has {list(known)}")
    highest = max((record["category_id"] for record in records), default=0)
    labels = known or {label: f"class_{label}" for label in range(highest + 1)}
    categories = [{"id": label, "name": name} for label, name in labels.items()]
    return {"images": sizes, "annotations": records, "categories": categories}


def _label(words: Sequence[str], place: str, keypoints: bool) -> tuple[int, tuple[float, float, float, float]]:
    """Class and normalized (center x, center y, width, height) of a line: a box, or a polygon of at least 3 points."""
    try:
        label, values = int(float(words[0])), [float(word) for word in words[1:]]
        fractions = len(values) >= 4 and all(-0.5 <= value <= 1.5 for value in values[: 4 if keypoints else None])
    except (ValueError, OverflowError):
        fractions = False
    if not fractions or label < 0 or not (keypoints or len(values) in (4, 5) or len(values) % 2 == 0):
        raise ValueError(
            f"{place} is {' '.join(words)[:80]!r}; it must be the number of a class and center x, center y, width and "
            "height as fractions of the image (or the corners of a polygon)"
        )
    if keypoints or len(values) < 6:
        return label, (values[0], values[1], values[2], values[3])
    xs, ys = values[::2], values[1::2]
    return label, ((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys))
