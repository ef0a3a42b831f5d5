"""The model at the edges: extreme values, one class, empty images, inputs of wrong shapes, repeated runs."""

import pytest
import torch

from drmm_hf import DrmmImageProcessor
from drmm_hf.loss import pad_targets
from model_fixtures import EMPTY, inputs, small_model


@pytest.mark.parametrize("factor", [1.0, 30.0, 1e3, 1e5])
def test_scores_are_class_times_objectness_however_extreme(factor):
    model, batch = small_model().eval(), inputs()
    with torch.no_grad():
        for layer in (model.model.heads[-1].classifier, model.model.heads[-1].objectness):
            layer.weight.mul_(factor)
        outputs = model(batch["pixel_values"], batch["pixel_mask"])
    assert outputs.logits.isfinite().all()
    objectness = outputs.objectness_logits.double().sigmoid().unsqueeze(-1)
    expected = outputs.class_log_probs.double().exp() * objectness
    torch.testing.assert_close(outputs.logits.double().sigmoid(), expected, atol=1e-6, rtol=0)
    if factor >= 1e3:
        assert outputs.objectness_logits.abs().max() > 50, "the extreme is not reached"


def test_with_one_class_the_score_is_the_objectness():
    model, batch = small_model(id2label={0: "cell"}, label2id={"cell": 0}), inputs()
    for target in batch["labels"]:
        target["class_labels"] = torch.zeros_like(target["class_labels"])
    outputs = model(**batch)
    torch.testing.assert_close(outputs.logits[..., 0].sigmoid(), outputs.objectness_logits.sigmoid())
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_an_image_without_objects_adds_nothing_beside_others():
    model, batch = small_model(loss_reduction="sum").eval(), inputs()
    first = batch["labels"][0]
    alone = model(batch["pixel_values"][:1], batch["pixel_mask"][:1], labels=[first])
    beside = model(batch["pixel_values"], batch["pixel_mask"], labels=[first, EMPTY])
    torch.testing.assert_close(beside.loss, alone.loss, rtol=1e-5, atol=1e-5)


