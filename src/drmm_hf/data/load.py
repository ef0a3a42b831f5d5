"""The one way to read a split as a table, wherever it comes from."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .coco import load_part
from .images import ImageFrame
from .layouts import coco_part, find_parts
from .rows import DetectionDataset
from .splits import AnyPath, Part, Portion, choose_split, usual_name
from .tables import is_objects_source, load_splits, objects_dataset

logger = logging.getLogger(__name__)


def load_detection_dataset(
    path: AnyPath,
    split: str = "train",
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    id2label: Mapping[int, str] | None = None,
    validation_share: float = 0.0,
    image_frame: ImageFrame = "upright",
) -> DetectionDataset:
    """Read one split of a data set as the usual tools write it. No image is decoded.

    Which folders and files are known is in docs/train.md: COCO in the forms of many tools, YOLO, Pascal VOC, and what
    `datasets` reads (saved, parquet, imagefolder, or a Hub id) with the columns that `objects_dataset` says. "val",
    "valid" and "validation" are the same split.

    Labels are 0..C-1 in ascending order of the category id, or, with `id2label`, those of the equal names. Boxes are
    cleaned by fixed rules and counted in `.report`: one partly outside its image is clipped; one wholly outside, or
    with a side of at most 1e-3 px, is dropped. Crowd boxes are kept with `iscrowd=1`, and images without boxes, too.
    Whole numbers such as 640.0 are integers, and so are texts of digits as ids. Missing are taken from elsewhere: the
    size of an image from its file, a box from its polygons.

    Args:
        path: the data set's folder, or a Hub id.
        split: name of the split.
        annotations, images: the COCO json and the image folder, where they are elsewhere; relative to the
            working directory or to `path`.
        id2label: labels 0..C-1 and names of an existing model, to evaluate or fine-tune it. Every category with boxes
            must be in it; it may have more.
        validation_share: share of the training images that is held out where there is no split for validation: "val"
            gives these and "train" the others, if both calls have the same share. The commands' is 0.15.
        image_frame: see `ImageFrame`; boxes and sizes are in these pixels, but sizes may be the stored ones all the
            same. The log says how many images have an EXIF orientation.

    Raises:
        FileNotFoundError: the folder (and the Hub data set), the json or an image is missing.
        ValueError: the files are of no known format, hold values that cannot be right, or do not fit `id2label`.
    """

    if annotations is None and images is None and is_objects_source(path):
        splits = load_splits(path)
        found, portion = choose_split(splits, split, validation_share, str(path))
        dataset = objects_dataset(
            splits[found], id2label=id2label, name=f"{path} ({found})", portion=portion, image_frame=image_frame
        )
    else:
        part, portion = find_part(path, split, annotations, images, validation_share)
        dataset = load_part(part, id2label, portion, image_frame)
    logger.info("%s: %s, %d images of the split %r", path, dataset.kind, len(dataset), split)
    return dataset


def find_part(
    path: AnyPath,
    split: str,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    validation_share: float = 0.0,
) -> tuple[Part, Portion | None]:
    """Where a split of a folder is, and which portion of it is meant, as `choose_split` has it.

    Args:
        path, split, annotations, images, validation_share: as in `load_detection_dataset`.
    """
    root = Path(path).expanduser().absolute()
    if annotations is not None:
        candidates = [Path(annotations).expanduser().absolute(), root / annotations]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{candidates[0]}: no such annotation file; correct --annotations")
        part, portion = coco_part(root, usual_name(split), file), None
    else:
        parts = find_parts(root)
        found, portion = choose_split(parts, split, validation_share, str(path))
        part = parts[found]
    if images is not None:
        part = replace(part, images=[*dict.fromkeys((Path(images).expanduser().absolute(), root / images))])
    return part, portion


def find_ground_truth(path: AnyPath, split: str, annotations: AnyPath | None = None, **options: Any) -> Path:
    """The COCO json of a split; its images need not be there where the data have one.

    Args:
        path, split, annotations, options: as in `load_detection_dataset`.
    """
    if annotations is not None or not is_objects_source(path):
        part, portion = find_part(path, split, annotations, validation_share=options.get("validation_share", 0.0))
        if part.annotations.suffix == ".json" and portion is None:
            return part.annotations
    return load_detection_dataset(path, split, annotations=annotations, **options).annotations_path
