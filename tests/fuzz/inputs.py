"""Right inputs, which the tests damage: a COCO file and its pictures, results, annotations, a recipe, a checkpoint."""

import json
from pathlib import Path
from typing import Any

import PIL.Image

from drmm_hf import DrmmImageProcessor
from model_fixtures import small_model

FILES = ("a.png", "b.png", "sub/c.png")
COCO = {
    "images": [
        {"id": 30, "file_name": "a.png", "width": 16, "height": 12, "coco_url": "http://example.invalid/a.png"},
        {"id": 7, "file_name": "b.png", "width": 16, "height": 12},
        {"id": 12, "file_name": "sub/c.png", "width": 16, "height": 12},
    ],
    "annotations": [
        {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 8], "area": 60.5, "iscrowd": 0},
        {"id": 3, "image_id": 30, "category_id": 2, "bbox": [0.5, 0.25, 8.0, 9.0]},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [5, 5, 9, 9], "area": 81, "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "dog", "supercategory": "animal"}, {"id": 2, "name": "cat"}],
}
RESULTS = [
    {"image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 8], "score": 0.9, "scales": [1.0, 1.0, 2.0, 2.0]},
    {"image_id": 30, "category_id": 2, "bbox": [0.5, 0.2, 8.0, 9.0], "score": 0.3},
    {"image_id": 7, "category_id": 2, "bbox": [5, 5, 9, 9], "score": 0.5},
]
ANNOTATION = {
    "image_id": 3,
    "annotations": [
        {"bbox": [1, 2, 3, 4], "category_id": 0, "area": 12.0, "iscrowd": 0},
        {"bbox": [0.5, 0, 9.5, 4], "category_id": 2},
    ],
}
RECIPE = {
    "preset": "drmm-sparse-rcnn-tiny",
    "config": {"objective": "nll", "num_proposals": 50},
    "epochs": 12.0,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "schedule": "multi_step",
    "milestones": [8, 11],
    "augmentation": "affine",
}


def changed(value: Any, *place: Any, to: Any) -> Any:
    """A copy of a JSON value with one place changed."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    return copy


def write_coco(folder: Path, content: Any = COCO, split: str = "train") -> Path:
    """A COCO folder; text and bytes are written as they are."""
    for file in FILES:
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (16, 12), (90, 120, 60)).save(folder / "images" / file)
    (folder / "annotations").mkdir(exist_ok=True)
    write(folder / f"annotations/instances_{split}.json", content)
    return folder


def write(path: Path, content: Any) -> Path:
    content = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_model(folder: Path) -> Path:
    """A checkpoint that costs nothing to run."""
    small_model().save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder
