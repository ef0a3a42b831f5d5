"""The one way to read a split as a table, wherever it comes from."""

from collections.abc import Mapping

from .coco import AnyPath, load_coco_folder
from .rows import DetectionDataset
from .tables import is_objects_source, load_objects_dataset


def load_detection_dataset(
    path: AnyPath,
    split: str = "train",
    *,
    annotations: AnyPath | None = None,
    images: AnyPath | None = None,
    id2label: Mapping[int, str] | None = None,
    boxless: bool = False,
) -> DetectionDataset:
    """Read one split of a COCO-format folder, or of a data set with an `objects` column.

    A folder with `annotations/` is COCO. One that `datasets` wrote (`save_to_disk`), with parquet files or with the
    metadata.jsonl of an imagefolder, and a `path` that is no folder but may be a Hub id, are read as
    `drmm_hf.data.tables.load_objects_dataset` says. The rest is about COCO folders.

    The json is `annotations/instances_{split}.json` or `..._{split}2017.json`; the images are in
    `images/{split}2017/`, `{split}2017/`, `images/{split}/`, `{split}/` or `images/`. Nothing is written to
    disk and no image is decoded.

    Labels are 0..C-1 in ascending order of the category id, or, with `id2label`, those of the equal names.

    Dirt in the boxes is repaired by fixed rules and counted in `.report` (and in one line of the log, where a
    box was changed): a box partly outside its image is clipped; one wholly outside, or with a side of at most
    1e-3 px, is dropped. Crowd boxes are kept with `iscrowd=1`: training transforms drop them, and evaluation
    reads the json itself. Images without boxes are kept. Whole numbers such as 640.0, and texts of digits as ids, are
    taken for the integers that they are.

    Args:
        path: the data set's folder, or a Hub id.
        split: name of the split.
        annotations, images: the json file and the image folder, where they are elsewhere; relative to the
            working directory or to `path`.
        id2label: labels 0..C-1 and names of an existing model, to evaluate or fine-tune it. Every category of
            the json must be in it; it may have more.
        boxless: accept a json with images and categories but without `annotations`, as of COCO's test sets.

    Raises:
        FileNotFoundError: the folder (and the Hub data set), the json or an image is missing.
        ValueError: the json is not COCO, holds values that cannot be right, or does not fit `id2label`.
    """
    if annotations is None and images is None and is_objects_source(path):
        return load_objects_dataset(path, split, id2label=id2label)
    return load_coco_folder(path, split, annotations, images, id2label, boxless)
