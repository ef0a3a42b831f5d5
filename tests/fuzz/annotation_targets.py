"""Annotations and detections: COCO files, results files, records of an image processor."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import PIL.Image

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import decode_image, load_detection_dataset
from drmm_hf.evaluation import calibration_report, evaluate_coco
from fuzz.mutate import mutate_json, mutate_value

FILES = ("a.png", "b.png", "sub/c.png")
COCO = {
    "info": {"year": 2024},
    "images": [
        {"id": 30, "file_name": "a.png", "width": 16, "height": 12, "coco_url": "http://example.invalid/a.png"},
        {"id": 7, "file_name": "b.png", "width": 16, "height": 12, "license": 1},
        {"id": 12, "file_name": "sub/c.png", "width": 16, "height": 12},
    ],
    "annotations": [
        {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 8], "area": 60.5, "iscrowd": 0},
        {
            "id": 3,
            "image_id": 30,
            "category_id": 2,
            "bbox": [0.5, 0.25, 8.0, 9.0],
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        },
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "dog", "supercategory": "animal"}, {"id": 2, "name": "cat"}],
}
RESULTS = [
    {"image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 8], "score": 0.9, "scales": [1.0, 1.0, 2.0, 2.0]},
    {"image_id": 30, "category_id": 2, "bbox": [0.5, 0.2, 8.0, 9.0], "score": 0.3},
    {"image_id": 7, "category_id": 2, "bbox": [5, 5, 9, 9], "score": 0.5},
]


class CocoTarget:
    """`load_detection_dataset` on a changed COCO file, and every image that it then names."""

    name = "coco"

    def draw(self, random: Random) -> str:
        return mutate_json(random, COCO)

    def run(self, value: str, folder: Path) -> None:
        root = _images(folder)
        (root / "annotations/instances_train.json").write_bytes(value.encode("latin-1", "replace"))
        data = load_detection_dataset(root)
        for row in data.dataset:
            decode_image(row)

    def names(self, value: str) -> Sequence[str]:
        return ("instances_train.json", *FILES)


class ResultsTarget:
    """Evaluation and calibration of changed results, or of right results against a changed ground truth."""

    name = "results"

    def draw(self, random: Random) -> list[str]:
        if random.random() < 0.5:
            return [json.dumps(COCO), mutate_json(random, RESULTS)]
        return [mutate_json(random, COCO), json.dumps(RESULTS)]

    def run(self, value: list[str], folder: Path) -> None:
        paths = [folder / "truth.json", folder / "found.json"]
        for path, text in zip(paths, value, strict=True):
            path.write_bytes(text.encode("latin-1", "replace"))
        evaluate_coco(*paths, per_class=True)
        calibration_report(*paths)

    def names(self, value: list[str]) -> Sequence[str]:
        return ("truth.json", "found.json", "results", "ground truth")


class AnnotationTarget:
    """The image processor with changed annotations."""

    name = "annotations"
    base: ClassVar = {
        "image_id": 3,
        "annotations": [
            {"bbox": [1, 2, 3, 4], "category_id": 0, "area": 12.0, "iscrowd": 0, "id": 5},
            {"bbox": [0.5, 0, 9.5, 4], "category_id": 2},
        ],
    }

    def __init__(self) -> None:
        self.processor = DrmmImageProcessor(size={"height": 16, "width": 16})

    def draw(self, random: Random) -> Any:
        base = [self.base] if random.random() < 0.5 else self.base
        return mutate_value(random, base)

    def run(self, value: Any, folder: Path) -> None:
        batch = self.processor(PIL.Image.new("RGB", (16, 12)), value, return_tensors="pt")
        for label in batch.get("labels", ()):
            assert label["boxes"].isfinite().all()
            assert ((label["boxes"] >= 0) & (label["boxes"] <= 1)).all()

    def names(self, value: Any) -> Sequence[str]:
        return ("image_id", "annotation")


def _images(folder: Path) -> Path:
    """The data set's folder, made once."""
    if not (folder / "images").is_dir():
        (folder / "images/sub").mkdir(parents=True)
        (folder / "annotations").mkdir()
        for file in FILES:
            PIL.Image.new("RGB", (16, 12), (90, 120, 60)).save(folder / "images" / file)
    return folder
