"""COCO-format folders: where their files are, the json as columns, and rows back to a json."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets.fingerprint import Hasher

from ..annotations import Records
from ..files import collection_paused, read_json, to_json, write_text
from .images import read_header
from .rows import OBJECT_FIELDS, Annotations, DetectionDataset, build_detection_dataset, image_sizes

AnyPath = str | PathLike[str]
_SHOWN = 3
_BATCH = 1000


@collection_paused()
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
    source = str(annotations_path)
    sections = read_sections(read_json(annotations_path), source, boxless=boxless)
    file_names = _file_names(sections["images"])
    images_dir = find_images_dir(path, split, images, file_names)
    check_images_exist(images_dir, file_names, annotations_path)
    pictures = [str(images_dir / name) for name in file_names]
    return build_detection_dataset(
        read_coco(sections, source, pictures),
        id2label,
        pictures=pictures,
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


def read_sections(content: Any, source: str, *, boxless: bool = False) -> dict[str, Records]:
    """`images`, `annotations` and `categories` of the content of a COCO instances file.

    Args:
        source: what messages call the file.
        boxless: accept one without `annotations`, such as COCO's image_info_test-dev2017.json.

    Raises:
        ValueError: it is no COCO instances file.
    """
    if not isinstance(content, Mapping):
        results = isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]
        what = "looks like a file of detection results" if results else f"holds a {type(content).__name__}"
        raise ValueError(f"{source}: {what}, not COCO annotations; give the instances file")
    sections = {}
    for name in ("images", "annotations", "categories"):
        records = content.get(name, [] if name == "annotations" and boxless else None)
        if not isinstance(records, list) or not (records or name == "annotations"):
            raise ValueError(f"{source}: `{name}` is missing, empty or no list; a COCO instances file has this list")
        sections[name] = Records(records, f"{source}: {name}")
    return sections


def read_coco(sections: Mapping[str, Records], source: str, pictures: Sequence[str]) -> Annotations:
    """The sections of a COCO instances file as columns, categories in the order of their ids.

    Args:
        source: what messages call the file.
        pictures: path of every image, for the sizes that the file does not give.

    Raises:
        ValueError: a value cannot be right.
    """
    images, records, categories = (sections[name] for name in ("images", "annotations", "categories"))
    image_ids, category_ids = images.ids(), sorted(categories.ids())
    names = dict(zip(categories.ids(), categories.texts("name"), strict=True))
    categories.require_different(list(names.values()), "name")
    widths, heights = image_sizes(images, lambda index: read_header({"image": pictures[index]}).upright)
    return Annotations(
        source=source,
        image_ids=np.array(image_ids, dtype=np.int64),
        widths=widths,
        heights=heights,
        category_ids=category_ids,
        category_names=[names[category_id] for category_id in category_ids],
        ids=np.array(records.ids(), dtype=np.int64),
        image_index=records.positions("image_id", image_ids, "the id of one of `images`"),
        category_index=records.positions("category_id", category_ids, "the id of one of `categories`"),
        boxes=records.boxes(),
        areas=records.areas(),
        is_crowd=records.flags("iscrowd"),
    )


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


def with_ground_truth(dataset: DetectionDataset, name: str) -> DetectionDataset:
    """The data set with a COCO json of its own, which is written once to `drmm_hf/` in the cache folder of `datasets`.

    Args:
        name: part of the name of the file.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE).absolute() / "drmm_hf"
    # The fingerprint covers the rows; the ids of the categories are not among them.
    fingerprint = Hasher.hash([dataset.dataset._fingerprint, dataset.category_ids])
    title = re.sub(r"[^\w.-]+", "-", Path(name).name).strip("-.")[-60:]
    path = folder / f"{title or 'dataset'}-{fingerprint}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(coco_ground_truth(dataset)))
    return replace(dataset, annotations_path=path)


def _file_names(images: Records) -> list[str]:
    """The file names; one that points outside the image folder (on any operating system) is refused."""
    names = images.texts("file_name")
    inside = []
    for name in names:
        windows = PureWindowsPath(name)  # splits on both kinds of slash
        outside = PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts
        inside.append(not outside and "\0" not in name)
    images.require(inside, "file_name", "a path inside the image folder, without '..'")
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
