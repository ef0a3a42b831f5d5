"""A disk that gets full: one line, and no file that looks finished but is not.

The disk is a limit of the size of files: the system refuses the write that would exceed it, in any library.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from drmm_hf.conversion.cli import main as convert
from faults.command import Command

FULL = "File too large|No space left"


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file grows beyond this number of bytes; Python ignores the signal, so that the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails(commands, name: str, output: Path, limit: int, capsys, *more: str) -> str:
    with file_limit(limit):
        status = commands[name].run(output, *more)
    captured = capsys.readouterr()
    assert status == 2
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert any(text in lines[0] for text in FULL.split("|")), lines[0]
    return lines[0]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("limit", [500, 2500])
@pytest.mark.parametrize(("name", "last"), [("evaluate", "metrics.json"), ("predict", "predictions.json")])
def test_detections_go_on_when_there_is_room_again(commands, tmp_path: Path, capsys, name, last, limit) -> None:
    """The limits are reached in the first batch, and later."""
    assert commands[name].run(tmp_path / "whole") == 0
    assert str(tmp_path / "cut") in fails(commands, name, tmp_path / "cut", limit, capsys)
    assert not (tmp_path / "cut" / last).exists()
    assert commands[name].run(tmp_path / "cut", "--resume") == 0
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    assert cut == whole


def test_an_earlier_result_stays_whole(commands, tmp_path: Path, capsys) -> None:
    assert commands["evaluate"].run(tmp_path) == 0
    before = files(tmp_path)
    fails(commands, "evaluate", tmp_path, 4000, capsys)
    assert {name: files(tmp_path)[name] for name in before} == before


@pytest.mark.parametrize("limit", [100, 1000, 20_000])
def test_an_analysis(commands, tmp_path: Path, capsys, limit: int) -> None:
    assert str(tmp_path / "cut") in fails(commands, "analyze", tmp_path / "cut", limit, capsys)
    assert not (tmp_path / "cut" / "report.html").exists()
    assert commands["analyze"].run(tmp_path / "cut", "--reuse") == 0


@pytest.mark.parametrize(
    ("name", "limit"), [("convert", 10), ("convert", 20_000), pytest.param("export", 20_000, marks=pytest.mark.slow)]
)
def test_weights(commands, tmp_path: Path, capsys, name: str, limit: int) -> None:
    """The checkpoints of a training are in tests/training/test_resume.py."""
    assert str(tmp_path / "cut") in fails(commands, name, tmp_path / "cut", limit, capsys)
    assert commands[name].run(tmp_path / "cut") == 0


def test_released_weights(model: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "released.pth"
    reverse = Command(convert, ["--reverse", str(model)], "")
    assert str(output) in fails({"reverse": reverse}, "reverse", output, 20_000, capsys)
    assert reverse.run(output) == 0
