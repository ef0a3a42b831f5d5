"""The command: what it refuses, and which report it takes."""

import builtins
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from demo.reports import report
from drmm_hf.data.scene_shapes import CATEGORIES
from drmm_hf.demo import cli, main


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    real = builtins.__import__

    def without_gradio(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "gradio":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_gradio)
    assert main(["--checkpoint", str(checkpoint)]) == 2
    assert last_line(capsys) == "error: the demo needs gradio: pip install 'drmm-hf[demo]'"


def test_checkpoint_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(cli.CHECKPOINT, raising=False)
    assert main([]) == 2
    assert last_line(capsys) == "error: --checkpoint is missing: give a folder or a Hub id, or set DRMM_CHECKPOINT"


def test_checkpoint_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    monkeypatch.setenv(cli.CHECKPOINT, str(tmp_path / "nothing"))
    assert main([]) == 2
    assert "nothing: no such model folder" in last_line(capsys)


@pytest.mark.parametrize("port", ["0", "65536"])
def test_port_out_of_range(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--checkpoint", "x", "--port", port])
    assert "must lie in 1..65535" in capsys.readouterr().err


def test_taken_port_is_one_line(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert main(["--checkpoint", str(checkpoint), "--device", "cpu", "--port", port]) == 2
    line = last_line(capsys)
    assert line.startswith("error: ")
    assert port in line


def test_report_beside_the_weights_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._measured(None, str(tmp_path), ["disc"]) is None
    assert "no report" in capsys.readouterr().out
    (tmp_path / "analysis.json").write_text(json.dumps(report()))
    found = cli._measured(None, str(tmp_path), ["disc"])
    assert found is not None
    assert found.images == 7
    assert cli._measured(None, "someone/not-in-the-cache", list(CATEGORIES)) is None
