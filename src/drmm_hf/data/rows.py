"""What a row of a detection data set is, and how fields of files become rows: checked, cleaned and labelled once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import pyarrow as pa

from ..annotations import MIN_SIDE, InvalidBox, clean_boxes
from ..configuration_drmm import shown

logger = logging.getLogger(__name__)

OBJECT_FIELDS = ("id", "bbox", "category", "area", "iscrowd")
_INT64 = 2**63
_MAX_AREA = 1e30  # float32 holds it


@dataclass(frozen=True)
class DatasetReport:
    """What is in a split and what was changed while reading it. All are counts.

    `images` are all of the split, `boxes` those kept, crowd included; `boxless_images` have no box left to train on
    (crowd does not count); `clipped_boxes` are kept and stuck out by more than 0.05 px; `dropped_zero_area` had no area
    in the file; `dropped_outside` lie wholly outside their image.
    """

    images: int
    boxes: int
    crowd: int
    boxless_images: int
    clipped_boxes: int
    dropped_zero_area: int
    dropped_outside: int

    @property
    def changed_boxes(self) -> int:
        """Number of boxes that were clipped or dropped."""
        return self.clipped_boxes + self.dropped_zero_area + self.dropped_outside


@dataclass(frozen=True)
class DetectionDataset:
    """One split of a detection data set.

    `dataset` has one row an image: `image` (`datasets.Image(decode=False)`: the path or the bytes; decode with
    `drmm_hf.data.decode_image`, which does not apply the EXIF rotation that `datasets` would), `image_id`
    int64, `width` and `height` int32 (stored pixels), and `objects`, a dict of lists in file order: `id`
    int64, `bbox` float32 `[x, y, width, height]` in pixels of the stored image, `category` (ClassLabel, the
    contiguous label), `area` float32 (px², as in the file; that of the box where the file has none) and
    `iscrowd` int8.

    `id2label` and `label2id` are those for a model's configuration. `report` says what was changed while reading.
    `category_ids[label]` is the category id of the json, or -1 for a label (of a given `id2label`) it does
    not have. Data sets that do not come as COCO have a json too, made of the cleaned boxes, at `annotations_path` in
    the cache folder; `images_dir` is then that folder and holds no images.
    """

    dataset: datasets.Dataset
    id2label: dict[int, str]
    label2id: dict[str, int]
    category_ids: list[int]
    annotations_path: Path
    images_dir: Path
    report: DatasetReport

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Column:
    """One field of all records as it came; every wrong value of a file becomes a ValueError here.

    `place(index)` says which field of which record of `source` (a file or a data set) a value is.
    """

    source: str
    values: Sequence[Any]
    place: Callable[[int], str]

    def fail(self, index: int, complaint: str) -> NoReturn:
        """Refuse a value for what is wrong with it."""
        raise ValueError(f"{self.source}: {self.place(index)} {complaint}; correct or remove it")

    def require(self, good: Sequence[bool], wanted: str) -> None:
        """Refuse the first value that is not `good`."""
        if not all(good):
            index = list(good).index(False)
            self.fail(index, f"is {shown(self.values[index])}; it must be {wanted}")

    def integers(self, wanted: str = "an integer", least: int = -_INT64, below: int = _INT64) -> np.ndarray:
        """The values as int64; whole numbers such as 640.0 are integers, too."""
        values = self.values
        if not set(map(type, values)) <= {int}:
            values = [_whole_number(value) for value in values]
        self.require([value is not None and least <= value < below for value in values], wanted)
        return np.array(values, dtype=np.int64)

    def ids(self, unique: bool = True) -> np.ndarray:
        """The values as int64, also where they are texts of digits; different ones, if `unique`."""
        values = [int(v) if isinstance(v, str) and v.isascii() and v.isdigit() else v for v in self.values]
        ids = Column(self.source, values, self.place).integers()
        if unique:
            self.check_unique(ids.tolist())
        return ids

    def check_unique(self, values: Sequence[Any]) -> None:
        """Refuse a value that another record has."""
        seen: dict[Any, int] = {}
        for index, value in enumerate(values):
            if seen.setdefault(value, index) != index:
                self.fail(index, f"is {shown(value)}, the same as {self.place(seen[value])}: every one is different")

    def texts(self) -> list[str]:
        """The values as texts, which are not empty."""
        self.require([isinstance(v, str) and bool(v.strip()) for v in self.values], "a text that is not empty")
        return list(self.values)

    def areas(self) -> np.ndarray:
        """The values as float64 px², NaN where there is none."""
        values = [np.nan if value is None else value for value in self.values]
        good = [
            isinstance(v, int | float) and not isinstance(v, bool) and not (v < 0 or v >= _MAX_AREA) for v in values
        ]
        self.require(good, "a number of square pixels, 0 or more")
        return np.array(values, dtype=np.float64)

    def boxes(self) -> np.ndarray | Sequence[Any]:
        """The values as (M, 4) float64 where all are four numbers, which is quicker to clean than lists."""
        try:
            array = np.array(self.values) if len(self.values) else np.zeros((0, 4))
        except (ValueError, OverflowError):
            return self.values
        return array.astype(np.float64) if array.dtype.kind in "iuf" and array.shape[1:] == (4,) else self.values

    def flags(self) -> np.ndarray:
        """The values as int8, 0 where there is none."""
        values = [0 if value is None else value for value in self.values]
        self.require([isinstance(value, bool | int | float) and value in (0, 1) for value in values], "0 or 1")
        return np.array(values, dtype=np.int8)


@dataclass(frozen=True)
class Annotations:
    """Columns of one split: I images, C categories, M annotations in file order.

    `image_index` (M,) and `category_index` (M,) point into the images and categories; `boxes` are M times
    `[x, y, width, height]` in pixels of the stored image, as in the file; `areas` (M,) is NaN where not given.
    """

    image_ids: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    category_ids: Sequence[int]
    category_names: Sequence[str]
    ids: np.ndarray
    image_index: np.ndarray
    category_index: np.ndarray
    boxes: Column
    areas: np.ndarray
    is_crowd: np.ndarray

    def clean(self) -> tuple[np.ndarray, dict[str, np.ndarray], DatasetReport]:
        """The boxes that are kept, by image.

        Returns:
            number of boxes of each image (I,); for each of `OBJECT_FIELDS` an array of the kept boxes, those of an
            image together in file order (`category` is `category_index`); and the counts.
        """
        widths, heights = self.widths[self.image_index], self.heights[self.image_index]
        raw = self.boxes.boxes()
        try:
            boxes, keep, moved = clean_boxes(raw, widths, heights)
        except InvalidBox as error:
            self.boxes.fail(error.index, error.reason)
        sides = np.asarray(raw, dtype=np.float64)[:, 2:]
        no_area = ~keep & (sides <= MIN_SIDE).any(axis=1)
        crowd = self.is_crowd.astype(bool)
        report = DatasetReport(
            images=len(self.image_ids),
            boxes=int(keep.sum()),
            crowd=int((keep & crowd).sum()),
            boxless_images=len(self.image_ids) - len(np.unique(self.image_index[keep & ~crowd])),
            clipped_boxes=int((keep & moved).sum()),
            dropped_zero_area=int(no_area.sum()),
            dropped_outside=int((~keep & ~no_area).sum()),
        )
        kept = np.flatnonzero(keep)
        kept = kept[np.argsort(self.image_index[kept], kind="stable")]
        boxes, areas = boxes[kept].astype(np.float32), self.areas[kept]
        objects = {
            "id": self.ids[kept],
            "bbox": boxes,
            "category": self.category_index[kept],
            "area": np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas).astype(np.float32),
            "iscrowd": self.is_crowd[kept],
        }
        return np.bincount(self.image_index[kept], minlength=len(self.image_ids)), objects, report

    def labels(self, id2label: Mapping[int, str] | None, source: Path | str) -> tuple[list[str], np.ndarray]:
        """Names of the labels 0..C-1, and the label of every category (C,).

        Raises:
            ValueError: a category is not in the given `id2label`, or that is wrong.
        """
        names = list(self.category_names) if id2label is None else ordered_labels(id2label)
        label2id = {name: label for label, name in enumerate(names)}
        unknown = [name for name in self.category_names if name not in label2id]
        if unknown:
            raise ValueError(
                f"{source}: the category names {unknown[:10]} ({len(unknown)} of {len(self.category_names)}) are not "
                f"in id2label {names[:10]}; rename the categories, or leave id2label out"
            )
        return names, np.array([label2id[name] for name in self.category_names], dtype=np.int64)


def different_ids(values: Sequence[Any]) -> np.ndarray | None:
    """The values as int64, or None where they are not different integers."""
    try:
        return Column("", values, str).ids()
    except ValueError:
        return None


def object_annotations(
    objects: Mapping[str, Column],
    category: tuple[np.ndarray, Sequence[str]],
    image_index: np.ndarray,
    image_ids: np.ndarray,
    sizes: tuple[np.ndarray, np.ndarray],
) -> Annotations:
    """Annotations of a column for each of `OBJECT_FIELDS`, whose categories are their own numbers.

    Args:
        objects: columns of M values.
        category: the category (M,) of every box, and the names that it points into.
        image_index: the image (M,) of every box.
        image_ids, sizes: of the images: ids (I,), and widths and heights (I,) in pixels.
    """
    category_index, names = category
    ids = different_ids(objects["id"].values)
    return Annotations(
        image_ids=image_ids,
        widths=sizes[0],
        heights=sizes[1],
        category_ids=range(len(names)),
        category_names=names,
        ids=np.arange(len(image_index)) if ids is None else ids,
        image_index=image_index,
        category_index=category_index,
        boxes=objects["bbox"],
        areas=objects["area"].areas(),
        is_crowd=objects["iscrowd"].flags(),
    )


def build_detection_dataset(
    annotations: Annotations,
    id2label: Mapping[int, str] | None,
    source: Path | str,
    *,
    pictures: Sequence[str] | datasets.Dataset,
    annotations_path: Path,
    images_dir: Path,
) -> DetectionDataset:
    """Clean and label annotations, which `source` names in messages.

    Args:
        pictures: path of every image, or a data set with the one column `image`.

    Raises:
        ValueError: a box cannot be right, or the categories do not fit `id2label`.
    """
    labels, label_of_category = annotations.labels(id2label, source)
    category_ids = [-1] * len(labels)
    for label, category_id in zip(label_of_category.tolist(), annotations.category_ids, strict=True):
        category_ids[label] = category_id
    counts, objects, report = annotations.clean()
    objects["category"] = label_of_category[objects["category"]]
    _log_report(report, source)
    return DetectionDataset(
        dataset=_as_dataset(annotations, counts, objects, labels, pictures),
        id2label=dict(enumerate(labels)),
        label2id={name: label for label, name in enumerate(labels)},
        category_ids=category_ids,
        annotations_path=annotations_path,
        images_dir=images_dir,
        report=report,
    )


def ordered_labels(id2label: Mapping[int, str]) -> list[str]:
    """Names of labels 0..C-1.

    Raises:
        ValueError: the keys are not 0..C-1, or two names are equal.
    """
    try:
        names = {int(label): name for label, name in id2label.items()}
    except (TypeError, ValueError):
        raise ValueError(f"id2label: the keys must be integers, got {list(id2label)[:5]}") from None
    if sorted(names) != list(range(len(id2label))):
        raise ValueError(f"id2label: the keys must be 0..{len(id2label) - 1}, each once, got {sorted(names)[:10]}")
    labels = [names[label] for label in range(len(names))]
    if len(set(labels)) != len(labels):
        raise ValueError("id2label: two labels have the same name; make the names different")
    return labels


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
    pictures: Sequence[str] | datasets.Dataset,
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
    if isinstance(pictures, datasets.Dataset):
        del features["image"]
        rest = datasets.Dataset.from_dict(columns, features=features)
        return datasets.concatenate_datasets([pictures, rest], axis=1)
    paths = pa.array(pictures, type=pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], names=["bytes", "path"])
    return datasets.Dataset.from_dict({"image": image, **columns}, features=features)


def _log_report(report: DatasetReport, source: Path | str) -> None:
    if report.changed_boxes or not report.boxes:
        logger.warning(
            "%s: %d boxes clipped to their image, %d without area and %d wholly outside dropped; %s in %d images",
            source,
            report.clipped_boxes,
            report.dropped_zero_area,
            report.dropped_outside,
            f"{report.boxes} boxes left" if report.boxes else "no box at all",
            report.images,
        )


def _whole_number(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
