"""Files: same values as the model for every size, ranked as the image processor ranks, axes with names."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.export import ExportedDetector, GraphSettings, export_detector, processor_settings
from drmm_hf.export_graph import DetectorGraph, deviations, example_inputs
from drmm_hf.postprocessing import select_detections
from drmm_hf.presets import preset_fields
from export_fixtures import DECODERS, assert_axes_have_names, spread_model
from model_fixtures import small_model

STAGES = [f"stage{i}" for i in range(1, 5)]
TINY_SWIN = {
    "backbone_config": preset_fields("drmm-sparse-rcnn-swin-t")["backbone_config"],
    "backbone_kwargs": {"strict_img_size": False, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1] * 4},
}
PLACES = [(batch, size) for size in ((64, 64), (96, 128), (192, 256)) for batch in (1, 2, 3)]


def written(folder: Path, model, **options) -> ExportedDetector:
    """What an export leaves, read again."""
    if options.get("format", "onnx") == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    export_detector(model, DrmmImageProcessor(), folder, **options)
    return ExportedDetector(folder)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("decoder", "format"), [("adamixer", "onnx"), ("adamixer", "torch_export"), ("sparse_rcnn", "torch_export")]
)
def test_a_file_agrees_on_sizes_and_batches(decoder: str, format: str, tmp_path: Path) -> None:
    model = spread_model(objectness=-14.0, **DECODERS[decoder])  # where a sigmoid in float32 resolves badly
    run, reference = written(tmp_path, model, format=format).run, DetectorGraph(model)
    for batch, size in PLACES:
        values = deviations(run, reference, batch, size)
        assert set(values) == {"logits", "pred_boxes", "pred_scales"}
        assert max(values.values()) < 1e-4, (batch, size)
    if format == "onnx":
        assert_axes_have_names(tmp_path)


def test_the_commands_file_agrees_on_sizes_and_batches(exported: Path, checkpoint: Path) -> None:
    """Sparse R-CNN as ONNX, with post-processing."""
    model = DrmmForObjectDetection.from_pretrained(checkpoint)
    run, reference = ExportedDetector(exported).run, DetectorGraph(model)
    for batch, size in PLACES:
        values = deviations(run, reference, batch, size, top_k=20)
        assert set(values) == {"scores", "boxes", "scales"}
        assert max(values.values()) < 1e-4, (batch, size)
    assert_axes_have_names(exported)


@pytest.mark.no_cover
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_checkpoint_in_half_precision_is_exported_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_model(num_stages=1).to(dtype)
    exported = written(tmp_path, model, format="torch_export", settings=GraphSettings(size=(64, 96)))
    assert max(deviations(exported.run, DetectorGraph(model), 2, (64, 96)).values()) < 1e-4
    assert model.dtype == dtype


def test_bytes_are_the_weights_of_linear_layers_and_the_boxes_hardly_worse(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, settings = spread_model(num_stages=1), GraphSettings(size=(64, 96), batch=2)
    exported = written(tmp_path, model, settings=settings, precision="int8")
    stored: Counter[int] = Counter()
    for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer:
        stored[tensor.data_type] += math.prod(tensor.dims)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert stored[onnx.TensorProto.INT8] > 0.9 * linear
    assert stored[onnx.TensorProto.FLOAT] < sum(p.numel() for p in model.parameters()) - 0.9 * linear
    assert 0 < deviations(exported.run, DetectorGraph(model), 2, (64, 96))["pred_boxes"] < 0.1
    assert_axes_have_names(tmp_path)


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


@pytest.mark.parametrize("top_k", [None, 10])
def test_a_deviation_is_seen(top_k: int | None) -> None:
    model = small_model().train()
    graph, reference = DetectorGraph(model, top_k), DetectorGraph(model)
    assert model.training, "the model is left as it was"
    assert model.config.isolate_images

    def shifted(inputs: dict) -> list[torch.Tensor]:
        names = zip(graph.output_names, graph(**inputs), strict=True)
        return [value + 1e-3 if "boxes" in name else value for name, value in names]

    assert max(deviations(lambda inputs: graph(**inputs), reference, 2, (64, 64), top_k).values()) < 1e-6
    values = deviations(shifted, reference, 2, (64, 64), top_k)
    assert values["boxes" if top_k else "pred_boxes"] == pytest.approx(1e-3, rel=0.01)


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
        TINY_SWIN,
    ],
    ids=["no stated strides", "windows"],
)
def test_a_backbone_that_needs_a_fixed_size(fields: dict, tmp_path: Path) -> None:
    model = small_model(**{"backbone_kwargs": {}, "frozen_stages": 0, **fields})
    with pytest.raises(ValueError, match="--size"):
        written(tmp_path, model, format="torch_export")


@pytest.mark.slow
def test_windows_of_a_fixed_size(tmp_path: Path) -> None:
    model, settings = small_model(**TINY_SWIN, frozen_stages=0), GraphSettings(size=(96, 128))
    exported = written(tmp_path, model, format="torch_export", settings=settings)
    assert max(deviations(exported.run, DetectorGraph(model), 2, (96, 128)).values()) < 1e-4


def test_the_processor_of_a_fixed_size_fits_and_pads() -> None:
    fields = processor_settings(DrmmImageProcessor(), GraphSettings(size=(96, 160)))
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    inputs = DrmmImageProcessor.from_dict(fields)(image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 160)
    assert inputs["pixel_mask"].sum() == 96 * 128


@pytest.mark.parametrize(
    "change", [{"size_divisor": 16}, {"do_pad": False}, {"pad_size": {"height": 100, "width": 96}}]
)
def test_a_processor_that_makes_other_sizes_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config.json: {next(iter(change))}"):
        processor_settings(DrmmImageProcessor(**change), GraphSettings())
