"""The numbers of docs/results/small-scale.md, ablations.md and anchors.md are those of the files beside them."""

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "docs/results"
FILES = sorted(path for page in ("small-scale", "anchors", "ablations") for path in (RESULTS / page).glob("*/*.json"))
KINDS = (("", ""), ("", "-30000"), ("scenes-", ""))
LENGTHS = {6000: ("", "adamixer"), 12000: ("sparse-rcnn", ""), 30000: ("sparse-rcnn-30000", "adamixer-30000")}
IN_WORDS = ("fig2", "fig7", "fig8", "duplicates")  # shown as pictures


def test_both_decoders_longer_trainings_and_generated_scenes_are_there() -> None:
    folders = {path.parent.name for path in FILES}
    assert folders == {f"{data}{d}{long}" for d in ("sparse-rcnn", "adamixer") for data, long in KINDS}


def test_the_lengths_of_training_are_those_of_their_files() -> None:
    page, readme = (RESULTS / "small-scale.md").read_text(), (RESULTS.parents[1] / "README.md").read_text()
    decoders = ("sparse-rcnn", "adamixer")
    short = read("ablations/adamixer/table11.json")
    values = {3000: [short[f"{d} {cell}"]["AP"] for d in decoders for cell in ("nll_mcm", "default")]}
    for images, names in LENGTHS.items():
        values[images] = [
            read(f"small-scale/{name}/table2.json")[cell]["AP"] if name else None
            for name in names
            for cell in ("nll_mcm", "set_prediction")
        ]
    for images, cells in values.items():
        if images in (3000, 30000):
            means = [f"{cell['mean']:.3f}" for cell in cells]
            assert f"{means[0]} against {means[1]}" in readme
            assert f"{means[2]} against {means[3]}" in readme
        shown = " ".join(f"| {_shown(list(c['seeds'].values()), c['mean'], c['std'])}" if c else "|" for c in cells)
        assert f"| {images:,} {shown} |" in page


@pytest.mark.parametrize("path", FILES, ids=lambda path: "-".join(path.with_suffix("").parts[-3:]))
def test_a_table_is_that_of_its_file(path: Path) -> None:
    page = path.parents[1].with_suffix(".md").read_text()
    if path.stem in IN_WORDS:
        assert path.with_suffix(".png").is_file()
        assert f"small-scale/{path.parent.name}/{path.stem}.png" in page or path.stem == "fig8"
        return
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for label, columns in json.loads(path.read_text())["rows"].items():
        values = [_shown(list(cell["seeds"].values()), cell["mean"], cell["std"]) for cell in columns.values()]
        assert any(row.startswith(f"| {label} |") and all(f"| {v} |" in row for v in values) for row in rows), label


def test_the_table_of_the_readme_has_the_means() -> None:
    readme = (RESULTS.parents[1] / "README.md").read_text().replace("**", "")
    labels = {"nll_mcm": "D-RMM", "nll": "likelihood alone, no MCM", "set_prediction": "Hungarian matching"}
    tables = [
        json.loads((RESULTS / f"small-scale/{d}/table2.json").read_text())["rows"] for d in ("sparse-rcnn", "adamixer")
    ]
    for cell, label in labels.items():
        means = [f"{rows[cell][name]['mean']:.3f}" for rows in tables for name in ("AP", "AR100", "ECE")]
        assert f"| {label} | {' | '.join(means)} |" in readme


def read(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())["rows"]


def _shown(seeds: list[float], mean: float, spread: float | None) -> str:
    return f"{mean:.3f} ± {spread:.3f}" if len(seeds) > 1 and spread else f"{mean:.3f}"
