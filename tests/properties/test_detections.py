"""What post-processing, the image processor, COCO reading and calibration promise, for random input."""

import json
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import load_detection_dataset
from drmm_hf.decoder import EdgeOffsets, ScaleSpace
from drmm_hf.evaluation import calibration_report
from drmm_hf.postprocessing import select_detections
from properties.examples import few_examples

seeds = st.integers(0, 10**6)


@few_examples
@given(seeds, st.integers(1, 4), st.integers(1, 20), st.integers(1, 5), st.integers(1, 60), st.floats(0, 1))
def test_post_processing(seed: int, batch: int, components: int, classes: int, top_k: int, threshold: float) -> None:
    g = torch.Generator().manual_seed(seed)
    outputs = {
        "logits": 4 * torch.randn(batch, components, classes, generator=g),
        "pred_boxes": torch.rand(batch, components, 4, generator=g),
    }
    sizes = torch.randint(1, 2000, (batch, 2), generator=g)
    found = select_detections(outputs, threshold, sizes, top_k)
    order = torch.randperm(batch, generator=g)
    again = select_detections({k: v[order] for k, v in outputs.items()}, threshold, sizes[order], top_k)
    scores = outputs["logits"].sigmoid().flatten(1)
    for i, one in enumerate(found):
        expected = scores[i][scores[i] > threshold].sort(descending=True).values[:top_k]
        torch.testing.assert_close(one["scores"], expected)
        assert ((one["labels"] >= 0) & (one["labels"] < classes)).all()
        assert (one["boxes"][:, 2:] >= one["boxes"][:, :2]).all(), "width and height are not negative"
        position = order.tolist().index(i)
        torch.testing.assert_close(again[position], one)


@few_examples
@given(
    seeds, st.integers(1, 90), st.integers(1, 90), st.sampled_from([{}, {"pad_size": {"height": 320, "width": 320}}])
)
def test_boxes_go_to_the_network_and_come_back(seed: int, width: int, height: int, options: dict) -> None:
    random = Random(seed)
    x, y = random.uniform(0, width * 0.9), random.uniform(0, height * 0.9)
    w, h = random.uniform(0.01, width - x), random.uniform(0.01, height - y)
    processor = DrmmImageProcessor(size={"shortest_edge": 32, "longest_edge": 300}, **options)
    annotation = {"image_id": 1, "annotations": [{"bbox": [x, y, w, h], "category_id": 0}]}
    batch = processor(PIL.Image.new("RGB", (width, height)), annotation, return_tensors="pt")
    (label,) = batch["labels"]
    outputs = {"logits": torch.full((1, 1, 1), 9.0), "pred_boxes": label["boxes"][None]}
    (found,) = processor.post_process_object_detection(outputs, 0.5, [(height, width)])
    torch.testing.assert_close(found["boxes"], torch.tensor([[x, y, x + w, y + h]]), rtol=1e-5, atol=1e-3)
    resized_height, resized_width = label["size"].tolist()
    area = w * h * (resized_width / width) * (resized_height / height)
    assert label["area"].item() == pytest.approx(area, rel=1e-4)
    assert batch["pixel_mask"].sum() == resized_height * resized_width


@few_examples
@given(seeds, st.floats(0.01, 2000), st.floats(0.01, 2000))
def test_regions_are_boxes_again(seed: int, width: float, height: float) -> None:
    low = 1000 * torch.rand(1, 5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    boxes = torch.cat((low, low + torch.tensor([width, height], dtype=torch.float64)), dim=-1)
    for coding in (ScaleSpace(), EdgeOffsets(3.0)):
        regions = coding.refine(coding.encode(boxes), torch.zeros_like(boxes))
        torch.testing.assert_close(coding.decode(regions), boxes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    for name in ("images", "annotations"):
        (root / name).mkdir()
    for i in range(4):
        PIL.Image.new("RGB", (16, 12)).save(root / f"images/{i}.png")
    return root


@few_examples
@given(seeds)
def test_the_order_in_a_coco_file_does_not_matter(folder: Path, seed: int) -> None:
    random = Random(seed)
    image_ids, category_ids = random.sample(range(10**6), 4), random.sample(range(30), 3)
    content = {
        "images": [{"id": one, "file_name": f"{i}.png", "width": 16, "height": 12} for i, one in enumerate(image_ids)],
        "categories": [{"id": one, "name": name} for one, name in zip(category_ids, "abc", strict=True)],
        "annotations": [
            {
                "id": 3 * i + 1,
                "image_id": random.choice(image_ids),
                "category_id": random.choice(category_ids),
                "bbox": [random.uniform(0, 8), random.uniform(0, 6), random.uniform(1, 8), random.uniform(1, 6)],
                "iscrowd": int(random.random() < 0.2),
            }
            for i in range(8)
        ],
    }

    def read(content: dict) -> tuple:
        """Boxes by image id and annotation id, the labels and the report."""
        (folder / "annotations/instances_train.json").write_text(json.dumps(content))
        data, rows = load_detection_dataset(folder), {}
        for row in data.dataset:
            fields = zip(*(row["objects"][name] for name in ("bbox", "category", "area", "iscrowd")), strict=True)
            rows[row["image_id"]] = dict(zip(row["objects"]["id"], fields, strict=True))
        return rows, data.id2label, data.category_ids, data.report

    shuffled = {
        section: [
            dict(random.sample(list(record.items()), len(record))) for record in random.sample(records, len(records))
        ]
        for section, records in random.sample(list(content.items()), 3)
    }
    assert read(shuffled) == read(content)


def test_right_probabilities_have_next_to_no_calibration_error() -> None:
    """An object and a detection an image, on it with its score as the probability.

    The error that remains is of the sample: about sqrt(0.17 / 400) = 0.02 in each of ten bins of 400.
    """
    rng = np.random.default_rng(0)
    scores, box, beside = rng.uniform(0, 1, 4000), [10, 10, 20, 20], [60, 60, 20, 20]
    hits = rng.uniform(0, 1, 4000) < scores
    truth = {
        "images": [{"id": i} for i in range(4000)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": box} for i in range(4000)],
    }
    results = [
        {"image_id": i, "category_id": 1, "bbox": box if hit else beside, "score": float(score)}
        for i, (hit, score) in enumerate(zip(hits, scores, strict=True))
    ]
    assert calibration_report(truth, results).ece < 0.03
    overconfident = [{**one, "score": one["score"] ** 0.25} for one in results]
    assert calibration_report(truth, overconfident).ece > 0.2
