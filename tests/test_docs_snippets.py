"""Every command of the documentation is understood by its script, and every Python block runs, on small stand-ins."""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.training import quickstart
from model_fixtures import small_model

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
# Not in the documentation's own hands: repositories of a Hub, and a file of 500 MB.
OUTSIDE = ("me/my-detector", "OWNER/NAME", "ORG/NAME", "sparse_rcnn.pth")
# tests/export/test_export_docs.py and tests/demo/test_docs.py run their blocks
ELSEWHERE = ("docs/export.md", "docs/demo.md")


def script_commands(page: str) -> list[str]:
    """The indented `scripts/NAME.py ...` command lines of a page, continuation lines joined."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [" ".join(line.split(" # ")[0].split()) for line in re.findall(r"^ {4,}(.+)$", text, flags=re.MULTILINE)]
    return [line[line.index("scripts/") :].strip("'") for line in lines if re.search(r"\bscripts/\w+\.py\b", line)]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


COMMANDS = [(page, command) for page in PAGES for command in script_commands(page)]
PAGES_WITH_PYTHON = [page for page in PAGES if page not in ELSEWHERE and python_blocks(page)]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{p}:{c[8:60]}" for p, c in COMMANDS])
def test_a_command_is_understood(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *arguments = shlex.split(command)
    source = (ROOT / script).read_text()
    found = re.search(r"^from (drmm_hf[\w.]*) import main$", source, flags=re.MULTILINE)
    if found is None or {"--help", "-h"} & set(arguments):
        known = re.findall(r'"(--[a-z-]+)"', source)
        assert found or all(word.split("=")[0] in known for word in arguments if word.startswith("--")), command
        return
    module = importlib.import_module(importlib.import_module(found[1]).main.__module__)
    reached = []
    monkeypatch.setattr(module, "run_command", lambda run, parsed: reached.append(parsed) or 0)
    assert module.main(arguments) == 0, f"{page}: {command}"
    assert reached, f"{page}: {command}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the pages speak of: a picture, a data set, models."""
    here = tmp_path_factory.mktemp("docs")
    generate_scenes(here / "FOLDER", num_train=64, num_val=6, image_size=(64, 96))
    model = small_model(id2label=load_detection_dataset(here / "FOLDER", "val").id2label)
    processor = DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    for name in ("runs/quickstart/model", "runs/mine/model", "CHECKPOINT"):
        model.save_pretrained(here / name)
        processor.save_pretrained(here / name)
    picture().save(here / "picture.jpg")
    truth = json.loads((here / "FOLDER/annotations/instances_val.json").read_text())
    found = [
        {key: row[key] for key in ("image_id", "category_id")}
        | {
            "bbox": [side + 1 for side in row["bbox"]],
            "score": 0.5 + 0.4 * (index % 2),
            "scales": [2.0] * 4,
            "objectness": 0.95,
        }
        for index, row in enumerate(truth["annotations"])
    ]
    (here / "runs/confidence").mkdir()
    (here / "runs/confidence/results.json").write_text(json.dumps(found))
    return here


def picture() -> Image.Image:
    return Image.effect_noise((96, 64), 80).convert("RGB")


def stand_ins(here: Path) -> dict[str, Any]:
    """What the blocks take from the text around them."""
    checkpoint = here / "runs/quickstart/model"
    record = {"bbox": [10, 8, 30, 24], "category_id": 0}
    return {
        "model": DrmmForObjectDetection.from_pretrained(checkpoint),
        "processor": DrmmImageProcessor.from_pretrained(checkpoint),
        "image": picture(),
        "rows": [{"image": picture(), "annotation": {"image_id": i, "annotations": [record]}} for i in range(3)],
        "locations": torch.tensor([[[1.0, 2.0, 30.0, 40.0]]]),
        "scales": torch.ones(1, 1, 4),
        "class_logits": torch.zeros(1, 1, 3),
        "objectness_logits": torch.zeros(1, 1),
        "boxes": torch.tensor([[[1.0, 2.0, 30.0, 40.0]]]),
        "labels": torch.zeros(1, 1, dtype=torch.long),
        "mask": torch.ones(1, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stand_ins(folder)
    monkeypatch.chdir(folder)
    missing = []
    for number, block in enumerate(python_blocks(page)):
        code = compile(block, f"{page}, block {number}", "exec")
        if any(name in block for name in OUTSIDE):
            imports = "".join(re.findall(r"^(?:from|import) .+\n", block, flags=re.MULTILINE))
            code = compile(imports, f"{page}, imports of block {number}", "exec")  # the rest cannot be fetched
        if "import supervision" in block and not importlib.util.find_spec("supervision"):
            missing.append("supervision")
            continue
        exec(code, names)
    if missing:
        pytest.skip(f"all ran but the block of {', '.join(missing)}, which is not installed")


def test_options_given_to_make_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [words for page in PAGES for words in re.findall(r'`[^`\n]*ARGS="([^"]+)"`', (ROOT / page).read_text())]
    assert "--vertical-flip 0.5" in given
    monkeypatch.setattr(quickstart, "run_command", lambda run, parsed: 0)
    for words in given:
        assert quickstart.main(shlex.split(words)) == 0


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 60
    assert sum(len(python_blocks(page)) for page in PAGES_WITH_PYTHON) > 12
