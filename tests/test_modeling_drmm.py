"""The model: what its outputs mean, how gradients flow, and that it behaves as transformers expects of a model."""

import copy
import pickle

import torch

from drmm_hf import DrmmForObjectDetection, DrmmModel, mixture_loss
from drmm_hf.loss import pad_targets
from drmm_hf.mixture import log_mixing_coefficients
from model_fixtures import EMPTY, inputs, small_model


def test_boxes_and_scales_are_fractions_of_the_image_without_its_padding() -> None:
    outputs = small_model(min_scale_ratio=2.0).eval()(**inputs())
    extent = torch.tensor([[96.0, 64.0, 96.0, 64.0], [64.0, 48.0, 64.0, 48.0]]).unsqueeze(1)
    x1, y1, x2, y2 = (outputs.locations / extent).unbind(-1)
    expected = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)
    torch.testing.assert_close(outputs.pred_boxes, expected)
    size = outputs.locations[..., 2:] - outputs.locations[..., :2]
    floored = torch.maximum(outputs.scales, 2.0 * torch.cat((size, size), dim=-1))
    torch.testing.assert_close(outputs.pred_scales, floored / extent)
    assert (floored > outputs.scales).any(), "the floor is not exercised"


def test_as_released_the_padding_is_computed_with_the_image() -> None:
    batch = inputs()
    isolated, released = small_model().eval(), small_model(isolate_images=False).eval()
    outputs = [m(batch["pixel_values"], batch["pixel_mask"]).logits for m in (isolated, released)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0], atol=1e-5, rtol=1e-4)
    assert (outputs[0][1] - outputs[1][1]).abs().max() > 1e-3


def test_loss_is_the_sum_of_every_stage_and_loss_dict_shows_its_terms() -> None:
    model, batch = small_model(loss_reduction="sum", mcm_weight=0.3), inputs()
    outputs = model(**batch)
    stages = model.model(batch["pixel_values"], batch["pixel_mask"]).stages
    targets = pad_targets(batch["labels"], torch.tensor([[96.0, 64.0], [64.0, 48.0]]), 3)
    terms = [mixture_loss(stage, *targets) for stage in stages]
    expected = sum((t.nll + 0.3 * t.mcm).sum() for t in terms)
    torch.testing.assert_close(outputs.loss, expected)
    assert list(outputs.loss_dict) == ["nll_stage_1", "mcm_stage_1", "nll_stage_2", "mcm_stage_2"]
    torch.testing.assert_close(outputs.loss_dict["mcm_stage_2"], terms[1].mcm.sum())


def test_reductions_and_objectives() -> None:
    batch = inputs()
    total = small_model(loss_reduction="sum")(**batch)
    mean = small_model(loss_reduction="mean")(**batch)
    torch.testing.assert_close(mean.loss * 4, total.loss)
    nll = small_model(loss_reduction="sum", objective="nll")(**batch)
    torch.testing.assert_close(nll.loss, total.loss_dict["nll_stage_1"] + total.loss_dict["nll_stage_2"])


def test_images_without_objects_give_zero_loss_and_zero_gradients() -> None:
    model, batch = small_model(), inputs()
    loss = model(**{**batch, "labels": [EMPTY, EMPTY]}).loss
    loss.backward()
    assert loss == 0
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.abs().max() == 0 for g in gradients), "a parameter is outside the graph"


def test_boxes_pass_between_stages_without_gradient_and_features_with_it() -> None:
    model, batch = small_model(), inputs()
    second = model.model(batch["pixel_values"], batch["pixel_mask"]).stages[1]
    (second.locations.sum() + second.scales.sum()).backward()
    assert model.model.heads[0].box.weight.grad is None
    assert model.model.proposals.boxes.grad is None, "proposals learn through the first stage only"
    assert model.model.stages[0].fc1.weight.grad.abs().max() > 0
    first = model.model(batch["pixel_values"], batch["pixel_mask"]).stages[0]
    first.locations.sum().backward()
    # mu_1 = proposal + offset: each edge's gradient is the images' width or height
    torch.testing.assert_close(model.model.proposals.boxes.grad[:, 0], torch.full((12,), 2 * (96.0 + 64.0)))


def test_top_k_keeps_the_most_confident_and_does_not_normalize_again() -> None:
    model, batch = small_model(num_stages=3), inputs()
    every = model.model(batch["pixel_values"], batch["pixel_mask"]).stages
    model.config.top_k_ratio = 0.7
    kept = model.model(batch["pixel_values"], batch["pixel_mask"])
    assert [stage.locations.shape[1] for stage in kept.stages] == [8, 5, 3]
    assert kept.last_hidden_state.shape[1] == 3
    order = every[0].objectness_logits.argsort(dim=1, descending=True)[:, :8]
    whole = log_mixing_coefficients(every[0].objectness_logits)
    torch.testing.assert_close(kept.stages[0].log_mixing, whole.gather(1, order))
    assert (kept.stages[0].log_mixing.exp().sum(1) < 0.99).all()


def test_saved_and_loaded_the_model_is_the_same(tmp_path) -> None:
    model = small_model()
    model(**inputs())  # moves the BatchNorm statistics off their start
    model.save_pretrained(tmp_path)
    loaded = DrmmForObjectDetection.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs()).logits, model.eval()(**inputs()).logits, rtol=0, atol=0)
    base = DrmmModel.from_pretrained(tmp_path).eval()
    pixels = inputs()["pixel_values"]
    torch.testing.assert_close(base(pixels).locations, loaded(pixels).locations)


def test_the_loss_function_is_ours_and_survives_copies() -> None:
    model = small_model()
    expected = model(**inputs()).loss
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(**inputs()).loss, expected)


def test_every_tensor_of_the_model_is_in_its_state(tmp_path) -> None:
    """Tensors outside the state come back as garbage, because models are built on the meta device."""
    model = small_model()
    for module in model.modules():
        loose = [k for k, v in vars(module).items() if isinstance(v, torch.Tensor)]
        assert not loose, f"{type(module).__name__} holds {loose}"
        assert not module._non_persistent_buffers_set, type(module).__name__
