"""The command, and the page that it makes of the json files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark import main
from benchmarks import loss
from benchmarks.measure import table
from benchmarks.page import suite_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def timing(*seconds: float, cpu: float = 1.0) -> dict[str, list[float]]:
    return {"wall": list(seconds), "cpu": [cpu * s for s in seconds], "device": []}


def small_table() -> dict[str, Any]:
    timings = {
        "ours": timing(0.001, 0.002, 0.003),
        "theirs": timing(0.004, 0.004, 0.006, cpu=2.0),
        "elsewhere": {"wall": [], "cpu": [0.5, 1.0, 1.5], "device": []},
    }
    extra = {"ours": {"peak (MB)": 12.345}, "theirs": {"syncs": 3}}
    return table("Loss", "What.", timings, extra, base="ours", comparisons=[("theirs / ours", "theirs", "ours")])


def test_table_has_medians_spreads_and_the_ratio_of_its_clock() -> None:
    lines = suite_table(small_table(), "wall").splitlines()
    assert lines[0] == "|  | wall (ms) | CPU (ms) | ratio | peak (MB) | syncs |"
    assert lines[2] == "| ours | 2.00 (1.00, 3.00) | 2.00 (1.00, 3.00) | 1 | 12.3 |  |"
    assert lines[3] == "| theirs | 4.00 (4.00, 6.00) | 8.00 (8.00, 12.0) | 2.00 |  | 3 |"
    assert lines[4] == "| elsewhere |  | 1,000 (500, 1,500) | 500.00 |  |  |"
    assert "| 4.00 |" in suite_table(small_table(), "cpu").splitlines()[3]


def test_the_page_of_the_documentation_is_that_of_its_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shutil.copytree(RESULTS / "speed", tmp_path / "speed")
    assert main(["--output", str(tmp_path / "speed"), "--page", str(tmp_path / "speed.md")]) == 0
    assert (tmp_path / "speed.md").read_text() == (RESULTS / "speed.md").read_text()


def test_command_writes_json_page_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    sizes = {"batch": 2, "proposals": 10, "stages": 2, "sweep_proposals": (10, 20), "sweep_batch": (2, 3)}
    monkeypatch.setattr(loss, "QUICK", sizes)
    page = tmp_path / "page.md"
    threads = torch.get_num_threads()
    arguments = ["loss", "--output", str(tmp_path / "runs"), "--page", str(page), "--quick", "--rounds", "2"]
    assert main([*arguments, "--threads", "1"]) == 0
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "runs/loss.json").read_text())["environment"]["threads"] == 1
    text = page.read_text()
    assert "python scripts/benchmark.py loss --output DIR --rounds 2 --threads 1 --quick" in text
    assert "![Curves of the suite loss](runs/loss.png)" in text
    assert (tmp_path / "runs/loss.png").stat().st_size > 5000
    page.unlink()
    assert main(["--output", str(tmp_path / "runs"), "--page", str(page)]) == 0  # only renders
    assert page.read_text() == text
    assert capsys.readouterr().out.splitlines()[0] == "loss ..."


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["los"], "'los'"),
        (["loss", "--device", "tpu9"], "tpu9"),
        (["loss", "--device", "meta"], "meta"),
        (["loss", "--device", "cuda:99"], "cuda:99"),
        (["loss", "--page", "no/such/folder/speed.md"], "no/such/folder/speed.md"),
        ([], "no results"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], named: str, tmp_path: Path, capsys) -> None:
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"suite": "loss"}', '{"tables": [{"rows": {}}]}'])
def test_a_foreign_json_is_named(content: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.json").write_text(content)
    assert main(["--output", str(tmp_path)]) == 2
    assert "x.json" in capsys.readouterr().err
