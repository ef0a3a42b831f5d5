"""Likelihood per stage: against the training loss, and by hand on mixtures that are set."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from drmm_hf.configuration_drmm import DrmmConfig
from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import likelihood_report
from drmm_hf.evaluation.predict import object_records
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.mixture import MixtureParameters
from drmm_hf.modeling_drmm import DrmmForObjectDetection, DrmmModelOutput

NAMES = {0: "cat", 1: "dog", 2: "emu"}


def make_model(**changes):
    torch.manual_seed(0)
    settings = {"id2label": NAMES, "num_proposals": 8, "num_stages": 2, **changes}
    return DrmmForObjectDetection(DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", **settings))


@pytest.fixture(scope="module")
def processor():
    return DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


@pytest.fixture
def dataset(tmp_path):
    """Three images of two sizes with 2, 1 and 0 objects, and a crowd region."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    sizes = {1: (80, 60), 2: (60, 80), 3: (80, 60)}
    for image_id, size in sizes.items():
        Image.new("RGB", size, (40 * image_id, 90, 60)).save(tmp_path / "images" / f"{image_id}.png")
    objects = [
        (1, 9, [10, 10, 30, 30], 0),
        (1, 4, [30, 5, 40, 50], 0),
        (1, 4, [0, 0, 80, 60], 1),
        (2, 9, [5, 20, 50, 50], 0),
    ]
    names = ("image_id", "category_id", "bbox", "iscrowd")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in sizes.items()],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "emu"}],
        "annotations": [{"id": n, **dict(zip(names, one, strict=True))} for n, one in enumerate(objects, start=1)],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return load_detection_dataset(tmp_path, "val", id2label=NAMES)


def test_means_are_those_of_the_training_loss(processor, dataset):
    model = make_model(loss_reduction="mean").eval()
    report = likelihood_report(model, processor, dataset, batch_size=2)
    sums = Counter()
    for row in list(dataset.dataset)[:2]:
        with Image.open(row["image"]["path"]) as image:
            annotations = {"image_id": 1, "annotations": object_records(row)}
            inputs = processor(images=image, annotations=annotations, return_tensors="pt")
        with torch.no_grad():
            losses = model(**inputs).loss_dict
        sums.update({name: len(inputs["labels"][0]["class_labels"]) * value.item() for name, value in losses.items()})
    assert (report.num_objects, report.num_images) == (3, 3)  # without the crowd region, with the empty image
    for i, stage in enumerate(report.stages, start=1):
        assert stage.nll == pytest.approx(sums[f"nll_stage_{i}"] / 3, rel=1e-4)
        assert stage.mcm == pytest.approx(sums[f"mcm_stage_{i}"] / 3, rel=1e-3, abs=1e-5)
        # Jensen: the mean of a convex function
        assert math.exp(-stage.mcm) <= stage.max_share <= 1.0
    json.dumps(report.to_dict(), allow_nan=False)


def test_batches_modes_and_gradients(processor, dataset):
    model = make_model()
    model.train()
    before, loss_function = [module.training for module in model.modules()], model.loss_function
    stages = [likelihood_report(model, processor, dataset, batch_size=size).stages for size in (1, 3)]
    values = [[value for stage in one for value in (stage.nll, stage.mcm, stage.max_share)] for one in stages]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    assert [module.training for module in model.modules()] == before
    assert model.loss_function is loss_function
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def with_boxes(monkeypatch, boxes):
    """A model whose one stage always predicts these (B, K, 4) boxes, with γ = 10 px and p(class) = 1/3."""
    model = make_model(num_stages=1, likelihood_floor=0.0, isolate_images=False)
    boxes = torch.tensor(boxes)
    shape = boxes.shape[:2]
    stage = MixtureParameters(boxes, torch.full_like(boxes, 10.0), torch.zeros(*shape, 3), torch.zeros(shape))
    outputs = DrmmModelOutput(stages=(stage,), image_sizes=torch.tensor([[60.0, 80.0]]).expand(shape[0], 2))
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: outputs)
    return model


TRUE, OFF, FAR = [5.0, 20.0, 55.0, 70.0], [15.0, 20.0, 55.0, 70.0], [5e6, 5e6, 6e6, 6e6]


def test_by_hand(dataset, monkeypatch):
    processor = DrmmImageProcessor(size={"height": 80, "width": 60})  # as it is in the file
    data = replace(dataset, dataset=dataset.dataset.select([1]))  # one object, at TRUE
    peak = 4 * math.log(math.pi * 10) + math.log(3)
    (stage,) = likelihood_report(with_boxes(monkeypatch, [[TRUE]]), processor, data).stages
    assert (stage.nll, stage.mcm, stage.max_share) == pytest.approx((peak, 0.0, 1.0))
    # Two components with mixing 1/2 each; the other is γ off at one edge, where the density is half the peak.
    (stage,) = likelihood_report(with_boxes(monkeypatch, [[TRUE, OFF]]), processor, data).stages
    assert stage.nll == pytest.approx(peak - math.log(0.5 + 0.25))
    assert stage.mcm == pytest.approx(-math.log(2 / 3))
    assert stage.max_share == pytest.approx(2 / 3)


def test_the_share_is_averaged_over_objects(dataset, monkeypatch):
    """Shares of 1/2 and 1: their mean .75 is not exp(-mean MCM) = .707."""
    processor = DrmmImageProcessor(size={"height": 80, "width": 60})
    data = replace(dataset, dataset=dataset.dataset.select([1, 1]))
    report = likelihood_report(with_boxes(monkeypatch, [[TRUE, TRUE], [TRUE, FAR]]), processor, data)
    assert report.stages[0].max_share == pytest.approx(0.75)
    assert report.stages[0].mcm == pytest.approx(math.log(2.0) / 2)


def test_settings_are_those_of_the_model_and_no_objects_have_no_likelihood(processor, dataset):
    model = make_model(density="student_t", student_t_dof=3.0, min_scale_ratio=0.1)
    report = likelihood_report(model, processor, replace(dataset, dataset=dataset.dataset.select([2])))
    assert all(part in report.settings for part in ("student_t", "3 degrees", "0.1 of the box", "0 objects"))
    assert report.to_dict()["stages"] == [{"nll": None, "mcm": None, "max_share": None}] * 2


def test_what_cannot_be_scored_is_named(processor, dataset):
    baseline = make_model(head="set_prediction", objective="set_prediction")
    with pytest.raises(ValueError, match="set_prediction"):
        likelihood_report(baseline, processor, dataset)
    with pytest.raises(ValueError, match="num_labels=1"):
        likelihood_report(make_model(id2label={0: "cat"}), processor, dataset)
    (dataset.images_dir / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png"):
        likelihood_report(make_model(), processor, dataset)
