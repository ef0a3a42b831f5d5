"""Every command of the documentation is understood, and every Python block runs, on small stand-ins."""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import RTDetrImageProcessor

from detector_fixtures import small_detector
from drmm_hf import DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import COMMANDS as SUBCOMMANDS
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import predict_images
from model_fixtures import small_model
from sahi_fixtures import use_stand_in

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]
# Not in the documentation's own hands: repositories of a Hub, and a file of 500 MB.
OUTSIDE = ("me/my-detector", "OWNER/NAME", "ORG/NAME", "sparse_rcnn.pth")
# tests/export and tests/demo run the blocks of these
ELSEWHERE = ("docs/export.md", "docs/demo.md")


def commands(page: str) -> list[tuple[str, str]]:
    """Name and arguments of the indented `drmm NAME ...` and `scripts/NAME.py ...` lines, continuation lines joined."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [" ".join(line.split(" # ")[0].split()) for line in re.findall(r"^ {4,}(.+)$", text, flags=re.MULTILINE)]
    found = [re.search(r"(?:\bscripts/|^drmm )([\w-]+)(?:\.py)?\b(.*)", line) for line in lines]
    return [(match[1], match[2].strip().strip("'")) for match in found if match and match[1] in SUBCOMMANDS]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


COMMANDS = [(page, *command) for page in PAGES for command in commands(page)]
PAGES_WITH_PYTHON = [page for page in PAGES if page not in ELSEWHERE and python_blocks(page)]


def understood(name: str, arguments: str) -> bool:
    words = shlex.split(arguments)
    return "--help" in words or bool(
        importlib.import_module(f"drmm_hf.commands.{name.replace('-', '_')}").parser().parse_args(words)
    )


@pytest.mark.parametrize(("page", "name", "arguments"), COMMANDS, ids=[f"{p}:{n} {a[:50]}" for p, n, a in COMMANDS])
def test_a_command_is_understood(page: str, name: str, arguments: str) -> None:
    assert understood(name, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with what the pages speak of: a picture, a data set, models."""
    here = tmp_path_factory.mktemp("docs")
    generate_scenes(here / "FOLDER", num_train=16, num_val=6, image_size=(64, 96))
    model = small_model(id2label=load_detection_dataset(here / "FOLDER", "val").id2label)
    processor = DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    for name in ("runs/quickstart/model", "runs/mine/model", "CHECKPOINT"):
        model.save_pretrained(here / name)
        processor.save_pretrained(here / name)
    small_detector("rt_detr_v2").save_pretrained(here / "DETECTOR")
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(here / "DETECTOR")
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
    for name in ("confidence", "test", "annealed-seed0"):
        (here / "runs" / name).mkdir()
        (here / "runs" / name / "results.json").write_text(json.dumps(found))
    return here


def picture() -> Image.Image:
    return Image.effect_noise((96, 64), 80).convert("RGB")


def stand_ins(here: Path) -> dict[str, Any]:
    """What the blocks take from the text around them."""
    checkpoint = here / "runs/quickstart/model"
    record = {"bbox": [10, 8, 30, 24], "category_id": 0, "area": 720}
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


def check_adapter(adapter: Any, image: Image.Image) -> None:
    """SAHI gets the scores p*o, the model's labels and corners in pixels of the slice."""
    adapter.confidence_threshold = 0.0
    adapter.perform_inference(np.asarray(image))
    [found] = predict_images(adapter.model, adapter.processor, [image])
    wide = (found["boxes"][:, :2] < found["boxes"][:, 2:]).all(1)
    for shift, shape in ([[7, 9]], [[64, 96]]), ([7, 9], [64, 96]), ([[7, 9]], None):
        adapter.convert_original_predictions(shift, shape)
        [predictions] = adapter._object_prediction_list_per_image
        assert [one.bbox for one in predictions] == found["boxes"][wide].tolist()
        assert [one.score for one in predictions] == found["scores"][wide].tolist()
        assert [one.category_id for one in predictions] == found["labels"][wide].tolist()
        assert all(one.category_name == adapter.model.config.id2label[one.category_id] for one in predictions)
        assert all(one.shift_amount == [7, 9] and one.full_shape in (None, [64, 96]) for one in predictions)


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stand_ins(folder)
    monkeypatch.chdir(folder)
    use_stand_in(monkeypatch)
    missing = []
    for number, block in enumerate(python_blocks(page)):
        code = compile(block, f"{page}, block {number}", "exec")
        if any(name in block for name in OUTSIDE):
            imports = "".join(re.findall(r"^(?:from|import) .+\n", block, flags=re.MULTILINE))
            code = compile(imports, f"{page}, imports of block {number}", "exec")  # the rest cannot be fetched
        optional = [name for name in ("supervision", "peft") if re.search(f"(import|from) {name}", block)]
        if absent := [name for name in optional if not importlib.util.find_spec(name)]:
            missing += absent
            continue
        exec(code, names)
        if "import DetectionModel" in block:
            check_adapter(names["detection_model"], names["image"])
    if missing:
        pytest.skip(f"all ran but the block of {', '.join(missing)}, which is not installed")


def test_options_given_to_make_are_known() -> None:
    given = [words for page in PAGES for words in re.findall(r'`[^`\n]*ARGS="([^"]+)"`', (ROOT / page).read_text())]
    assert given
    assert all(understood("quickstart", words) for words in given)


def test_there_is_something_to_check() -> None:
    assert len(COMMANDS) > 40
    assert sum(len(python_blocks(page)) for page in PAGES_WITH_PYTHON) > 12
