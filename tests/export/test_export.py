"""Graphs and files: same values as the model, ranked as the image processor ranks, captured for any size."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig

from drmm_hf import DrmmImageProcessor
from drmm_hf.export import (
    DetectorGraph,
    GraphSettings,
    canvas_size,
    capture,
    check_parity,
    load_run,
    processor_settings,
    quantize_onnx,
    write_onnx,
)
from drmm_hf.export_graph import example_inputs
from drmm_hf.postprocessing import select_detections
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


@pytest.fixture(scope="module")
def onnx_file(captured, tmp_path_factory):
    """Model, graph and ONNX file of each decoder."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    model, graph, program = captured
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(program, path, graph.output_names)
    return model, graph, path


def test_onnxruntime_agrees_on_three_sizes_and_two_batches(onnx_file) -> None:
    model, graph, path = onnx_file
    found = list(check_parity(load_run(path, graph.output_names), DetectorGraph(model), GraphSettings(), (192, 256)))
    assert len(found) == 6
    assert max(d.largest for d in found) < 1e-4


def test_bytes_make_the_file_smaller_and_the_boxes_hardly_worse(onnx_file, tmp_path) -> None:
    model, graph, path = onnx_file
    copy = Path(shutil.copy(path, tmp_path))
    quantize_onnx(copy)
    assert copy.stat().st_size < path.stat().st_size
    run = load_run(copy, graph.output_names)
    for deviation in check_parity(run, DetectorGraph(model), GraphSettings(), (64, 96)):
        assert 0 < deviation.values["pred_boxes"] < 0.1


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"drmm-hf\[export\]"):
        quantize_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("top_k", [9, 1000])
def test_ranking_is_that_of_the_image_processor(top_k: int) -> None:
    model = small_model()
    graph = DetectorGraph(model, top_k)
    inputs = example_inputs(graph.input_names, 2, (64, 96))
    sizes = inputs["target_sizes"] = torch.tensor([[40, 60], [80, 20]])
    raw = DetectorGraph(model)(inputs["pixel_values"], inputs["pixel_mask"])
    outputs = dict(zip(("logits", "pred_boxes", "pred_scales"), raw, strict=True))
    expected = select_detections(outputs, threshold=-1.0, target_sizes=sizes, top_k=top_k)
    for i, values in enumerate(zip(*graph(**inputs), strict=True)):
        assert len(values[0]) == min(top_k, 12 * 3)  # fewer pairs than asked for are all kept
        for name, value in zip(("scores", "labels", "boxes", "scales"), values, strict=True):
            torch.testing.assert_close(value, expected[i][name], rtol=0, atol=0)


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
    "fields", [{"size": (100, 96)}, {"size": (0, 32)}, {"batch": 0}, {"top_k": -1}], ids=lambda fields: str(fields)
)
def test_settings_that_no_graph_can_have(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
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
    with pytest.raises(ValueError, match="--size"):
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
    "change", [{"size_divisor": 16}, {"do_pad": False}, {"pad_size": {"height": 100, "width": 96}}]
)
def test_a_processor_that_makes_other_sizes_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {next(iter(change))}"):
        processor_settings(DrmmImageProcessor(**change), GraphSettings())
