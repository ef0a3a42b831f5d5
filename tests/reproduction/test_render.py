"""Markdown and JSON from made-up values, and the choice of a learning rate."""

import json
from pathlib import Path

import pytest

from drmm_hf.training import TrainConfig
from markdown_table import PAPER
from reproduction import measurements
from reproduction.measurements import measure_table
from reproduction.render import to_markdown
from reproduction.runs import find_runs, saved_settings
from reproduction.tables import TABLES, Cell, Context, Run, Table


@pytest.fixture(autouse=True)
def measure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"one": lambda run, context: {run.cell.label: {"AP": run.metric("AP")}}}
    monkeypatch.setattr(measurements, "MEASURES", found)


def one_table() -> Table:
    cells = (Cell("a", "with"), Cell("b", "without"))
    return Table("t", "what it shows", "Table 0", "one", {"small": cells}, {"with": {"AP": 0.47}}, ("a note",))


def a_run(folder: Path, name: str, seed: int, rate: float, ap: float | None) -> Run:
    path = folder / f"{name}-{rate}-{seed}"
    path.mkdir()
    (path / "metrics.json").write_text(json.dumps({"AP": ap}))
    return Run(Cell(name, "label of another table"), seed, rate, path, "drmm-sparse-rcnn-tiny")


def measured(tmp_path: Path, *runs: tuple[str, int, float, float | None]) -> dict:
    table = one_table()
    content = measure_table(table, [a_run(tmp_path, *run) for run in runs], Context(None, "small"))
    header = {"title": table.title, "source": table.source, "command": "python scripts/reproduce.py t"}
    header |= {"data": "FOLDER", "training": "none", "machine": "one", "notes": ["a note"]}
    return {**header, **content, PAPER: table.paper}


def test_mean_spread_and_the_papers_column(tmp_path: Path) -> None:
    content = measured(tmp_path, ("a", 0, 1e-3, 0.5), ("a", 1, 1e-3, 0.6), ("b", 0, 1e-3, None), ("b", 1, 1e-3, 0.25))
    cell = content["rows"]["with"]["AP"]
    assert cell == {"mean": 0.55, "std": pytest.approx(0.05 * 2**0.5), "seeds": {"0": 0.5, "1": 0.6}}
    assert content["rows"]["without"]["AP"] == {"mean": 0.25, "std": None, "seeds": {"1": 0.25}}
    lines = to_markdown(content).splitlines()
    assert lines[0] == "# What it shows (Table 0)"
    assert "    python scripts/reproduce.py t" in lines
    assert "|  | AP | AP, paper (COCO) |" in lines
    assert "| with | 0.550 ± 0.071 | 0.470 |" in lines
    assert "| without | 0.250 | – |" in lines
    assert lines[-2:] == ["- Mean ± standard deviation over 2 seeds.", "- a note"]


def test_the_best_learning_rate_of_each_cell_is_shown_with_all(tmp_path: Path) -> None:
    runs = (("a", 0, 1e-3, 0.3), ("a", 1, 1e-3, 0.5), ("a", 0, 2e-3, 0.5), ("a", 1, 2e-3, 0.4), ("b", 0, 1e-3, 0.2))
    content = measured(tmp_path, *runs)
    assert content["rows"]["with"]["AP"]["seeds"] == {"0": 0.5, "1": 0.4}
    assert "| a | 0.400 ± 0.141 | **0.450 ± 0.071** |" in to_markdown(content)


def test_of_two_equal_learning_rates_the_smaller_one_counts(tmp_path: Path) -> None:
    content = measured(tmp_path, ("a", 0, 2e-3, 0.4), ("a", 0, 1e-3, 0.4))
    assert [run["learning_rate"] for run in content["runs"]] == [1e-3]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    base = [TrainConfig(data="x", train_images=1)]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_runs([TABLES["table3"]], base, scale="small", folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="table3"):
        find_runs([TABLES["table3"]], base, scale="small", folder=tmp_path)


def test_a_damaged_recipe_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        saved_settings(tmp_path)
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        saved_settings(tmp_path)
