"""Measured values that no other module has: false positives without objects, and training memory."""

import math

import pytest

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from reproduction.measurements import false_positives_without_objects, training_memory

BOX = [1.0, 1.0, 5.0, 5.0]


def ground_truth(*annotated: int, crowd: int | None = None) -> dict:
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": BOX, "area": 25, "iscrowd": 0} for i in annotated]
    if crowd is not None:
        annotations.append({"id": 99, "image_id": crowd, "category_id": 1, "bbox": BOX, "area": 25, "iscrowd": 1})
    images = [{"id": i, "width": 10, "height": 10} for i in (1, 2, 3, 4)]
    return {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}


def found(image_id: int, score: float) -> dict:
    return {"image_id": image_id, "category_id": 1, "bbox": BOX, "score": score}


def test_false_positives_are_counted_on_images_without_objects() -> None:
    results = [found(1, 0.9), found(2, 0.5), found(2, 0.4), found(3, 0.49), found(4, 0.9)]
    truth = ground_truth(1, crowd=4)
    assert false_positives_without_objects(truth, results, 0.5) == 1 / 2
    assert false_positives_without_objects(truth, results, 0.3) == 3 / 2


def test_without_such_images_there_is_no_number() -> None:
    assert math.isnan(false_positives_without_objects(ground_truth(1, 2, 3, 4), [found(1, 0.9)], 0.5))


@pytest.mark.filterwarnings("error")
def test_query_groups_take_memory_and_the_objective_does_not() -> None:
    def memory(preset: str, **changes) -> float:
        small = {"num_stages": 2, "num_proposals": 64, "num_labels": 3}
        return training_memory(DrmmConfig.from_preset(preset, **small, **changes), 1, 96, 128)

    default, groups = memory("sparse-rcnn-tiny"), memory("sparse-rcnn-tiny", num_query_groups=4)
    ours = memory("drmm-sparse-rcnn-tiny")
    assert groups > 1.5 * default
    assert ours == pytest.approx(default, rel=0.1)


def test_memory_counts_every_kept_tensor_once() -> None:
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_stages=1, num_proposals=16, num_labels=3)
    one, two, three, again = (training_memory(config, images, 96, 128) for images in (1, 2, 3, 1))
    assert one == again
    assert three - two == pytest.approx(two - one, rel=0.02)
    parameters = sum(p.numel() for p in DrmmForObjectDetection(config).parameters())
    states = 4 * 4 * parameters / 1e9  # weights, gradients and two moments of 4 bytes
    assert one == pytest.approx(states + (two - one), rel=0.02)
