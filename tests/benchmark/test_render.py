from pathlib import Path

import pytest

from drmm_hf.benchmark.render import command, render, table_lines
from drmm_hf.benchmark.results import Figure, Row, Settings, Suite, Table, write_suite
from drmm_hf.benchmark.timing import Timing


def timing(*seconds: float, cpu: float = 1.0) -> Timing:
    return Timing(wall=list(seconds), cpu=[cpu * s for s in seconds])


def make_table() -> Table:
    rows = {
        "ours": Row(timing(0.001, 0.002, 0.003), {"peak (MB)": 12.345}),
        "theirs": Row(timing(0.004, 0.004, 0.006, cpu=2.0), {"syncs": 3}),
        "elsewhere": Row(Timing(cpu=[0.5, 1.0, 1.5])),
    }
    return Table("Loss", "What it is.", rows, base="ours", comparisons=[("theirs / ours", "theirs", "ours")])


def test_table_has_medians_spreads_and_the_ratio_of_its_clock() -> None:
    lines = list(table_lines(make_table(), "wall"))
    assert lines[0] == "|  | wall (ms) | CPU (ms) | ratio | peak (MB) | syncs |"
    assert lines[2] == "| ours | 2.00 (1.00, 3.00) | 2.00 (1.00, 3.00) | 1 | 12.3 |  |"
    assert lines[3] == "| theirs | 4.00 (4.00, 6.00) | 8.00 (8.00, 12.0) | 2.00 |  | 3 |"
    assert lines[4] == "| elsewhere |  | 1,000 (500, 1,500) | 500.00 |  |  |"
    assert "| 4.00 |" in list(table_lines(make_table(), "cpu"))[3]


def test_page_has_every_suite_in_order_with_its_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = Figure("Cost", "K", "ms", {"a": [(1.0, 1.0), (2.0, 4.0)], "one point": [(1.0, 1.0)]})
    write_suite(tmp_path / "zoo.json", "zoo", Suite([make_table()]), Settings(rounds=3))
    write_suite(tmp_path / "scaling.json", "scaling", Suite([make_table()], [figure]), Settings(threads=2, rounds=3))
    render(tmp_path, tmp_path / "speed.md")
    text = (tmp_path / "speed.md").read_text()
    assert text.index("Suite `scaling`") < text.index("Suite `zoo`")
    assert "    python scripts/benchmark.py zoo --output DIR --rounds 3 --threads 1" in text
    assert "| theirs / ours | 2.00 (2.00, 4.00) | 4.00 (4.00, 8.00) |" in text
    assert "| Cost: a | 2.00 |" in text
    assert "Cost: one point" not in text
    assert "![Curves of the suite scaling](scaling.png)" in text
    sections = dict(zip(("head", "scaling", "zoo"), text.split("## Suite"), strict=True))
    assert "| theirs | 4.00 (4.00, 6.00) | 8.00 (8.00, 12.0) | 4.00 |" in sections["zoo"]  # one thread: CPU time
    assert "| theirs | 4.00 (4.00, 6.00) | 8.00 (8.00, 12.0) | 2.00 |" in sections["scaling"]  # two: by the clock


def test_command_names_device_and_flags() -> None:
    environment = {"device": "cuda:0", "threads": 1, "rounds": 5, "quick": True, "compile": True}
    expected = "python scripts/benchmark.py loss --output DIR --rounds 5 --device cuda:0 --quick --compile"
    assert command("loss", environment) == expected


def test_a_comparison_without_times_is_an_error(tmp_path: Path) -> None:
    table = make_table()
    table.rows["ours"].timing = None
    write_suite(tmp_path / "loss.json", "loss", Suite([table]), Settings())
    with pytest.raises(ValueError, match="Loss: theirs and ours are compared, but have no times"):
        render(tmp_path, tmp_path / "speed.md")
