"""COCO-format folders: where their files are, the json as columns, and rows back to a json."""

import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ..configuration_drmm import shown
from ..files import collection_paused, read_json
from .rows import OBJECT_FIELDS, Annotations, Column, DetectionDataset, build_detection_dataset

AnyPath = str | PathLike[str]
_SHOWN = 3
_BATCH = 1000


def load_coco_folder(
    path: AnyPath,
    split: str,
    annotations: AnyPath | None,
    images: AnyPath | None,
    id2label: Mapping[int, str] | None,
    boxless: bool,
) -> DetectionDataset:
    """Read one split of a COCO folder, as `load_detection_dataset` says."""
    annotations_path = find_annotations(path, split, annotations)
    columns, file_names = read_coco(annotations_path, boxless=boxless)
    images_dir = find_images_dir(path, split, images, file_names)
    check_images_exist(images_dir, file_names, annotations_path)
    return build_detection_dataset(
        columns,
        id2label,
        annotations_path,
        pictures=[str(images_dir / name) for name in file_names],
        annotations_path=annotations_path,
        images_dir=images_dir,
    )


def find_annotations(path: AnyPath, split: str, annotations: AnyPath | None = None) -> Path:
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
    """The image folder of a split: the usual one that holds the first images, or else the first that exists.

    Args:
        path, split, images: as in `load_detection_dataset`.
        file_names: of the json.

    Raises:
        FileNotFoundError: there is no such folder.
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
    raise FileNotFoundError(
        f"{annotations_path}: {len(missing)} of {len(file_names)} images are missing in {images_dir}: "
        f"{_shorten(missing, _SHOWN)}; restore the files, correct images[].file_name, or pass the folder as `images=`"
    )


@collection_paused()
def read_coco(path: Path, *, boxless: bool = False) -> tuple[Annotations, list[str]]:
    """A COCO instances file as columns, categories in the order of their ids, and the file names of its images.

    Args:
        boxless: accept a file without `annotations`, such as COCO's image_info_test-dev2017.json.

    Raises:
        ValueError: the file is not JSON, not COCO, or holds a value that cannot be right (boxes are left to cleaning).
    """
    content = _check_sections(read_json(path), path, boxless)
    images = _Records(content["images"], "images", path)
    records = _Records(content.get("annotations", []), "annotations", path)
    categories = _Records(content["categories"], "categories", path)
    image_ids, category_ids = images.column("id").ids(), categories.column("id").ids()
    names = categories.column("name")
    names.check_unique(names.texts())
    order = category_ids.argsort()
    sizes = [images.column(side).integers("a positive number of pixels", 1, 2**31) for side in ("width", "height")]
    columns = Annotations(
        image_ids=image_ids,
        widths=sizes[0],
        heights=sizes[1],
        category_ids=category_ids[order].tolist(),
        category_names=[names.values[index] for index in order],
        ids=records.column("id").ids(),
        image_index=_positions(records.column("image_id"), image_ids, "images"),
        category_index=_positions(records.column("category_id"), category_ids[order], "categories"),
        boxes=records.column("bbox"),
        areas=records.column("area", required=False).areas(),
        is_crowd=records.column("iscrowd", required=False).flags(),
    )
    return columns, _file_names(images.column("file_name"))


def coco_ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """The COCO instances dict of a detection data set, of its cleaned boxes.

    Args:
        dataset: one split, which stays as it is.

    Returns:
        `images` (id, file_name, width, height in pixels), `categories` (id, name: those of the data, not the further
        ones of a given `id2label`) and `annotations` (id, image_id, category_id, bbox `[x, y, width, height]` in pixels
        of the stored image, area in px², iscrowd).
    """
    categories = [
        {"id": category_id, "name": dataset.id2label[label]}
        for category_id, label in sorted(zip(dataset.category_ids, dataset.id2label, strict=True))
        if category_id >= 0
    ]
    images, annotations = [], []
    # In Arrow batches, since rows as Python objects would copy the bytes of every image.
    for batch in dataset.dataset.with_format("arrow").iter(_BATCH):
        paths = pc.struct_field(batch.column("image"), "path").to_pylist()
        rows = batch.select(["image_id", "width", "height", "objects"]).to_pylist()
        for row, path in zip(rows, paths, strict=True):
            image_id = row["image_id"]
            sides = {"width": row["width"], "height": row["height"]}
            images.append({"id": image_id, "file_name": path or str(image_id), **sides})
            fields = (row["objects"][field] for field in OBJECT_FIELDS)
            annotations += [
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": crowd,
                }
                for annotation_id, bbox, label, area, crowd in zip(*fields, strict=True)
            ]
    return {"images": images, "categories": categories, "annotations": annotations}


class _Records:
    """One of the lists of a COCO file."""

    def __init__(self, records: list[Any], section: str, path: Path) -> None:
        self.records, self.section, self.path = records, section, path
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise ValueError(f"{path}: {section}[{index}] is {shown(record)}; it must be an object: correct it")

    def column(self, field: str, required: bool = True) -> Column:
        """A field of all records; None where it may be missing and is."""
        for index, record in enumerate(self.records if required else ()):
            if field not in record:
                raise ValueError(
                    f"{self.path}: {self._place(index, field)} is missing; every one of `{self.section}` needs it"
                )
        values = [record.get(field) for record in self.records]
        return Column(str(self.path), values, lambda index: self._place(index, field))

    def _place(self, index: int, field: str) -> str:
        identity = self.records[index].get("id")
        named = "" if field == "id" or identity is None else f" (id {shown(identity)})"
        return f"{self.section}[{index}].{field}{named}"


def _check_sections(content: Any, path: Path, boxless: bool) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        results = isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]
        what = "looks like a file of detection results" if results else f"holds a {type(content).__name__}"
        raise ValueError(f"{path}: {what}, not COCO annotations; give the instances file")
    for name in ("images", "annotations", "categories"):
        if name not in content:
            if name == "annotations" and boxless:
                continue
            raise ValueError(f"{path}: `{name}` is missing; a COCO instances file must have this list")
        if not isinstance(content[name], list):
            raise ValueError(f"{path}: `{name}` is a {type(content[name]).__name__}; it must be a list of objects")
        if not content[name] and name != "annotations":
            raise ValueError(f"{path}: `{name}` is empty; a data set needs at least one")
    return content


def _positions(column: Column, ids: np.ndarray, section: str) -> np.ndarray:
    """Positions (M,) of the ids that annotations refer to."""
    position = {value: index for index, value in enumerate(ids.tolist())}
    found = [position.get(value) for value in column.ids(unique=False).tolist()]
    unknown = found.count(None)
    column.require([index is not None for index in found], f"the id of one of `{section}` ({unknown} are not)")
    return np.array(found, dtype=np.int64)


def _file_names(column: Column) -> list[str]:
    """The file names; one that points outside the image folder (on any operating system) is refused."""
    names = column.texts()
    inside = []
    for name in names:
        windows = PureWindowsPath(name)  # splits on both kinds of slash
        outside = PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts
        inside.append(not outside and "\0" not in name)
    column.require(inside, "a path inside the image folder, without '..'")
    return names


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
