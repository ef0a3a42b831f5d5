"""Every command and every snippet of docs/confidence.md, in order."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf import DrmmForObjectDetection
from drmm_hf.cli import main
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from model_fixtures import small_config

TEXT = (Path(__file__).parents[2] / "docs" / "confidence.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
OUTSIDE = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL).replace("\\\n", " ")
COMMANDS = [" ".join(line.split()) for line in re.findall(r"^ {4}(\S.*)$", OUTSIDE, flags=re.MULTILINE)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page takes for granted: a data set, a model of it (here a random one) and a picture."""
    generate_scenes(tmp_path / "FOLDER", num_train=1, num_val=12, image_size=(64, 96))
    dataset = load_detection_dataset(tmp_path / "FOLDER", "val")
    picture = Path(dataset.dataset[0]["image"]["path"])
    Image.open(picture).convert("RGB").save(tmp_path / "picture.jpg")
    content = json.loads(dataset.annotations_path.read_text())
    shutil.copy(dataset.annotations_path, tmp_path / "FOLDER/annotations/instances_test.json")
    shutil.copytree(picture.parent, tmp_path / "FOLDER/test")
    stem = Path(content["images"][0]["file_name"]).stem
    (tmp_path / "predictions.json").write_text(
        json.dumps([{"image_id": stem, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}])
    )
    del content["annotations"]
    content["images"] = [{**content["images"][0], "file_name": "1.jpg"}]
    (tmp_path / "FOLDER/annotations/image_info_test-dev2017.json").write_text(json.dumps(content))
    (tmp_path / "FOLDER/test2017").mkdir()
    Image.open(tmp_path / "picture.jpg").save(tmp_path / "FOLDER/test2017/1.jpg")
    torch.manual_seed(0)
    labels = {"id2label": dataset.id2label, "label2id": dataset.label2id}
    DrmmForObjectDetection(small_config(**labels)).save_pretrained(tmp_path / "runs/mine/model")
    processor = DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor.save_pretrained(tmp_path / "runs/mine/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simulate(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Detections of a good model: a right one for most objects, with edges off by its scale, and some on nothing."""
    generator = np.random.default_rng(0)
    results = []
    for one in truth["annotations"]:
        x, y, width, height = one["bbox"]
        scales = 0.02 * np.array([width, height, width, height])
        edges = np.array([x, y, x + width, y + height]) + scales * generator.standard_cauchy(4).clip(-5, 5)
        score, wrong = generator.uniform(0.4, 0.98), generator.random() < 0.3
        low = edges[:2] + 500.0 * wrong
        row = {"image_id": one["image_id"], "category_id": one["category_id"], "score": score - 0.3 * wrong}
        size = np.maximum(edges[2:] - edges[:2], 1.0)
        row |= {"bbox": [*low.tolist(), *size.tolist()], "scales": scales.tolist()}
        results.append({**row, "objectness": min(1.0, row["score"] + 0.01)})
    return results


def test_commands_and_snippets_run(home: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        # `python scripts/NAME.py ...` or `drmm NAME ...`
        _, name, *arguments = shlex.split(command)
        assert main([Path(name).stem, *arguments, "--device", "cpu"]) == 0, command
    assert (home / "drawn/picture.png").is_file()
    assert (home / "runs/report/report.html").is_file()
    assert [path.name for path in (home / "runs/test-dev").iterdir()] == ["results.json"]
    rows = json.loads((home / "runs/confidence/results.json").read_text())
    assert all({"scales", "objectness"} <= set(row) for row in rows)
    # A random model finds nothing to fit to.
    truth = json.loads((home / "FOLDER/annotations/instances_val.json").read_text())
    (home / "runs/confidence/results.json").write_text(json.dumps(simulate(truth)))
    names: dict[str, Any] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "docs/confidence.md", "exec"), names)
    assert names["part"].ece >= 0.0
    assert names["point"].score_threshold == 0.9
    assert names["found"]["box_intervals"].shape == (len(names["found"]["scores"]), 2, 4)
    assert names["lower"].shape == names["upper"].shape
    assert names["fitted"].factor > 0.0
    of_test = json.loads((home / "runs/test/results.json").read_text())
    assert len(names["corrected"]) == len(of_test)
    assert capsys.readouterr().out.count("class_probability") == 1
