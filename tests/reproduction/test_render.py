"""Markdown and JSON from made-up values, and the choice of a learning rate."""

import json
from pathlib import Path

import pytest

from drmm_hf.training import TrainConfig
from reproduction import measurements
from reproduction.measurements import measure_table
from reproduction.render import to_markdown, to_plain_values
from reproduction.runs import find_runs, saved_settings
from reproduction.tables import TABLES, Cell, Context, Measured, Run, Table

HEADER = {"command": "python scripts/reproduce.py t", "data": "FOLDER"}


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


def measured(tmp_path: Path, *runs: tuple[str, int, float, float | None]) -> Measured:
    return measure_table(one_table(), [a_run(tmp_path, *run) for run in runs], Context(None, "small"))


def test_mean_spread_and_the_papers_column(tmp_path: Path) -> None:
    table = measured(tmp_path, ("a", 0, 1e-3, 0.5), ("a", 1, 1e-3, 0.6), ("b", 0, 1e-3, 0.25))
    lines = to_markdown(one_table(), table, HEADER, ["one more"]).splitlines()
    assert lines[0] == "# What it shows (Table 0)"
    assert "    python scripts/reproduce.py t" in lines
    assert "|  | AP | AP, paper (COCO) |" in lines
    assert "| with | 0.550 ± 0.071 | 0.470 |" in lines
    assert "| without | 0.250 | – |" in lines
    assert "- Mean ± standard deviation over the seeds: a 2, b 1." in lines
    assert lines[-2:] == ["- a note", "- one more"]


def test_json_has_every_seed(tmp_path: Path) -> None:
    table = measured(tmp_path, ("a", 0, 1e-3, 0.5), ("a", 1, 1e-3, 0.6), ("b", 0, 1e-3, None))
    plain = json.loads(json.dumps(to_plain_values(one_table(), table, HEADER, []), allow_nan=False))
    assert plain["rows"]["with"]["AP"]["seeds"] == {"0": 0.5, "1": 0.6}
    assert plain["rows"]["with"]["AP"]["mean"] == pytest.approx(0.55)
    assert plain["rows"]["with"]["AP"]["std"] == pytest.approx(0.05 * 2**0.5)
    assert plain["rows"]["without"]["AP"] == {"mean": None, "std": None, "seeds": {}}
    assert plain["paper (COCO)"] == {"with": {"AP": 0.47}}
    assert [run["cell"] for run in plain["runs"]] == ["a", "a", "b"]


def test_the_best_learning_rate_of_each_cell_is_shown_with_all(tmp_path: Path) -> None:
    table = measured(
        tmp_path,
        ("a", 0, 1e-3, 0.3),
        ("a", 1, 1e-3, 0.5),
        ("a", 0, 2e-3, 0.5),
        ("a", 1, 2e-3, 0.4),
        ("b", 0, 1e-3, 0.2),
    )
    assert table.values["with"]["AP"] == {0: 0.5, 1: 0.4}
    text = to_markdown(one_table(), table, HEADER, [])
    assert "| a | 0.400 ± 0.141 | **0.450 ± 0.071** |" in text
    assert "chosen on the same evaluation split" in text


def test_of_two_equal_learning_rates_the_smaller_one_counts(tmp_path: Path) -> None:
    table = measured(tmp_path, ("a", 0, 2e-3, 0.4), ("a", 0, 1e-3, 0.4))
    assert [run.learning_rate for run in table.runs] == [1e-3]


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
