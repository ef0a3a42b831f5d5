"""What a row of a detection data set is, and how the columns of a split become rows: cleaned and labeled once."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ..annotations import ARE_THEY_CORNERS, CLIP_TOLERANCE, MIN_SIDE, Records, clean_boxes, frame_problem
from ..configuration_drmm import class_names
from .images import ImageFrame, ImageHeader, Size, read_header
from .splits import Portion

logger = logging.getLogger(__name__)

_SAMPLE = 200
"""The headers of so many images tell whether there are EXIF orientations."""
OBJECT_FIELDS = ("id", "bbox", "category", "area", "iscrowd")
MAX_SIDE = 2**31
PIXELS = "a positive number of pixels"


@dataclass(frozen=True)
class DatasetReport:
    """What is in a split and what was changed while reading it. All are counts.

    `images` are all of the split, `boxes` those kept, crowd included; `boxless_images` have no box left to train on
    (crowd does not count); `clipped_boxes` are kept and stuck out by more than 0.05 px; `dropped_zero_area` had no area
    in the file; `dropped_outside` lie wholly outside their image; `turned_images` have an EXIF orientation, and
    the boxes of `misfit_images` of these leave their image, but would not if that was not turned (or was).
    """

    images: int = 0
    boxes: int = 0
    crowd: int = 0
    boxless_images: int = 0
    clipped_boxes: int = 0
    dropped_zero_area: int = 0
    dropped_outside: int = 0
    turned_images: int = 0
    misfit_images: int = 0

    def __add__(self, other: "DatasetReport") -> "DatasetReport":
        return DatasetReport(*(own + more for own, more in zip(astuple(self), astuple(other), strict=True)))

    @property
    def changed_boxes(self) -> int:
        """Number of boxes that were clipped or dropped."""
        return self.clipped_boxes + self.dropped_zero_area + self.dropped_outside

    @property
    def most_leave(self) -> bool:
        """Whether more than half of all boxes stick out of their image, as corners read as sides do."""
        leaving = self.clipped_boxes + self.dropped_outside
        return 2 * leaving > self.boxes + self.dropped_outside


@dataclass(frozen=True)
class DetectionDataset:
    """One split of a detection data set.

    `dataset` has one row an image: `image` (`datasets.Image(decode=False)`: the path or the bytes; decode with
    `drmm_hf.data.decode_image`), `image_id` int64, `width` and `height` int32 (pixels), and `objects`, a dict of lists
    in file order: `id` int64, `bbox` float32 `[x, y, width, height]` in pixels of the image, `category` (ClassLabel,
    the contiguous label), `area` float32 (px², as in the file; that of the box where the file has none) and `iscrowd`
    int8.

    All pixels are those of the image in its `image_frame`, which rows have as a column where it is not `"upright"`.
    `kind` says what it was read from; `id2label` and `label2id` are those for a model's configuration; `report` says
    what was changed while reading. `category_ids[label]` is the category id of the json, or -1 for a label (of a given
    `id2label`) it does not have. Data sets that do not come as COCO, and shares of a split, have a json too, made of
    the cleaned boxes, at `annotations_path` in the cache folder.
    """

    dataset: datasets.Dataset
    id2label: dict[int, str]
    label2id: dict[str, int]
    category_ids: list[int]
    annotations_path: Path
    images_dir: Path
    report: DatasetReport
    kind: str = ""
    image_frame: ImageFrame = "upright"

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Annotations:
    """Columns of one split, which messages call `source`: I images, C categories, M annotations in file order.

    `image_index` (M,) and `category_index` (M,) point into the images and categories; `boxes` (M, 4) are
    `[x, y, width, height]` in pixels of the image, as in the file; `areas` (M,) is NaN where not given.
    """

    source: str
    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    category_ids: Sequence[int]
    category_names: Sequence[str]
    ids: np.ndarray
    image_index: np.ndarray
    category_index: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray

    def select(self, images: np.ndarray) -> "Annotations":
        """Those of some images, which come in the order of these places among the images."""
        place = np.full(len(self.image_ids), -1)
        place[images] = np.arange(len(images))
        kept = place[self.image_index] >= 0
        of_boxes = ("ids", "image_index", "category_index", "boxes", "areas", "is_crowd")
        columns = {name: getattr(self, name)[kept] for name in of_boxes}
        columns |= {name: getattr(self, name)[images] for name in ("image_ids", "widths", "heights")}
        return replace(self, **{**columns, "image_index": place[columns["image_index"]]})

    def clean(self, labels: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray], DatasetReport]:
        """The boxes that are kept, by image.

        Args:
            labels: names of the labels 0, 1, ...; those of all categories with boxes are among them.

        Returns:
            number of boxes of each image (I,); for each of `OBJECT_FIELDS` an array of the kept boxes, those of an
            image together in file order; and the counts.
        """
        widths, heights = self.widths[self.image_index], self.heights[self.image_index]
        boxes, keep, moved = clean_boxes(self.boxes, widths, heights)
        no_area = ~keep & (self.boxes[:, 2:] <= MIN_SIDE).any(axis=1)
        report = DatasetReport(
            images=len(self.image_ids),
            boxes=int(keep.sum()),
            crowd=int((keep & self.is_crowd).sum()),
            boxless_images=len(self.image_ids) - len(np.unique(self.image_index[keep & ~self.is_crowd])),
            clipped_boxes=int((keep & moved).sum()),
            dropped_zero_area=int(no_area.sum()),
            dropped_outside=int((~keep & ~no_area).sum()),
        )
        kept = np.flatnonzero(keep)
        kept = kept[np.argsort(self.image_index[kept], kind="stable")]
        boxes, areas = boxes[kept].astype(np.float32), self.areas[kept]
        label_of_name = {name: label for label, name in enumerate(labels)}
        label_of_category = np.array([label_of_name.get(name, -1) for name in self.category_names], dtype=np.int64)
        objects = {
            "id": self.ids[kept],
            "bbox": boxes,
            "category": label_of_category[self.category_index[kept]],
            "area": np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas).astype(np.float32),
            "iscrowd": self.is_crowd[kept].astype(np.int8),
        }
        return np.bincount(self.image_index[kept], minlength=len(self.image_ids)), objects, report


def image_sizes(images: Records, size_of: Callable[[int], Size]) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights (I,) of images in pixels.

    Args:
        images: with the fields `width` and `height`.
        size_of: the (height, width) of the image of an index, for those that are not given.
    """
    sizes = [{"width": record.get("width"), "height": record.get("height")} for record in images.records]
    for index, size in enumerate(sizes):
        if any(side in (None, 0) or side != side for side in size.values()):  # tools that do not know it write 0
            try:
                size["height"], size["width"] = size_of(index)
            except (OSError, ValueError) as error:
                raise type(error)(f"{images.where(index)}: {error}") from error
    given = Records(sizes, images.where)
    return given.integers("width", PIXELS, 1, MAX_SIDE), given.integers("height", PIXELS, 1, MAX_SIDE)


