"""The tables of the versions that were run, which `make test-matrix` writes."""

from matrix import ROOT, put_table, requirements

PAGE, README = ROOT / "docs/results/compatibility.md", ROOT / "README.md"


def table_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("| Python |", "| 3."))]


def test_the_readme_has_the_table_of_the_page() -> None:
    assert len(table_of(PAGE.read_text())) > 1
    assert table_of(README.read_text()) == table_of(PAGE.read_text())


def test_nothing_failed() -> None:
    rows = table_of(PAGE.read_text())[1:]
    assert all("failed" not in row and "error" not in row for row in rows)
    assert any(" lowest " in row and "passed" in row for row in rows)


def test_a_new_table_takes_the_place_of_the_old_one() -> None:
    old = "before\n| a | b |\n|---|---|\n| 1 | 2 |\n\nafter\n| c |\n"
    assert put_table(old, ["| a | b |", "|---|---|", "| 3 | 4 |"]) == old.replace("| 1 | 2 |", "| 3 | 4 |")


def test_lowest_versions_are_those_of_the_bounds() -> None:
    lowest, newest = requirements(lowest=True), requirements(lowest=False)
    assert len(lowest) == len(newest)
    pinned = dict(entry.split("==") for entry in lowest if "==" in entry)
    bounds = dict(entry.split(">=") for entry in newest if ">=" in entry)
    assert {name: version.removesuffix(".*") for name, version in pinned.items()} == bounds
