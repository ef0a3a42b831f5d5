"""Folders that cannot be written to: each command says so in one line and leaves what is there."""

import os
from pathlib import Path

import pytest

NAMES = ("evaluate", "predict", "analyze", "train", "export", "convert")
# Not even root can make a folder there.
UNWRITABLE = Path("/sys/kernel")


def refusal(commands, name: str, output: Path, capsys) -> str:
    """The one line of a command that cannot write to `output`."""
    assert commands[name].run(output) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in captured.err
    assert captured.err.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_way(commands, tmp_path: Path, capsys, name: str) -> None:
    output = tmp_path / "out"
    output.write_text("kept")
    assert str(output) in refusal(commands, name, output, capsys)
    assert output.read_text() == "kept"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_way_of_the_folder_above(commands, tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / "file").write_text("kept")
    assert str(tmp_path / "file") in refusal(commands, name, tmp_path / "file" / "out", capsys)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not UNWRITABLE.is_dir(), reason="needs Linux's /sys")
@pytest.mark.parametrize("name", NAMES)
def test_a_place_where_nothing_can_be_written(commands, capsys, name: str) -> None:
    output = UNWRITABLE / "drmm-hf-test"
    assert str(output) in refusal(commands, name, output, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_folder(commands, tmp_path: Path, capsys, name: str) -> None:
    output = tmp_path / "out"
    output.mkdir(mode=0o555)
    assert str(output) in refusal(commands, name, output, capsys)
    assert not list(output.iterdir())
