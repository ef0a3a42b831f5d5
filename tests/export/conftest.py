"""A checkpoint, and its export that is made once for all tests."""

import contextlib
import io
from pathlib import Path

import pytest

from drmm_hf import DrmmImageProcessor
from drmm_hf.cli import main
from export_fixtures import spread_model
from model_fixtures import save_small


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    spread_model().save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def short_checkpoint(tmp_path_factory) -> str:
    """Of one stage, for what does not depend on their number: exporting costs seconds a stage."""
    return save_small(tmp_path_factory.mktemp("short"), num_stages=1)


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
