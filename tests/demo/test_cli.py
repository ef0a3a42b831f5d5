"""The command: what it refuses, which report it takes, and the page of documentation."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from drmm_hf.cli import main
from drmm_hf.commands import demo as command
from drmm_hf.data.scenes import CATEGORIES
from drmm_hf.demo import example_scenes

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys, checkpoint: Path) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--checkpoint", str(checkpoint)]) == 2
    assert "drmm-hf[demo]" in last_line(capsys)


def test_checkpoint_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv(command.CHECKPOINT, raising=False)
    assert main(["demo"]) == 2
    assert "--checkpoint" in last_line(capsys)


@pytest.mark.parametrize("port", ["0", "65536"])
def test_port_out_of_range(port: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--checkpoint", "x", "--port", port])
    assert "--port" in capsys.readouterr().err


def test_taken_port_is_one_line(capsys, checkpoint: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert main(["demo", "--checkpoint", str(checkpoint), "--device", "cpu", "--port", port]) == 2
    assert port in last_line(capsys)


def test_report_beside_the_weights_is_found(tmp_path: Path, report: dict) -> None:
    assert command.find_report(None, str(tmp_path), ["disc"]) is None
    (tmp_path / "analysis.json").write_text(json.dumps(report))
    found = command.find_report(None, str(tmp_path), ["disc"])
    assert found is not None
    assert found.images == 7
    assert command.find_report(None, "someone/not-in-the-cache", list(CATEGORIES)) is None


def test_a_space_takes_its_checkpoint_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    [app] = [code for code in SNIPPETS if "main([" in code]
    monkeypatch.setenv(command.CHECKPOINT, str(tmp_path / "none"))
    monkeypatch.setattr(command, "require", lambda *_: None)
    with pytest.raises(SystemExit, match="2"):
        exec(compile(app, "app.py", "exec"), {})
    assert "none" in capsys.readouterr().err


def test_the_functions_are_used_as_the_page_says(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, report: dict, capsys
) -> None:
    report["checkpoints"][0]["thresholds"]["per_class"] = {name: {"score_threshold": 0.4} for name in CATEGORIES}
    for folder in ("runs/quickstart", "runs/report"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/quickstart/model").symlink_to(checkpoint)
    (tmp_path / "runs/report/analysis.json").write_text(json.dumps(report))
    example_scenes(CATEGORIES, 1)[0].save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    [code] = [code for code in SNIPPETS if "show(" in code]
    exec(compile(code, "demo.md", "exec"), {})
    assert (tmp_path / "seen.png").stat().st_size > 0
    assert "expected precision" in capsys.readouterr().out
