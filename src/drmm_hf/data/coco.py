"""COCO instances as columns and rows, and rows back to a json."""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher

from ..annotations import Records
from ..configuration_drmm import shown
from ..files import collection_paused, to_json, write_text
from .images import ImageFrame, image_size
from .layouts import shorten
from .rows import OBJECT_FIELDS, Annotations, DetectionDataset, build_detection_dataset, image_sizes
from .splits import Part, Portion

logger = logging.getLogger(__name__)

_BATCH = 1000
_SHOWN = 3


@collection_paused()
def load_part(
    part: Part, id2label: Mapping[int, str] | None, portion: Portion | None, image_frame: ImageFrame
) -> DetectionDataset:
    """Read one split of a folder, as `load_detection_dataset` says."""
    source = str(part.annotations)
    content, pictures = part.read(image_frame)
    sections = read_sections(content, source)
    images_dir = part.images[0]
    if pictures is None:
        names = sections["images"].texts("file_name")
        sections["images"].require(["\0" not in name for name in names], "file_name", "a path")
        images_dir, pictures = locate_images(part, names)
    columns = read_coco(sections, source, pictures, image_frame)
    paths = pa.array(pictures, type=pa.string())
    files = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], names=["bytes", "path"])
    image = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = build_detection_dataset(
        columns,
        id2label,
        pictures=datasets.Dataset.from_dict({"image": files}, features=image),
        annotations_path=part.annotations,
        images_dir=images_dir,
        kind=f"{part.kind}, {part.annotations}",
        portion=portion,
        image_frame=image_frame,
    )
    own = part.annotations.suffix == ".json" and portion is None
    if own and dataset.report.turned_images:  # where the file has their stored sizes
        own = dataset.dataset["width"][:] == columns.widths.tolist()
    return dataset if own else with_ground_truth(dataset, f"{part.annotations.parent.name}-{part.annotations.stem}")


def locate_images(part: Part, names: Sequence[str]) -> tuple[Path, list[str]]:
    """The image folder of a split and the path of every image, none of them outside the folders of the split.

    Names that are not there as they stand may be written in another way: with backslashes, with %20 for a space, in
    another Unicode form or case, or with other folders before the file. One that leads out of the folders (it is
    absolute, has a drive or ..) is never read as it stands.

    Raises:
        FileNotFoundError: there is no folder, or images are missing: how many, and the first few.
    """
    existing = [folder for folder in part.images if folder.is_dir()]
    if not existing:
        looked = shorten([str(folder) for folder in part.images], 8)
        raise FileNotFoundError(f"{part.annotations}: no image folder (looked for {looked}); give it as --images")
    first = names[:_SHOWN]
    folder = next((folder for folder in existing if any((folder / name).is_file() for name in first)), existing[0])
    written = [PureWindowsPath(name) for name in names]  # which splits on both kinds of slash
    outside = [bool(path.anchor) or ".." in path.parts for path in written]
    wanted = [None if out else os.path.join(folder, name) for name, out in zip(names, outside, strict=True)]
    paths = [path if path is not None and os.path.isfile(path) else None for path in wanted]
    if None in paths:
        similar = _files_by_name(existing)
        guesses = [path or _similar(name, similar) for path, name in zip(paths, names, strict=True)]
        often = Counter(guess for guess, _ in set(zip(guesses, names, strict=True)))  # of two names neither is it
        paths = [path or (guess if often[guess] == 1 else None) for path, guess in zip(paths, guesses, strict=True)]
    missing = [f"images[{index}].file_name {names[index]!r}" for index, path in enumerate(paths) if path is None]
    if missing:
        raise FileNotFoundError(
            f"{part.annotations}: {len(missing)} of {len(names)} images are missing in {folder}, or may be several "
            f"files: {shorten(missing, _SHOWN)}; restore or correct them, or give their folder as --images"
        )
    if any(outside):
        logger.warning(
            "%s: %d of %d file names lead out of the image folder, such as %r; files of the same names in it are taken",
            *(part.annotations, sum(outside), len(names), names[outside.index(True)]),
        )
    return folder, [path for path in paths if path is not None]


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


def read_sections(content: Any, source: str) -> dict[str, Records]:
    """`images`, `annotations` and `categories` of the content of a COCO instances file.

    Args:
        source: what messages call the file.

    Raises:
        ValueError: it is no COCO instances file.
    """
    if not isinstance(content, Mapping):
        results = isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]
        what = "looks like a file of detection results" if results else f"holds a {type(content).__name__}"
        raise ValueError(f"{source}: {what}, not COCO annotations; give the instances file")
    sections = {}
    for name in ("images", "annotations", "categories"):
        records = content.get(name)
        if not isinstance(records, list) or not (records or name == "annotations"):
            raise ValueError(f"{source}: `{name}` is missing, empty or no list; a COCO instances file has this list")
        sections[name] = Records(records, f"{source}: {name}")
    return sections


def read_coco(
    sections: Mapping[str, Records], source: str, pictures: Sequence[str], image_frame: ImageFrame = "upright"
) -> Annotations:
    """The sections of a COCO instances file as columns, categories in the order of their ids.

    Args:
        source: what messages call the file.
        pictures, image_frame: path of every image and how it is read, for the sizes that the file does not give.

    Raises:
        ValueError: a value cannot be right.
    """
    images, records, categories = sections["images"], sections["annotations"], real_categories(sections, source)
    if len(categories) < len(sections["categories"]):
        left_out = [shown(record) for record in sections["categories"].records if record not in categories.records]
        logger.warning("%s: categories without boxes that are no classes are left out: %s", source, ", ".join(left_out))
    image_ids, category_ids = images.ids(), sorted(categories.ids())
    names = dict(zip(categories.ids(), categories.texts("name"), strict=True))
    categories.require_different(list(names.values()), "name")
    widths, heights = image_sizes(
        images, lambda index: image_size({"image": pictures[index], "image_frame": image_frame})
    )
    return Annotations(
        source=source,
        image_ids=np.array(image_ids, dtype=np.int64),
        widths=widths,
        heights=heights,
        category_ids=category_ids,
        category_names=[names[category_id] for category_id in category_ids],
        ids=records.ids_or_numbers("id")[0]
        if not any(records.values("id"))
        else np.array(records.ids(), dtype=np.int64),
        image_index=records.positions("image_id", image_ids, "the id of one of `images`"),
        category_index=records.positions("category_id", category_ids, "the id of one of `categories`"),
        boxes=records.boxes(),
        areas=records.areas(),
        is_crowd=records.flags("iscrowd"),
    )


def real_categories(sections: Mapping[str, Records], source: str) -> Records:
    """The categories without those that are no classes: tools write a root of all others, or a class twice.

    Left out is a category without boxes that is the `supercategory` of another, has the name of another, is the first
    that Roboflow writes, with id 0, or labelme's `_background_`.
    """
    categories = sections["categories"]
    ids = categories.ids(texts=True)
    used = set(sections["annotations"].positions("category_id", ids, "the id of one of `categories`").tolist())
    above, names = Counter(map(str, categories.values("supercategory"))), Counter(map(str, categories.values("name")))
    real = []
    for index, record in enumerate(categories.records):
        name = str(record.get("name"))
        own = name == str(record.get("supercategory"))
        root = source.endswith("_annotations.coco.json") and ids[index] == 0 and len(ids) > 1
        root |= name in ("_background_", "__ignore__")
        if index in used or "name" not in record or not (root or above[name] > own or names[name] > 1):
            real.append(record)
        else:
            names[name] -= 1
    return Records(real, categories.where)


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
