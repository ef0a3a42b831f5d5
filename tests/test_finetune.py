"""Fine-tuning on other classes: what is kept of a checkpoint, and how the new classifiers start."""

import math

import pytest
import torch

from drmm_hf import DrmmForObjectDetection
from model_fixtures import inputs, small_model

ANIMALS = {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "ewe"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of three classes that has left its initial values, and its folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = small_model(frozen_stages=1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.01 + 0.05 * torch.rand_like(tensor))
    model.save_pretrained(folder)
    return model, folder


def finetuned(folder, names: dict[int, str]) -> DrmmForObjectDetection:
    return DrmmForObjectDetection.from_pretrained(
        folder, id2label=names, label2id={n: i for i, n in names.items()}, ignore_mismatched_sizes=True
    )


def test_everything_but_the_classifiers_is_kept(checkpoint):
    old, folder = checkpoint
    model = finetuned(folder, ANIMALS)
    before, after = old.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    new = {name for name in before if before[name].shape != after[name].shape}
    assert new == {f"model.heads.{i}.classifier.{part}" for i in range(2) for part in ("weight", "bias")}
    for name in before.keys() - new:
        assert torch.equal(before[name], after[name]), name
    assert any("objectness" in name for name in before.keys() - new)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("by", ["id2label", "num_labels"])
def test_new_classifiers_start_as_from_scratch(checkpoint, count, by):
    """As other detectors of transformers take them; without `ignore_mismatched_sizes` they are refused."""
    given = {"id2label": {i: ANIMALS[i] for i in range(count)}, "num_labels": count}[by]
    model = DrmmForObjectDetection.from_pretrained(checkpoint[1], **{by: given}, ignore_mismatched_sizes=True)
    assert model.config.num_labels == len(model.config.label2id) == count
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        DrmmForObjectDetection.from_pretrained(checkpoint[1], **{by: given})
    for head in model.model.heads:
        weight, bias = head.classifier.weight, head.classifier.bias
        assert weight.shape == (count, 32)
        bound = math.sqrt(6 / (32 + count + 1))
        assert 0.8 * bound < weight.abs().max() <= bound * 1.00001
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)
        assert (bias == 0).all()
        assert head.classifier.weight.requires_grad


@pytest.mark.parametrize("names", [ANIMALS, {0: "cat", 1: "dog", 2: "cow"}])
def test_the_new_model_knows_its_classes_trains_and_is_saved(checkpoint, tmp_path, names):
    model = finetuned(checkpoint[1], names)
    assert model.config.id2label == names
    assert model.config.label2id == {name: i for i, name in names.items()}
    if len(names) == 3:  # as many as before: everything is kept
        for name, tensor in checkpoint[0].state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    last, batch = len(names) - 1, inputs()
    batch["labels"][0]["class_labels"][0] = last
    outputs = model(**batch)
    assert outputs.logits.shape == (2, 12, len(names))
    outputs.loss.backward()
    assert model.model.heads[0].classifier.weight.grad[last].abs().max() > 0
    model.save_pretrained(tmp_path)
    again = DrmmForObjectDetection.from_pretrained(tmp_path)
    assert again.config.id2label == names
    assert torch.equal(again.model.heads[1].classifier.weight, model.model.heads[1].classifier.weight)


def test_objects_are_found_as_before_whatever_their_classes(checkpoint):
    old, folder = checkpoint
    batch = {**inputs(), "labels": None}
    before, after = old.eval()(**batch), finetuned(folder, ANIMALS).eval()(**batch)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes)
    torch.testing.assert_close(after.objectness_logits, before.objectness_logits)
