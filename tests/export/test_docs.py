"""The commands and the snippets of docs/export.md work as they stand there."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from drmm_hf.commands.export import parser

TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
COMMANDS = [
    line.split(" #")[0] for line in re.findall(r"^ {4}python scripts/export\.py (.+)$", TEXT, flags=re.MULTILINE)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_understood(command: str) -> None:
    arguments = parser().parse_args(shlex.split(command))
    assert arguments.checkpoint in ("CHECKPOINT", "runs/bccd-30000-0/model")


@pytest.mark.slow
def test_the_snippets_run(checkpoint: Path, sparse_rcnn_program, tmp_path: Path, monkeypatch) -> None:
    load, write = re.findall(r"^```python\n(.+?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    torch.export.save(sparse_rcnn_program, tmp_path / "exported/model.pt2")
    names: dict = {}
    exec(load, names)
    assert names["pred_boxes"].shape == (1, 12, 4)
    (tmp_path / "CHECKPOINT").symlink_to(checkpoint)
    exec(write, {})
    assert '"top_k": 50' in (tmp_path / "exported/export.json").read_text()
