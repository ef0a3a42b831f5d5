"""Small ground truths and results for the tests of the measures."""

from typing import Any

import numpy as np


def make_truth(*boxes: tuple[int, float], crowd: bool = False) -> dict[str, Any]:
    """One image with 10x10 boxes, each given as (class, x), and perhaps a crowd region of class 7 far below."""
    annotations = [{"image_id": 1, "category_id": c, "bbox": [x, 0, 10, 10]} for c, x in boxes]
    if crowd:
        annotations.insert(0, {"image_id": 1, "category_id": 7, "bbox": [0, 500, 400, 400], "iscrowd": 1})
    categories = [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}, {"id": 8, "name": "star"}]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}


def found(score: float, x: float, *, height: float = 10, category_id: int = 7) -> dict[str, Any]:
    """A detection that covers height/10 of a box at `x`, which is also its IoU with it; nothing is at 300."""
    return {"image_id": 1, "category_id": category_id, "bbox": [x, 0, 10, height], "score": score}


ON_CROWD = {"image_id": 1, "category_id": 7, "bbox": [50, 550, 30, 30], "score": 0.99}


def scene(
    seed: int = 7, num_images: int = 12, *, crowd: bool = False, digits: int = 12
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images of two classes with good, loose, duplicate, confused and free detections.

    With few `digits` some scores are equal.
    """
    random = np.random.RandomState(seed)  # the only generator whose numbers are promised to stay
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        for place in range(4):
            box = np.array([60.0 * place, 0, 20 + 20 * random.random_sample(), 30])
            category_id = 7 + random.randint(2)
            annotations.append({"image_id": image_id, "category_id": category_id, "bbox": box.tolist()})
            if crowd and random.random_sample() < 0.4:
                region = [box[0] + 5, 0, 80, 40]
                annotations.append({"image_id": image_id, "category_id": 7, "bbox": region, "iscrowd": 1})
            for _ in range(random.randint(4)):
                moved = box + random.normal(scale=(4, 4, 3, 3))
                moved[0] += box[2] * 0.85 * (random.random_sample() < 0.2)  # hardly an overlap
                guess = category_id if random.random_sample() < 0.8 else 15 - category_id
                row = {"image_id": image_id, "category_id": guess, "bbox": np.maximum(moved, 0).tolist()}
                results.append(row | {"score": round(float(random.beta(2, 2)), digits)})
        row = {"image_id": image_id, "category_id": 7 + image_id % 2, "bbox": [0, 200, 30, 30]}
        results.append(row | {"score": round(float(random.beta(1, 4)), digits)})
    categories = [{"id": 7, "name": "cell"}, {"id": 8, "name": "star"}]
    images = [{"id": image_id} for image_id in range(1, num_images + 1)]
    for index, one in enumerate(annotations, start=1):
        one |= {"id": index, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": one.get("iscrowd", 0)}
    return {"images": images, "categories": categories, "annotations": annotations}, results


MIXED_TRUTH: dict[str, Any] = {
    "images": [{"id": 1}, {"id": 2}, {"id": 3}],
    "categories": [{"id": 9, "name": "disc"}, {"id": 7, "name": "cell"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 10, 10], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [50, 0, 10, 10], "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 40, 40], "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 7, "bbox": [0, 0, 80, 80], "iscrowd": 1},
    ],
}


def detection(image_id: int, score: float, bbox: list[float], category_id: int = 7) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score, "scales": [1.0] * 4}


MIXED_RESULTS = [
    detection(1, 0.9, [0, 0, 10, 10]),
    detection(1, 0.8, [0, 0, 10, 9]),  # a duplicate
    detection(1, 0.7, [50, 0, 10, 5]),  # IoU 0.5
    detection(2, 0.6, [0, 0, 40, 40]),
    detection(2, 0.6, [60, 60, 5, 5], 9),  # of a class without objects
    detection(3, 0.9, [10, 10, 30, 30]),  # in the crowd region
]
