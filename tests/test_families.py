"""Every system of the paper, in small: two decoders, two heads, three backbones."""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from model_fixtures import NAMES, inputs

SYSTEMS = ("drmm-sparse-rcnn", "drmm-adamixer", "sparse-rcnn", "adamixer")
BACKBONES: dict[str, dict[str, Any]] = {
    "r50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8},
    "r101": {"layers": [1, 1, 2, 1], "channels": [8, 8, 16, 16], "stem_width": 8},
    "swin-t": {"strict_img_size": False, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
}
SMALL: dict[str, Any] = {
    "num_proposals": 12,
    "num_stages": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "dynamic_dim": 8,
    "num_sampling_points": 8,
    "num_mixing_points": 8,
    "id2label": NAMES,
}
FAMILIES = [(system, backbone) for system in SYSTEMS for backbone in BACKBONES]


def family_config(system: str, backbone: str, **overrides: Any) -> DrmmConfig:
    fields = {**SMALL, "backbone_kwargs": BACKBONES[backbone], **overrides}
    return DrmmConfig.from_preset(f"{system}-{backbone}", **fields)


def build(system: str, backbone: str, **overrides: Any) -> DrmmForObjectDetection:
    torch.manual_seed(0)
    model = DrmmForObjectDetection(family_config(system, backbone, **overrides))
    with torch.no_grad():  # AdaMixer's generators start from zero, which would hide faults of theirs
        for name, parameter in model.named_parameters():
            if "box.weight" in name or "parameter_layer" in name or "sampling_offsets.weight" in name:
                parameter.normal_(std=0.02)
    return model


@pytest.mark.parametrize(("system", "backbone"), FAMILIES)
class TestFamily:
    def test_forward_gives_what_the_docstring_promises(self, system, backbone) -> None:
        outputs = build(system, backbone).eval()(**inputs(), output_stages=True)
        assert outputs.logits.shape == (2, 12, 3)
        assert outputs.pred_boxes.shape == outputs.locations.shape == (2, 12, 4)
        assert torch.isfinite(outputs.loss)
        assert len(outputs.auxiliary_outputs) == 1
        mixture = system.startswith("drmm")
        assert (outputs.pred_scales is not None) == mixture
        assert (outputs.objectness_logits is not None) == mixture
        expected = ("nll", "mcm") if mixture else ("focal", "l1", "giou")
        assert set(outputs.loss_dict) == {f"{term}_stage_{i}" for term in expected for i in (1, 2)}

    def test_backward_reaches_every_trained_parameter(self, system, backbone) -> None:
        model = build(system, backbone).train()
        model(**inputs()).loss.backward()
        without = [
            n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.isnan().any())
        ]
        assert not without
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert bool(frozen) == (backbone != "swin-t"), "the stem and the first stage of a ResNet are frozen"

    def test_saving_keeps_everything_and_a_pipeline_answers(self, system, backbone, tmp_path) -> None:
        model = build(system, backbone).eval()
        model.save_pretrained(tmp_path)
        loaded, info = DrmmForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs()).logits, model(**inputs()).logits, rtol=0, atol=0)
        processor = DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
        detector = pipeline("object-detection", model=loaded, image_processor=processor)
        found = detector(Image.new("RGB", (120, 80), (90, 60, 30)), threshold=0.0)
        assert {detection["label"] for detection in found} <= set(NAMES.values())
        assert set(found[0]) == {"score", "label", "box"}

    def test_a_batch_equals_single_images(self, system, backbone) -> None:
        model = build(system, backbone, isolate_images=True).eval()
        batch = inputs()
        with torch.no_grad():
            together = model(batch["pixel_values"], pixel_mask=batch["pixel_mask"])
            for i, (height, width) in enumerate([(64, 96), (64, 64)]):
                pixels = batch["pixel_values"][i : i + 1, :, :height, :width]
                alone = model(pixels, pixel_mask=batch["pixel_mask"][i : i + 1, :height, :width])
                torch.testing.assert_close(together.logits[i], alone.logits[0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(together.pred_boxes[i], alone.pred_boxes[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_gradient_checkpointing_changes_nothing(system, use_reentrant) -> None:
    model = build(system, "r50").train()
    model(**inputs()).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs()).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            largest = float(expected[name].abs().max())  # sums of many terms that cancel
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * (1 + largest))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(system, attention) -> None:
    reference = build(system, "r50").eval()
    model = build(system, "r50", attn_implementation=attention).eval()
    with torch.no_grad():
        outputs = model(**inputs(), output_hidden_states=True, output_attentions=attention == "eager")
        torch.testing.assert_close(outputs.logits, reference(**inputs()).logits, rtol=1e-4, atol=1e-4)
    assert len(outputs.hidden_states) == 3
    if attention == "eager":
        assert outputs.attentions[0].shape == (2, 4, 12, 12)
        torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 12))


@pytest.mark.parametrize("system", ["sparse-rcnn", "adamixer"])
class TestQueryGroups:
    """Group-DETR on the baselines (Table 11)."""

    def test_groups_do_not_see_each_other(self, system) -> None:
        model = build(system, "r50", num_query_groups=3, proposal_init="grid").train()
        model.model.backbone.eval()
        pixels = inputs()["pixel_values"]
        before = model.model(pixels).last_hidden_state
        assert before.shape == (2, 36, 32)
        with torch.no_grad():
            model.model.proposals.features[12:24] += torch.randn(12, 32)
        after = model.model(pixels).last_hidden_state
        changed = (before - after).abs().amax(dim=(0, 2)) > 1e-6
        assert changed[12:24].all()
        assert not changed[:12].any()
        assert not changed[24:].any()

    def test_only_the_first_group_detects(self, system) -> None:
        model = build(system, "r50", num_query_groups=3)
        assert model.train()(**inputs()).logits.shape == (2, 12, 3)
        outputs = model.eval()(**inputs())
        assert outputs.logits.shape == (2, 12, 3)
        assert outputs.last_hidden_state.shape == (2, 12, 32)

    def test_every_group_learns(self, system) -> None:
        model = build(system, "r50", num_query_groups=3).train()
        model(**inputs()).loss.backward()
        gradient = model.model.proposals.features.grad.view(3, 12, 32)
        assert (gradient.abs().sum(dim=(1, 2)) > 0).all()


def test_top_k_between_stages_of_adamixer() -> None:
    model = build("drmm-adamixer", "r50", top_k_ratio=0.5).eval()
    outputs = model(**inputs(), output_stages=True)
    assert outputs.auxiliary_outputs[0]["logits"].shape == (2, 6, 3)
    assert outputs.logits.shape == (2, 3, 3)


def test_adamixers_initial_boxes_are_not_trained() -> None:
    model = build("adamixer", "r50")
    assert "model.proposals.boxes" not in dict(model.named_parameters())
    assert "model.proposals.boxes" in model.state_dict()
    assert torch.equal(model.model.proposals.boxes[0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
