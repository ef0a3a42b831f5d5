"""The model: what its outputs mean, how gradients flow, and that it behaves as transformers expects of a model."""

import copy
import pickle

import pytest
import torch

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor, DrmmModel, mixture_loss
from drmm_hf.loss_drmm import pad_targets
from drmm_hf.mixture import log_mixing_coefficients
from drmm_hf.modeling_drmm import DrmmObjectDetectionOutput
from model_fixtures import inputs, small_config, small_model


def test_confidence_is_class_probability_times_objectness() -> None:
    outputs = small_model().eval()(**inputs())
    confidence = outputs.class_log_probs.exp() * outputs.objectness_logits.sigmoid().unsqueeze(-1)
    torch.testing.assert_close(outputs.logits.sigmoid(), confidence, atol=1e-6, rtol=0)


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


def test_a_batch_gives_what_each_image_gives_alone() -> None:
    model, batch = small_model().eval(), inputs(batch=3)
    together = model(batch["pixel_values"], batch["pixel_mask"], output_stages=True, output_hidden_states=True)
    alone = [
        model(batch["pixel_values"][i : i + 1, :, :h, :w], batch["pixel_mask"][i : i + 1, :h, :w], output_stages=True)
        for i, (h, w) in enumerate([(64, 96), (64, 96), (64, 64)])
    ]
    for name in ("logits", "pred_boxes", "pred_scales"):
        torch.testing.assert_close(together[name], torch.cat([a[name] for a in alone]), atol=1e-5, rtol=1e-4)
        stage = torch.cat([a.auxiliary_outputs[0][name] for a in alone])
        torch.testing.assert_close(together.auxiliary_outputs[0][name], stage, atol=1e-5, rtol=1e-4)
    assert [h.shape[0] for h in together.hidden_states] == [3, 3, 3]


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
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    loss = model(**{**batch, "labels": [empty, empty]}).loss
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


def test_stages_hidden_states_and_attentions_on_request() -> None:
    model = small_model(attn_implementation="eager").eval()
    model.set_attn_implementation("eager")
    outputs = model(**inputs(), output_stages=True, output_hidden_states=True, output_attentions=True)
    assert [len(outputs[n]) for n in ("auxiliary_outputs", "hidden_states", "attentions")] == [1, 3, 2]
    assert outputs.hidden_states[0].shape == (2, 12, 32)
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert outputs.attentions[0].shape == (2, 4, 12, 12)
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 12))
    assert outputs.auxiliary_outputs[0]["pred_boxes"].shape == (2, 12, 4)
    assert model(**inputs()).auxiliary_outputs is None


def test_output_fields_stand_where_the_trainer_reads_them() -> None:
    outputs = small_model()(**inputs(), output_stages=True)
    assert list(outputs)[:6] == ["loss", "loss_dict", "logits", "pred_boxes", "auxiliary_outputs", "last_hidden_state"]
    as_tuple = small_model()(**inputs(), output_stages=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[2], outputs.logits)
    assert isinstance(outputs, DrmmObjectDetectionOutput)


def test_eager_and_sdpa_attention_agree() -> None:
    model = small_model().eval()
    sdpa = model(**inputs()).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**inputs()).logits, sdpa, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_neither_loss_nor_gradients() -> None:
    plain, checkpointed = small_model().train(), small_model().train()
    checkpointed.gradient_checkpointing_enable()
    losses = []
    for model in (plain, checkpointed):
        loss = model(**inputs()).loss
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1])
    for (name, ours), theirs in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_bfloat16_by_autocast_and_by_weights() -> None:
    batch = inputs()
    model = small_model()
    reference = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    half = small_model().eval().to(torch.bfloat16)
    outputs = half(batch["pixel_values"].bfloat16(), batch["pixel_mask"])
    assert outputs.logits.isfinite().all()
    assert outputs.locations.dtype == torch.float32, "bfloat16 cannot hold pixel coordinates"


def test_saved_and_loaded_the_model_is_the_same(tmp_path) -> None:
    model = small_model()
    model(**inputs())  # moves the BatchNorm statistics off their start
    model.save_pretrained(tmp_path)
    loaded, info = DrmmForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded.eval()(**inputs()).logits, model.eval()(**inputs()).logits, rtol=0, atol=0)
    half = DrmmForObjectDetection.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    base = DrmmModel.from_pretrained(tmp_path).eval()
    pixels = inputs()["pixel_values"]
    torch.testing.assert_close(base(pixels).locations, loaded(pixels).locations)


def test_frozen_stages_stay_frozen_through_loading(tmp_path) -> None:
    def frozen(model) -> set[str]:
        return {name for name, p in model.named_parameters() if not p.requires_grad}

    model = small_model(frozen_stages=1, backbone_norm="eval")
    expected = frozen(model)
    assert any("layer1" in name for name in expected)
    assert any("conv1" in name for name in expected)
    assert not any("layer2" in name or "pyramid" in name for name in expected)
    model.save_pretrained(tmp_path)
    assert frozen(DrmmForObjectDetection.from_pretrained(tmp_path)) == expected


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


def test_nothing_but_weights_and_settings_is_saved(tmp_path) -> None:
    small_model().save_pretrained(tmp_path)
    DrmmImageProcessor().save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not any("auto_map" in p.read_text() for p in tmp_path.glob("*.json"))


def test_another_model_type_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'detr', expected 'drmm'"):
        DrmmForObjectDetection.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": None}, r"labels\[1\] has no 'class_labels' .*DrmmImageProcessor"),
        ({"boxes": None}, r"labels\[1\] has no 'boxes'"),
        ({"class_labels": torch.tensor([0, 3])}, r"labels\[1\]\['class_labels'\]\[1\] is 3, .*num_labels=3"),
        ({"class_labels": torch.tensor([-1, 0])}, r"\['class_labels'\]\[0\] is -1"),
        ({"boxes": torch.tensor([[3.0, 4.0, 20.0, 30.0]] * 2)}, r"\['boxes'\]\[0\] is \[3.0, .*not pixels"),
        ({"boxes": torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.1, float("nan"), 0.1, 0.1]])}, r"\['boxes'\]\[1\] .*nan"),
        ({"boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1]] * 2)}, r"\['boxes'\]\[0\]"),
        ({"boxes": torch.zeros(3, 4)}, r"shape \(3, 4\) beside 2 class_labels; expected \(2, 4\)"),
    ],
)
def test_wrong_labels_are_named(change: dict, message: str) -> None:
    batch = inputs()
    batch["labels"][1] = {k: v for k, v in {**batch["labels"][1], **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        small_model()(**batch)


def test_one_label_entry_for_each_image() -> None:
    batch = inputs()
    with pytest.raises(ValueError, match="labels has 1 entries for a batch of 2 images"):
        small_model()(**{**batch, "labels": batch["labels"][:1]})


def test_levels_that_the_backbone_does_not_give_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pyramid_levels=\[4\]: the backbone gives levels 0\.\.3"):
        DrmmModel(small_config(pyramid_levels=[4]))


@pytest.mark.slow
def test_exported_program_gives_the_same(tmp_path) -> None:
    model, batch = small_model().eval(), inputs()
    # without padding: a captured graph computes it with the image, as released
    arguments = (batch["pixel_values"], torch.ones_like(batch["pixel_mask"]))
    program = torch.export.export(model, arguments)
    torch.testing.assert_close(program.module()(*arguments).logits, model(*arguments).logits, atol=1e-4, rtol=1e-4)
