"""The numbers and the commands of the documentation."""

import json
import re
import shlex
from pathlib import Path

import pytest

from drmm_hf.training import parse_config

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
    "path", [path for page in ("adamixer", "finetune") for path in sorted((ROOT / "docs/results" / page).glob("*.json"))]
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


def commands(document: str) -> list[str]:
    """The indented command lines of a document, continuation lines joined."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    return [" ".join(line.split(" # ")[0].split()) for line in re.findall(r"^ {4,}(.+)$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_training_commands_are_understood(document: str) -> None:
    for command in commands(document):
        if "scripts/train.py" in command:
            arguments = shlex.split(command.split("scripts/train.py", 1)[1].strip("'"))
            if "--help" not in arguments:
                assert parse_config(arguments).data in ("FOLDER", "SHARDS", "ORG/NAME", "coco", "bccd"), command


def test_every_option_of_a_command_in_the_readme_exists() -> None:
    """Options shown in the README are known to the commands that they are shown with."""
    modules = {
        "predict.py": "evaluation/predict_cli.py",
        "evaluate.py": "evaluation/cli.py",
        "quickstart": "training/quickstart.py",
    }
    shared = (ROOT / "src/drmm_hf/evaluation/command_line.py").read_text()
    for command, options in re.findall(r"(predict\.py|evaluate\.py|quickstart)([^\n#]*--[^\n#`]*)", readme()):
        source = (ROOT / "src/drmm_hf" / modules[command]).read_text() + shared
        for option in re.findall(r"--([a-z][a-z-]+)", options):
            if option == "help":
                continue
            assert f"--{option}" in source or f"    {option.replace('-', '_')}: " in source, f"{command} --{option}"


def readme() -> str:
    return (ROOT / "README.md").read_text()
