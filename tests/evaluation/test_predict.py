"""Running a small random model over a small data set."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import detections_to_coco, evaluate_coco, predict_dataset, predict_images
from drmm_hf.evaluation.predict import predict_batches, prepared_batches
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from model_fixtures import small_model

NAMES = {0: "cat", 1: "dog", 2: "emu"}


@pytest.fixture(scope="module")
def model():
    return small_model(id2label=NAMES, label2id={}, num_proposals=8, num_stages=1)


@pytest.fixture(scope="module")
def processor():
    return DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.fixture
def dataset(tmp_path):
    """Three noise images of one size with sparse, unordered image ids; categories cat (4) and emu (9)."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    ids = [30, 5, 17]
    for image_id in ids:
        pixels = torch.randint(0, 256, (60, 80, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{image_id}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in ids],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "emu"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 10, 30, 30]}],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return load_detection_dataset(tmp_path, "val", id2label=NAMES)


def test_results_are_those_of_single_images_in_original_ids(model, processor, dataset, capsys):
    results = predict_dataset(model, processor, dataset, batch_size=2, progress=False)
    expected = []
    for row in dataset.dataset:
        with Image.open(row["image"]["path"]) as image:
            detections = predict_images(model, processor, [image.convert("RGB")])
        expected += detections_to_coco(detections, [row["image_id"]], dataset.category_ids)
    assert [one["image_id"] for one in results] == [one["image_id"] for one in expected]
    assert {one["image_id"] for one in results} == {30, 5, 17}
    assert {one["category_id"] for one in results} == {4, 9}  # dog is not in the data set
    for one, other in zip(results, expected, strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
    assert set(evaluate_coco(dataset.annotations_path, results)) >= {"AP", "AR100"}
    assert capsys.readouterr() == ("", "")


def test_threshold_and_top_k(model, processor, dataset):
    full = replace(dataset, category_ids=[4, 6, 9])
    assert len(predict_dataset(model, processor, full, progress=False)) == 3 * 8 * 3
    best = predict_dataset(model, processor, full, top_k=2, progress=False)
    assert len(best) == 6
    limit = sorted(one["score"] for one in best)[3]
    above = predict_dataset(model, processor, full, top_k=2, threshold=limit, progress=False)
    assert len(above) == 2
    assert all(one["score"] > limit for one in above)


def test_modes_are_restored_also_after_an_error(model, processor, dataset):
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    frozen.eval()
    before = [module.training for module in model.modules()]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    predict_dataset(model, processor, dataset, progress=False)
    assert [module.training for module in model.modules()] == before
    (dataset.images_dir / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"5\.png"):
        predict_dataset(model, processor, dataset, progress=False)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    assert torch.is_grad_enabled()


def test_workers_give_the_same_and_the_same_errors(model, processor, dataset):
    alone = predict_dataset(model, processor, dataset, progress=False)
    assert predict_dataset(model, processor, dataset, num_workers=1, progress=False) == alone
    (dataset.images_dir / "17.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"17\.png"):
        predict_dataset(model, processor, dataset, num_workers=1, progress=False)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_shares_of_processes_are_the_whole(model, processor, dataset, num_processes):
    """Three images in batches of two: the third process, and one of two, has less or nothing."""
    options = {"batch_size": 2, "progress": False}
    whole = [
        row["image_id"] for rows, _ in predict_batches(model, processor, dataset.dataset, **options) for row in rows
    ]
    processes = [SimpleNamespace(num_processes=num_processes, process_index=i) for i in range(num_processes)]
    shares = [list(predict_batches(model, processor, dataset.dataset, **options, accelerator=one)) for one in processes]
    assert [row["image_id"] for share in shares for rows, _ in share for row in rows] == whole == [30, 5, 17]
    assert sum(len(rows) for rows, _ in shares[-1]) == {1: 3, 2: 1, 3: 0}[num_processes]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_keep_their_order_and_are_prepared_little_ahead(num_workers):
    read = []
    rows = ({"place": place} for place in range(20) if read.append(place) is None)
    batches = prepared_batches(rows, lambda group: [row["place"] for row in group], 2, num_workers)
    for number, (group, places) in enumerate(batches):
        assert [row["place"] for row in group] == places == [2 * number, 2 * number + 1]
        assert len(read) <= 2 * (number + 1 + num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_where_its_batch_would(num_workers):
    def prepare(group):
        if group[0]["place"] == 2:
            raise ValueError("2")

    batches = prepared_batches(({"place": place} for place in range(5)), prepare, 1, num_workers)
    assert [group[0]["place"] for group, _ in (next(batches), next(batches))] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(batches)


def test_parts_are_kept_on_request(model, processor, dataset):
    rows = predict_dataset(model, processor, dataset, progress=False, with_parts=True)
    assert all(set(row) == {"image_id", "category_id", "bbox", "score", "objectness"} for row in rows)
    assert all(0.0 < row["score"] <= row["objectness"] < 1.0 for row in rows)
    none = {"scores": torch.zeros(0), "labels": torch.zeros(0), "boxes": torch.zeros(0, 4)}
    with pytest.raises(ValueError, match="objectness"):
        detections_to_coco([none], [1], [4], with_parts=True)


def test_images_of_several_sizes_in_one_batch(model, processor):
    images = [Image.new("RGB", size, (90, 120, 30)) for size in [(80, 60), (30, 90), (1, 1)]]
    detections = predict_images(model, processor, images, top_k=4)
    assert [len(one["scores"]) for one in detections] == [4, 4, 4]
    assert all(one["boxes"].shape == one["scales"].shape == (4, 4) for one in detections)
    assert all(torch.isfinite(one["boxes"]).all() for one in detections)
    assert predict_images(model, processor, []) == []
