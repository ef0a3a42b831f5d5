"""docs/quickstart.ipynb is a valid notebook without outputs, and its cells run from top to bottom."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
# The same cells on a few images: the values of the cell with the tag `parameters`.
SMALL = {"TRAIN_IMAGES": 6, "SCENES": {"num_train": 6, "num_val": 3, "image_size": (288, 384)}, "SHOWN": 2}


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_it_is_a_notebook_of_format_4_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids) > 20
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


def test_it_names_no_absolute_path_and_every_link_exists() -> None:
    assert not re.search(r"(?<![\w.:/])(/[a-z]+/\w|[A-Z]:\\|~/)", NOTEBOOK.read_text())
    links = [target for cell in cells("markdown") for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(cell))]
    assert len(links) > 8
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_the_cells_run_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells("code")):
        exec(compile(text(cell), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert SMALL.keys() <= names.keys()
            names |= SMALL
    made = tmp_path / "runs" / "notebook"
    assert json.loads((made / "trained" / "metrics.json").read_text())["train_images"] == SMALL["TRAIN_IMAGES"]
    assert (made / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    kept = {file.name for file in (made / "detector").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_drmm.py"} <= kept
    printed = capsys.readouterr().out
    assert re.search(r"^AP50 +-?\d\.\d{3}$", printed, flags=re.MULTILINE)
    assert len(re.findall(r"^\w+ +-?[\d.]+ +80% interval", printed, flags=re.MULTILINE)) == 4