def test_loss_and_gradients_repeat_exactly():
    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = small_model(dropout=0.1, attention_dropout=0.1).train()
        loss = model(**inputs()).loss
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    first, second = run(), run()
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_all_stages_in_their_order_also_as_a_tuple():
    model, batch = small_model(num_stages=3).eval(), inputs()
    named = model(**batch, output_stages=True, output_hidden_states=True)
    plain = model(**batch, output_stages=True, output_hidden_states=True, return_dict=False)
    for ours, theirs in zip(plain, named.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    outputs = model(batch["pixel_values"], output_stages=True)
    stages = model.model(batch["pixel_values"]).stages
    assert len(outputs.auxiliary_outputs) == 2
    for described, stage in zip([*outputs.auxiliary_outputs, outputs], stages, strict=True):
        for name in ("locations", "scales", "objectness_logits"):
            torch.testing.assert_close(described[name], getattr(stage, name))
        torch.testing.assert_close(described["class_log_probs"], stage.class_logits.log_softmax(-1))
        assert described["logits"].shape == (2, 12, 3)


@pytest.mark.parametrize("isolate_images", [True, False])
def test_proposals_lie_on_the_image_and_not_on_its_padding(isolate_images):
    model, batch = small_model(num_stages=1, isolate_images=isolate_images).eval(), inputs()
    with torch.no_grad():
        model.model.heads[0].box.weight.zero_()  # mu = proposal
        outputs = model(batch["pixel_values"], batch["pixel_mask"])
    expected = model.model.proposals.boxes.detach().expand(2, 12, 4)
    torch.testing.assert_close(outputs.pred_boxes, expected, atol=1e-6, rtol=1e-5)
    # 64 by 48 pixels of the second image are valid
    torch.testing.assert_close(outputs.locations[1, :, 0], 64 * (expected[1, :, 0] - expected[1, :, 2] / 2))


def test_labels_are_fractions_of_the_image_without_its_padding_and_are_padded():
    some, sizes = inputs()["labels"], torch.tensor([[96.0, 64.0], [64.0, 48.0], [64.0, 64.0]])
    targets = pad_targets([*some, EMPTY], sizes, 3)
    assert targets.mask.tolist() == [[True, True], [True, True], [False, False]]
    assert targets.labels.tolist() == [[0, 2], [0, 2], [0, 0]]
    for boxes, label, (width, height) in zip(targets.boxes, some, [(96, 64), (64, 48)], strict=False):
        cx, cy, w, h = label["boxes"].unbind(-1)
        expected = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
        torch.testing.assert_close(boxes, torch.stack(expected, dim=-1))


def test_every_parameter_learns_also_where_components_are_dropped():
    model = small_model(top_k_ratio=0.5).train()
    model(**inputs()).loss.backward()
    # timm starts the last norm of a residual block at zero, so what is before it starts without gradient
    learning = [(name, p.grad) for name, p in model.named_parameters() if ".backbone." not in name]
    dead = [name for name, gradient in learning if gradient is None or gradient.abs().max() == 0]
    assert not dead


def test_hidden_states_and_attentions_that_are_asked_for() -> None:
    """With `isolate_images` the images run apart; the configuration's setting reaches the backbone, which has none."""
    model = small_model(isolate_images=True, attn_implementation="eager").eval()
    model.config.output_attentions = True
    with torch.no_grad():
        outputs = model(**inputs(), output_hidden_states=[1])
    assert [state is None for state in outputs.hidden_states].count(False) == 1
    assert len(outputs.attentions) == model.config.num_stages


def with_labels(**change) -> dict:
    batch = inputs()
    label = {**batch["labels"][1], **change}
    return {
        **batch,
        "labels": [batch["labels"][0], {name: value for name, value in label.items() if value is not None}],
    }


@pytest.mark.parametrize(
    ("field", "batch"),
    [
        *[
            ("class_labels", with_labels(class_labels=value))
            for value in (None, [0, 1], torch.tensor(0), torch.tensor([0, 3]), torch.tensor([-1, 0]))
        ],
        *[
            ("boxes", with_labels(boxes=value))
            for value in (
                None,
                [[0.5] * 4] * 2,
                torch.full((4,), 0.5),
                torch.zeros(3, 4),
                torch.full((2, 4), 20.0),  # pixels
                torch.tensor([[0.1] * 4, [0.1, float("nan"), 0.1, 0.1]]),
                torch.tensor([[0.5, 0.5, -0.1, 0.1]] * 2),
                torch.tensor([[0.5, 0.5, 1.2, 0.5]] * 2),
            )
        ],
        # as the processor has it, the second image covers (48, 64) of the canvas
        ("size", {**with_labels(size=torch.tensor([48, 64])), "pixel_mask": None}),
        *[("size", with_labels(size=value)) for value in (torch.tensor([64, 48]), torch.tensor([48]), [48, 64])],
        ("labels", {**inputs(), "labels": inputs()["labels"][:1]}),
        ("labels", {**inputs(), "labels": ["class_labels", "boxes"]}),
        ("pixel_values", {"pixel_values": torch.zeros(3, 64, 96)}),
        ("pixel_values", {"pixel_values": torch.zeros(2, 1, 64, 96)}),
        ("pixel_mask", {**inputs(), "pixel_mask": torch.ones(2, 64, 64)}),
        ("pixel_mask", {**inputs(), "pixel_mask": torch.ones(1, 64, 96)}),
        ("pixel_mask", {**inputs(), "pixel_mask": torch.ones(2, 3, 64, 96)}),
    ],
)
def test_wrong_inputs_are_refused_by_their_name(field: str, batch: dict) -> None:
    for mode in (True, False):
        with pytest.raises(ValueError, match=field):
            small_model().train(mode)(**batch)


def test_the_processors_own_batch_is_accepted_with_its_mask_alone() -> None:
    """Every way in which `size` agrees: padded images with their mask, and images that fill the canvas without one."""
    processor = DrmmImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    images = [torch.zeros(3, 64, 128, dtype=torch.uint8), torch.zeros(3, 70, 64, dtype=torch.uint8)]
    nothing = [{"image_id": i, "annotations": []} for i in range(2)]
    batch = processor(images, nothing, return_tensors="pt")
    assert small_model()(**batch).loss == 0
    del batch["pixel_mask"]
    with pytest.raises(ValueError, match="pixel_mask"):
        small_model()(**batch)
    full = processor(images, nothing, size={"height": 64, "width": 96}, return_tensors="pt")
    assert small_model()(full["pixel_values"], labels=full["labels"]).loss == 0


@pytest.mark.parametrize("count", [2, 5])
def test_names_that_do_not_fit_the_head_are_refused(count: int) -> None:
    model = small_model()
    model.config.id2label = {i: f"class {i}" for i in range(count)}
    for batch in (inputs(), with_labels(class_labels=torch.tensor([0, 4]))):
        with pytest.raises(ValueError, match="id2label"):
            model(**batch)