def build_detection_dataset(
    annotations: Annotations,
    id2label: Mapping[int, str] | None,
    *,
    pictures: datasets.Dataset,
    annotations_path: Path,
    images_dir: Path,
    kind: str,
    portion: Portion | None = None,
    image_frame: ImageFrame = "upright",
) -> DetectionDataset:
    """Clean and label annotations.

    Args:
        id2label: labels of an existing model; None for those of the data.
        pictures: the one column `image`, not decoded.
        portion: which of the images; None for all.
        image_frame: that of the boxes, and so of the images.

    Raises:
        ValueError: the boxes are no pixels, or the categories do not fit `id2label`.
    """
    source, of = annotations.source, annotations.image_index
    annotations, turned, misfit = _in_frame(annotations, pictures, image_frame)
    if problem := frame_problem(annotations.boxes, annotations.widths[of], annotations.heights[of]):
        raise ValueError(f"{source}: {problem}")
    if portion is not None:
        chosen = portion.indices(len(annotations.image_ids), source)
        annotations, turned, misfit = annotations.select(chosen), turned[chosen], misfit[chosen]
        pictures = pictures.select(chosen)
    labels = list(annotations.category_names) if id2label is None else ordered_labels(id2label)
    used = set(annotations.category_index.tolist())
    check_known([name for index, name in enumerate(annotations.category_names) if index in used], labels, source)
    counts, objects, report = annotations.clean(labels)
    report = replace(report, turned_images=int(turned.sum()), misfit_images=int(misfit.sum()))
    if report.turned_images:
        logger.warning("%s: %s", source, turned_notice(report, image_frame))
    if report.changed_boxes or not report.boxes:
        logger.warning(
            "%s: %d boxes clipped to their image, %d without area and %d wholly outside dropped; %s in %d images%s",
            *(source, report.clipped_boxes, report.dropped_zero_area, report.dropped_outside),
            *(f"{report.boxes} boxes left" if report.boxes else "no box at all", report.images),
            f". {ARE_THEY_CORNERS}" if report.most_leave else "",
        )
    id_of = dict(zip(annotations.category_names, annotations.category_ids, strict=True))
    return DetectionDataset(
        dataset=_as_dataset(annotations, counts, objects, labels, pictures, image_frame),
        id2label=dict(enumerate(labels)),
        label2id={name: label for label, name in enumerate(labels)},
        category_ids=[id_of.get(name, -1) for name in labels],
        annotations_path=annotations_path,
        images_dir=images_dir,
        report=report,
        kind=kind,
        image_frame=image_frame,
    )


