"""What the model does not do: wait for a GPU, compute what nobody asked for, compile again for another size."""

import contextlib
from collections import Counter
from typing import Any

import pytest
import torch

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from model_fixtures import EMPTY, Recorder, inputs, small_config, small_model

DECODERS = ["drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny"]


def small(preset: str, **overrides: Any) -> DrmmForObjectDetection:
    """A model of the preset of the size of `small_model`."""
    torch.manual_seed(0)
    sizes = ("id2label", "num_proposals", "num_stages", "hidden_size", "decoder_ffn_dim", "backbone_kwargs")
    fields = {name: getattr(small_config(), name) for name in sizes}
    return DrmmForObjectDetection(DrmmConfig.from_preset(preset, **{**fields, **overrides}))


@pytest.mark.parametrize("top_k_ratio", [None, 0.7])
@pytest.mark.parametrize("preset", DECODERS)
def test_loss_and_training_forward_never_wait_for_the_device(preset, top_k_ratio, monkeypatch) -> None:
    """The meta device takes the ways of a GPU, and has no values to wait for; but it knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    model, batch = small(preset, top_k_ratio=top_k_ratio).train().to("meta"), inputs()
    empty = {**EMPTY, "size": torch.tensor([64, 96])}
    labels = [{name: value.to("meta") for name, value in label.items()} for label in (batch["labels"][0], empty)]
    pixels = (batch["pixel_values"].to("meta"), batch["pixel_mask"].to("meta"))
    with Recorder() as recorder:
        loss = model(*pixels, labels=labels).loss
        loss.backward()
    assert recorder.waiting() == []
    assert recorder.operators["_assert_async.msg"] == 3, "the labels are checked by the device"


@pytest.mark.parametrize("preset", DECODERS)
def test_loss_and_training_forward_make_no_tensor_of_numbers_of_the_host(preset) -> None:
    """Each would be a copy to a GPU; the meta device does not show it."""
    model, batch = small(preset).train(), inputs()
    with Recorder() as recorder:
        model(**batch).loss.backward()
    assert not [name for name in recorder.waiting() if name.startswith("lift_fresh")]


def test_the_recorder_sees_what_waits() -> None:
    values = torch.ones(3)
    with Recorder() as recorder:
        values.sum().item()
        values[values > 0]
        torch.tensor([1.0])
        values.nonzero()
    assert len(recorder.waiting()) >= 4


def count_calls(model: DrmmForObjectDetection) -> Counter[str]:
    """Calls of the modules of the heads, by stage and name, from now on."""
    calls: Counter[str] = Counter()
    for i, head in enumerate(model.model.heads):
        for name in ("classifier", "objectness", "box"):
            getattr(head, name).register_forward_hook(lambda *_, key=f"{name}{i}": calls.update([key]))
    return calls


@pytest.mark.parametrize(("top_k_ratio", "ranked"), [(None, []), (0.7, ["objectness0", "objectness1"])])
def test_inference_computes_the_classes_of_the_last_stage_alone(top_k_ratio, ranked) -> None:
    """Components between stages are chosen by their objectness, which is then computed too."""
    model, batch = small_model(num_stages=3, top_k_ratio=top_k_ratio).eval(), inputs()
    pixels = (batch["pixel_values"][:1], batch["pixel_mask"][:1])
    calls = count_calls(model)
    plain = model(*pixels)
    assert sorted(calls) == sorted(["box0", "box1", "box2", "classifier2", "objectness2", *ranked])
    calls.clear()
    every = model(*pixels, output_stages=True)
    assert len(calls) == 9
    assert set(calls.values()) == {1}
    torch.testing.assert_close(plain.logits, every.logits, rtol=0, atol=0)
    torch.testing.assert_close(plain.pred_boxes, every.pred_boxes, rtol=0, atol=0)
    assert plain.logits.shape[1] == (12 if top_k_ratio is None else 3)


@pytest.mark.parametrize("isolate_images", [False, True])
@pytest.mark.parametrize("preset", DECODERS)
def test_an_image_that_is_all_padding_gives_finite_numbers(preset, isolate_images) -> None:
    model, batch = small(preset, isolate_images=isolate_images).eval(), inputs()
    batch["pixel_mask"][1] = 0
    outputs = model(**batch)
    for name in ("loss", "logits", "pred_boxes", "pred_scales"):
        assert outputs[name].isfinite().all(), name


@pytest.mark.slow
@pytest.mark.parametrize("preset", DECODERS)
def test_compiled_once_the_detector_takes_images_of_other_sizes(preset) -> None:
    torch._dynamo.reset()
    model = small(preset, isolate_images=False).eval()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="eager")
    sizes = [(2, 64, 96), (2, 96, 64), (3, 128, 160)]
    with torch.no_grad():
        compiled(torch.randn(2, 3, 64, 96))
        for batch, height, width in sizes:
            pixels = torch.randn(batch, 3, height, width)
            with torch._dynamo.config.patch(error_on_recompile=True):
                outputs = compiled(pixels)
            expected = model(pixels)
            torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=1e-4)
