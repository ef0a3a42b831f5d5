"""ONNX files in onnxruntime: both decoders agree with eager; bytes in the place of weights; a missing extra."""

import shutil
import sys
from pathlib import Path

import pytest

from drmm_hf.export import DetectorGraph, GraphSettings, check_parity, load_run, quantize_onnx, write_onnx
from drmm_hf.export.onnx_file import require_onnx


@pytest.fixture(scope="session")
def written(captured, tmp_path_factory):
    """Model, graph and ONNX file of each decoder."""
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    model, graph, program = captured
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(program, path, graph.output_names)
    return model, graph, path


def test_onnxruntime_agrees_on_three_sizes_and_two_batches(written) -> None:
    model, graph, path = written
    found = list(check_parity(load_run(path, graph.output_names), DetectorGraph(model), GraphSettings(), (192, 256)))
    assert len(found) == 6
    assert max(d.largest for d in found) < 1e-4


def test_bytes_make_the_file_smaller_and_the_boxes_hardly_worse(written, tmp_path) -> None:
    model, graph, path = written
    copy = Path(shutil.copy(path, tmp_path))
    quantize_onnx(copy)
    assert copy.stat().st_size < path.stat().st_size
    run = load_run(copy, graph.output_names)
    for deviation in check_parity(run, DetectorGraph(model), GraphSettings(), (64, 96)):
        assert 0 < deviation.values["pred_boxes"] < 0.1


def test_an_opset_out_of_range_is_refused(written, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"opset is 11: give one of 18\.\."):
        write_onnx(None, tmp_path / "model.onnx", [], opset=11)


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*pip install 'drmm-hf\[export\]'"):
        require_onnx()
