"""transformers' Trainer trains, evaluates and saves the model as any other detector."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor
from model_fixtures import small_model

PROCESSOR = DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})


class Boxes(Dataset):
    """Five images of two sizes; the third has no object."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        width, height = (96, 64) if index % 2 else (72, 64)
        image = Image.new("RGB", (width, height), (30, 60, 90))
        annotations = []
        if index != 2:
            x, y = 10 + 4 * index, 8 + 3 * index
            ImageDraw.Draw(image).rectangle((x, y, x + 30, y + 24), fill=(250, 200, 20))
            annotations = [{"bbox": [x, y, 30, 24], "category_id": index % 3}]
        return {"image": image, "annotation": {"image_id": index, "annotations": annotations}}


def collate(rows: list[dict]) -> dict:
    return dict(PROCESSOR([row["image"] for row in rows], [row["annotation"] for row in rows], return_tensors="pt"))


class Metric:
    """Checks what `compute_metrics` is given, as a COCO metric would use it."""

    def __init__(self) -> None:
        self.boxes: list[np.ndarray] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        shapes, objects = [], 0
        for batch, targets in zip(prediction.predictions, prediction.label_ids, strict=True):
            loss_dict, logits, boxes = batch
            assert set(loss_dict) == {"nll_stage_1", "mcm_stage_1", "nll_stage_2", "mcm_stage_2"}
            assert logits.shape == (len(targets), 12, 3)
            assert boxes.shape == (len(targets), 12, 4)
            shapes.append(len(targets))
            objects += sum(len(target["class_labels"]) for target in targets)
            self.boxes.append(boxes)
        return {"images": sum(shapes), "objects": objects}


def trainer(folder, model: DrmmForObjectDetection, metric: Metric | None = None, **options) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "max_steps": 8,
            "learning_rate": 2e-3,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "remove_unused_columns": False,
            "eval_do_concat_batches": False,
            "label_names": ["labels"],
            **options,
        },
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Boxes(),
        eval_dataset=Boxes(),
        data_collator=collate,
        processing_class=PROCESSOR,
        compute_metrics=metric,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after eight steps, what it measured before and after, and its folder."""
    folder, metric = tmp_path_factory.mktemp("trainer"), Metric()
    run = trainer(folder, small_model(), metric)
    before = run.evaluate()
    run.train()
    return run, before, run.evaluate(), metric, folder


def test_the_loss_falls(trained):
    run, before, after, _, _ = trained
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    assert after["eval_loss"] < 0.9 * before["eval_loss"]


def test_evaluation_sees_every_image_and_object(trained):
    _, before, _, metric, _ = trained
    assert before["eval_images"] == 5
    assert before["eval_objects"] == 4
    assert [len(boxes) for boxes in metric.boxes] == [2, 2, 1] * 2


def test_predictions_hold_only_what_a_metric_needs(trained):
    run = trained[0]
    batch = collate([Boxes()[0], Boxes()[1]])
    loss, predictions, labels = run.prediction_step(run.model, batch, prediction_loss_only=False)
    assert len(predictions) == 3, "loss_dict, logits and pred_boxes; all else would be kept for the whole set"
    outputs = run.model.eval()(**batch)
    torch.testing.assert_close(predictions[1], outputs.logits)
    torch.testing.assert_close(predictions[2], outputs.pred_boxes)
    torch.testing.assert_close(loss, outputs.loss)
    assert len(labels) == 2


def test_saved_and_loaded_it_detects_the_same(trained):
    run, _, _, _, folder = trained
    run.save_model(str(folder / "final"))
    model = DrmmForObjectDetection.from_pretrained(folder / "final").eval()
    inputs = DrmmImageProcessor.from_pretrained(folder / "final")(Boxes()[1]["image"], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], PROCESSOR(Boxes()[1]["image"], return_tensors="pt")["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, run.model.eval()(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_training_resumes_from_its_checkpoint(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(tmp_path / "whole", small_model(), **options)
    whole.train()
    resumed = trainer(tmp_path / "resumed", small_model(seed=5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, ours), theirs in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_bfloat16_and_gradient_checkpointing_train(tmp_path):
    run = trainer(tmp_path, small_model(), bf16=True, gradient_checkpointing=True, max_steps=2)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    for name, parameter in run.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name
