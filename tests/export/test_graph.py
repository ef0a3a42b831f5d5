"""The graph of a detector: same values as the model, ranked as the image processor ranks, captured for any size."""

import pytest
import torch
from transformers import ResNetConfig

from drmm_hf import DrmmImageProcessor
from drmm_hf.export import DetectorGraph, GraphSettings, capture, check_parity, load_run
from drmm_hf.export.graph import _rank, example_inputs
from drmm_hf.export.sidecar import canvas_size, processor_settings
from drmm_hf.postprocessing_drmm import select_detections
from drmm_hf.presets import preset_fields
from model_fixtures import small_model

STAGES = [f"stage{i}" for i in range(1, 5)]


def test_a_saved_program_agrees_on_three_sizes_and_two_batches(captured, tmp_path) -> None:
    model, graph, program = captured
    torch.export.save(program, tmp_path / "model.pt2")
    run = load_run(tmp_path / "model.pt2", graph.output_names)
    found = list(check_parity(run, DetectorGraph(model), GraphSettings(), (192, 256)))
    assert [(d.batch, d.size) for d in found] == [
        (batch, size) for size in ((64, 64), (96, 128), (192, 256)) for batch in (1, 2)
    ]
    assert all(set(d.values) == {"logits", "pred_boxes", "pred_scales"} for d in found)
    assert max(d.largest for d in found) < 1e-4


def test_ranking_is_that_of_the_image_processor() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes, scales = (torch.randn(2, 7, n, generator=generator) for n in (3, 4, 4))
    logits[0, 2, 1], logits[1, 0, 0], logits[1, 1, 1] = torch.nan, torch.inf, -torch.inf
    sizes = torch.tensor([[40, 60], [80, 20]])
    outputs = {"logits": logits, "pred_boxes": boxes, "pred_scales": scales}
    expected = select_detections(outputs, threshold=-1.0, target_sizes=sizes, top_k=9)
    for i, values in enumerate(zip(*_rank(logits, [boxes, scales], sizes, 9), strict=True)):
        for name, value in zip(("scores", "labels", "boxes", "scales"), values, strict=True):
            torch.testing.assert_close(value, expected[i][name], rtol=0, atol=0)


def test_fewer_pairs_than_asked_for_are_all_kept() -> None:
    values = torch.zeros(1, 2, 4)
    assert _rank(torch.zeros(1, 2, 3), [values], torch.tensor([[4, 4]]), 100)[0].shape == (1, 6)


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_baselines_have_no_scales(top_k: int | None) -> None:
    graph = DetectorGraph(small_model(head="set_prediction", objective="set_prediction"), top_k)
    outputs = graph(**example_inputs(graph.input_names, 1, (64, 64)))
    assert graph.output_names == (["scores", "labels", "boxes"] if top_k else ["logits", "pred_boxes"])
    assert len(outputs) == len(graph.output_names)


def test_the_model_is_left_as_it_was() -> None:
    model = small_model().train()
    DetectorGraph(model, attention="eager").half()
    assert model.training
    assert model.dtype == torch.float32
    assert model.config.isolate_images
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("top_k", [None, 10])
def test_parity_sees_a_deviation(top_k: int | None) -> None:
    model, settings = small_model(), GraphSettings(top_k=top_k, size=(64, 64))
    graph = DetectorGraph(model, top_k)

    def shifted(inputs: dict) -> list[torch.Tensor]:
        outputs = list(graph(**inputs))
        place = graph.output_names.index("boxes" if top_k else "pred_boxes")
        outputs[place] = outputs[place] + 1e-3
        return outputs

    exact = list(check_parity(lambda inputs: graph(**inputs), DetectorGraph(model), settings, (64, 64)))
    assert max(d.largest for d in exact) < 1e-6
    for deviation in check_parity(shifted, DetectorGraph(model), settings, (64, 64)):
        assert deviation.values["boxes" if top_k else "pred_boxes"] == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (100, 96)}, "size is 100x96 .*multiples of 32"),
        ({"size": (0, 32)}, "size is 0x32"),
        ({"batch": 0}, "batch is 0: give a whole number"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_settings_that_no_graph_can_have(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphSettings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"backbone_config": ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)},
        {
            "backbone_config": preset_fields("drmm-sparse-rcnn-swin-t")["backbone_config"],
            "backbone_kwargs": {"strict_img_size": False, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4},
        },
    ],
    ids=["no stated strides", "windows"],
)
def test_a_backbone_that_needs_a_fixed_size(fields: dict) -> None:
    graph = DetectorGraph(small_model(**{"backbone_kwargs": {}, "frozen_stages": 0, **fields}))
    with pytest.raises(ValueError, match=r"holds for one size only: fix it \(--size HxW\)"):
        capture(graph, GraphSettings())


@pytest.mark.slow
def test_windows_of_a_fixed_size() -> None:
    fields = preset_fields("drmm-sparse-rcnn-swin-t")
    small = {"strict_img_size": False, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1] * 4}
    model = small_model(backbone_config=fields["backbone_config"], backbone_kwargs=small, frozen_stages=0)
    graph, settings = DetectorGraph(model), GraphSettings(size=(96, 128))
    module = capture(graph, settings).module()
    for deviation in check_parity(lambda inputs: module(**inputs), graph, settings, (96, 128)):
        assert deviation.largest < 1e-4


def test_the_processor_of_a_fixed_size_fits_and_pads() -> None:
    fields = processor_settings(DrmmImageProcessor(), GraphSettings(size=(96, 160)))
    assert (fields["size"], fields["pad_size"]) == (
        {"max_height": 96, "max_width": 160},
        {"height": 96, "width": 160},
    )
    assert canvas_size(fields) == (96, 160)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_divisor": 16}, "size_divisor is 16"),
        ({"do_pad": False}, "do_pad is False"),
        ({"pad_size": {"height": 100, "width": 96}}, r"pad_size is \{'height': 100"),
    ],
)
def test_a_processor_that_makes_other_sizes_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {message}.* multiples of 32"):
        processor_settings(DrmmImageProcessor(**change), GraphSettings())
