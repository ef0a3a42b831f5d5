"""Small detectors whose scores spread, and one that is exported once for all tests."""

import contextlib
import io
from pathlib import Path

import pytest
import torch

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import main
from model_fixtures import small_model

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    spread_model().save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory) -> Path:
    """The folder of an ONNX export with post-processing; beside it `printed.txt`, what the command printed."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    folder = tmp_path_factory.mktemp("exported") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(
            ["export", str(checkpoint), str(folder), "--format", "onnx", "--with-postprocessing", "--top-k", "20"]
        )
    assert status == 0, printed.getvalue()
    (folder.parent / "printed.txt").write_text(printed.getvalue())
    return folder
