"""Small detectors whose scores spread, to export, and the names of a file's axes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from drmm_hf import DrmmForObjectDetection
from model_fixtures import small_model

WITH_ONNX = pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="the extra `export` is not installed")
DECODERS = {"sparse_rcnn": {}, "adamixer": {"decoder": "adamixer", "num_sampling_points": 8, "num_mixing_points": 8}}


def spread_model(objectness: float = 0.0, **overrides) -> DrmmForObjectDetection:
    """Random weights; boxes and scales move, and the objectness logits spread around `objectness`."""
    model = small_model(**overrides).eval()
    with torch.no_grad():
        for head in model.model.heads:
            head.box.weight.normal_(std=0.2)
            head.classifier.weight.mul_(2)
            head.objectness.weight.mul_(2)
            head.objectness.bias.fill_(objectness)
    return model


def assert_axes_have_names(folder: Path) -> None:
    """Of the inputs and outputs of an ONNX file of such a detector, as export.json beside it describes them."""
    import onnx  # an extra

    described = json.loads((folder / "export.json").read_text())
    graph = onnx.load(folder / "model.onnx").graph

    def axes(values) -> dict[str, list]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    batch = "batch" if described["batch"] == "dynamic" else described["batch"]
    height, width = ("height", "width") if described["size"] == "dynamic" else described["size"]
    n, expected = described["top_k"], {"pixel_values": [batch, 3, height, width], "pixel_mask": [batch, height, width]}
    assert axes(graph.input) == expected | ({"target_sizes": [batch, 2]} if n else {})
    assert [value.name for value in graph.input] == described["inputs"]
    ranked = {"scores": [batch, n], "labels": [batch, n], "boxes": [batch, n, 4], "scales": [batch, n, 4]}
    raw = {"logits": [batch, 12, 3], "pred_boxes": [batch, 12, 4], "pred_scales": [batch, 12, 4]}
    assert axes(graph.output) == (ranked if n else raw)