def turned_notice(report: DatasetReport, image_frame: ImageFrame) -> str:
    """What is said of images with an EXIF orientation."""
    how, other = ("upright", "stored") if image_frame == "upright" else ("as they are stored", "upright")
    misfit = f" (but in {report.misfit_images} images they only fit the other way)" if report.misfit_images else ""
    return (
        f"{report.turned_images} of {report.images} images have an EXIF orientation; they are read {how}, and their "
        f"boxes are taken to be drawn so{misfit}. If they are not: --image-frame {other}"
    )


def _in_frame(
    annotations: Annotations, pictures: datasets.Dataset, image_frame: ImageFrame
) -> tuple[Annotations, np.ndarray, np.ndarray]:
    """Annotations with the sizes that images have in their frame.

    Headers are read of a sample, of images that a box leaves, and, where one of them is turned, of all.

    Returns:
        The annotations; which images (I,) have an EXIF orientation; and of which (I,) the boxes only fit the other way.
    """
    index, number = annotations.image_index, len(annotations.image_ids)
    widths, heights = annotations.widths.copy(), annotations.heights.copy()
    ends = annotations.boxes[:, :2] + annotations.boxes[:, 2:] - CLIP_TOLERANCE

    def left(widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """Which images (I,) a box leaves."""
        outside = (ends > np.stack([widths[index], heights[index]], axis=1)).any(axis=1)
        return np.bincount(index[outside], minlength=number) > 0

    headers: dict[int, ImageHeader] = {}

    def look(places: np.ndarray) -> bool:
        for place in set(places.tolist()) - set(headers):
            with contextlib.suppress(OSError, ValueError):  # what decodes the image will say why
                headers[place] = read_header(pictures[place])
        return any(header.turned for header in headers.values())

    sample = np.linspace(0, number - 1, min(number, _SAMPLE)).astype(int)
    if look(np.concatenate([sample, np.flatnonzero(left(widths, heights))])):
        look(np.arange(number))
    turned, across = np.zeros((2, number), dtype=bool)
    for place, header in headers.items():
        turned[place], across[place] = header.turned, header.upright != header.stored
        if image_frame == "upright" and (heights[place], widths[place]) == header.stored:
            heights[place], widths[place] = header.upright
    misfit = across & left(widths, heights) & ~left(heights, widths)
    return replace(annotations, widths=widths, heights=heights), turned, misfit


def check_known(names: Sequence[str], labels: Sequence[str], source: str) -> None:
    """Refuse data with classes that a model does not have."""
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise ValueError(
            f"{source}: the category names {unknown[:10]} ({len(unknown)} of {len(names)}) are not in id2label "
            f"{list(labels[:10])}, the classes of the model; rename the categories, or take a model of these classes"
        )


def ordered_labels(id2label: Mapping[Any, str]) -> list[str]:
    """Names of labels 0..C-1, of which repeated ones get their number; ValueError if the keys are others.

    Detectors of COCO's 91 ids call those that were never given "N/A".
    """
    names = list(class_names(id2label).values())
    return [f"{name} ({label})" if name in names[:label] else name for label, name in enumerate(names)]


def row_features(labels: Sequence[str]) -> datasets.Features:
    """The types of a row's columns."""
    return datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "image_id": datasets.Value("int64"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(labels))),
                "area": datasets.List(datasets.Value("float32")),
                "iscrowd": datasets.List(datasets.Value("int8")),
            },
        }
    )


def _as_dataset(
    annotations: Annotations,
    counts: np.ndarray,
    objects: Mapping[str, np.ndarray],
    labels: Sequence[str],
    pictures: datasets.Dataset,
    image_frame: ImageFrame,
) -> datasets.Dataset:
    """Assemble the Arrow columns without a Python object per box."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), type=pa.int32())
    flat = {name: pa.array(values.reshape(-1)) for name, values in objects.items()}
    flat["bbox"] = pa.FixedSizeListArray.from_arrays(flat["bbox"], 4)
    lists = [pa.ListArray.from_arrays(offsets, values) for values in flat.values()]
    columns = {
        "image_id": pa.array(annotations.image_ids),
        "width": pa.array(annotations.widths.astype(np.int32)),
        "height": pa.array(annotations.heights.astype(np.int32)),
        "objects": pa.StructArray.from_arrays(lists, names=list(flat)),
    }
    features = row_features(labels)
    if image_frame != "upright":
        columns["image_frame"] = pa.array([image_frame] * len(counts))
        features["image_frame"] = datasets.Value("string")
    del features["image"]
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one of "Flattening the indices" where a portion of the pictures was chosen
    try:
        return datasets.concatenate_datasets([pictures, datasets.Dataset.from_dict(columns, features=features)], axis=1)
    finally:
        if shown:
            datasets.enable_progress_bars()
