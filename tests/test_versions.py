"""The parts of `make test-matrix` that need no installation."""

from matrix import requirements


def test_lowest_versions_are_those_of_the_bounds() -> None:
    lowest, newest = requirements(lowest=True), requirements(lowest=False)
    assert len(lowest) == len(newest)
    pinned = dict(entry.split("==") for entry in lowest if "==" in entry)
    bounds = dict(entry.split(">=") for entry in newest if ">=" in entry)
    assert {name: version.removesuffix(".*") for name, version in pinned.items()} == bounds
