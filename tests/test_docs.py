"""The numbers and the commands of the documentation."""

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from drmm_hf.reproduction.tables import TABLES

ROOT = Path(__file__).parents[1]
BCCD = ROOT / "docs" / "results" / "bccd"
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
COLUMNS = ("AP", "AP50", "AP75", "AR100", "ECE", "D-ECE")


def measured(images: int) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(BCCD.glob(f"{images}-seed*.json"))]


@pytest.mark.parametrize("document", ["README.md", "docs/results/bccd.md"])
@pytest.mark.parametrize("images", [12000, 30000])
def test_the_bccd_table_is_the_mean_of_the_committed_runs(document: str, images: int) -> None:
    runs = measured(images)
    assert all(run["train_images"] == images for run in runs)
    row = next(line for line in (ROOT / document).read_text().splitlines() if line.startswith(f"| {images:,} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    means = [sum(run[name] for run in runs) / len(runs) for name in COLUMNS]
    assert cells[1:] == [str(len(runs)), *(f"{mean:.3f}" for mean in means)]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results/objectives").glob("*.json")), ids=lambda path: path.stem)
def test_the_objectives_tables_are_the_committed_runs(path: Path) -> None:
    run = json.loads(path.read_text())
    text = (ROOT / "docs/results/objectives.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {path.stem} |"))
    names = ["AP", "AP50", "AR100", "ECE", "duplicates_per_image", "AP_nms_0.7", "AP_winner_takes_all_0.7"]
    names.append("mcm_last_stage")
    cells = [float(cell) for cell in row.strip("|").split("|")[1:]]
    assert cells == pytest.approx([run[name] for name in names], abs=0.00055, rel=1e-3)


@pytest.mark.parametrize(
    "path",
    [path for page in ("adamixer", "finetune") for path in sorted((ROOT / "docs/results" / page).glob("*.json"))],
)
def test_the_tables_of_single_runs_are_the_committed_runs(path: Path) -> None:
    run = json.loads(path.read_text())
    text = path.parent.with_suffix(".md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {path.stem} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [f"{run[name]:.3f}" for name in ("AP", "AP50", "AP75", "AR100", "ECE")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (folder / target).exists(), f"{document} links to {target}"
    for name in re.findall(r"`((?:tests|scripts|docs|src)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{document} names {name}"


def test_names_of_the_map_from_the_paper_to_the_code_exist() -> None:
    """Functions, classes, fields and commands that docs/equations.md names."""
    text = (ROOT / "docs/equations.md").read_text()
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    names |= {part for row in rows for name in re.findall(r"`(Drmm\w+\.\w+)`", row) for part in name.split(".")}
    assert len(names) > 30
    # min_sc_ratio is the name in the released code
    for name in sorted(names - set(TABLES) - {"min_sc_ratio"}):
        assert re.search(rf"\b(def|class) {name}\b|\b{name}: |\"{name}\"", sources), f"docs/equations.md names {name}"


def test_the_map_names_every_table_and_figure_of_the_paper() -> None:
    """Tables 1 to 11 and Figures 1 to 15 have a row, and so has every command of scripts/reproduce.py."""
    text = (ROOT / "docs/equations.md").read_text()
    first = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    for kind, last in (("Table", 11), ("Fig", 15)):
        groups = [group for cell in first for group in re.findall(rf"{kind}s?\.? ((?:\d+(?:, )?)+)", cell)]
        assert {int(number) for group in groups for number in group.rstrip(", ").split(", ")} == {*range(1, last + 1)}
    commands = set(re.findall(r"`((?:table|fig)\d+)`", text))
    assert commands == {name for name, table in TABLES.items() if table.source != "not in the paper"}


@pytest.mark.parametrize("module", ["", ".conversion", ".data", ".evaluation", ".export", ".hub", ".training"])
def test_every_public_name_has_a_docstring(module: str) -> None:
    package = importlib.import_module(f"drmm_hf{module}")
    assert package.__doc__
    for name in package.__all__:
        value = getattr(package, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue  # a constant
        text = inspect.getdoc(value) or ""
        # a dataclass without a docstring gets its signature as one
        assert text, f"drmm_hf{module}.{name}"
        assert not text.startswith(f"{name}("), f"drmm_hf{module}.{name}"
