"""The parts of `make test-matrix` that need no installation."""

from matrix import put_table, requirements


def test_a_new_table_takes_the_place_of_the_old_one() -> None:
    old = "before\n| a | b |\n|---|---|\n| 1 | 2 |\n\nafter\n| c |\n"
    assert put_table(old, ["| a | b |", "|---|---|", "| 3 | 4 |"]) == old.replace("| 1 | 2 |", "| 3 | 4 |")


def test_lowest_versions_are_those_of_the_bounds() -> None:
    lowest, newest = requirements(lowest=True), requirements(lowest=False)
    assert len(lowest) == len(newest)
    pinned = dict(entry.split("==") for entry in lowest if "==" in entry)
    bounds = dict(entry.split(">=") for entry in newest if ">=" in entry)
    assert {name: version.removesuffix(".*") for name, version in pinned.items()} == bounds
