"""The commands of docs/training.md, run with their options but in one process, for two steps, and with small models."""

import dataclasses
import re
import shlex
from pathlib import Path

import datasets
import pytest

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.data import load_detection_dataset, load_streaming_dataset
from drmm_hf.training import parse_config, train

TEXT = (Path(__file__).parents[2] / "docs/training.md").read_text()
COMMANDS = [
    " ".join(line.split())
    for line in re.findall(r"^ {4}(.*scripts/train\.py .*)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)
]
# COCO, a GPU, or a data set of the Hub is needed for the others
RUN = list(dict.fromkeys(line for line in COMMANDS if "FOLDER" in line or "SHARDS" in line))


@pytest.fixture
def places(tmp_path: Path, scenes: Path, parquet: Path) -> dict[str, str]:
    for name, preset in (("checkpoint", "drmm-sparse-rcnn-tiny"), ("baseline", "sparse-rcnn-tiny")):
        DrmmForObjectDetection(DrmmConfig.from_preset(preset)).save_pretrained(tmp_path / name)
        DrmmImageProcessor(size={"height": 96, "width": 128}).save_pretrained(tmp_path / name)
    places = {"FOLDER": scenes, "SHARDS": parquet, "CHECKPOINT": tmp_path / "checkpoint"}
    places |= {"runs/sparse-rcnn": tmp_path / "baseline"}
    return {name: str(path) for name, path in places.items()}


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_a_training_command_runs(command: str, tmp_path: Path, places: dict[str, str], monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    arguments = shlex.split(command.split("scripts/train.py")[1])
    config = parse_config([places.get(argument, argument) for argument in arguments])
    preset = "drmm-sparse-rcnn-tiny" if config.preset == "drmm-sparse-rcnn-r50" else config.preset
    short = {"epochs": None, "train_images": 4, "cpu": True, "output": str(tmp_path / "run"), "preset": preset}
    metrics = train(dataclasses.replace(config, **short)).metrics
    assert metrics["train_steps"] == round(4 / config.batch_size)
    assert "AP" in metrics


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) > len(RUN) >= 6


def test_the_snippet_writes_shards(scenes: Path, tmp_path: Path) -> None:
    snippet = next(code for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL) if "SHARDS" in code)
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, place in {"FOLDER": str(scenes), "SHARDS": str(folder), '"train", 64': '"train", 4'}.items():
        snippet = snippet.replace(name, place)
    exec(snippet, {})
    assert len(list(folder.glob("train-*-of-00004.parquet"))) == 4
    stream = load_streaming_dataset(folder, "train")
    rows = {row["image_id"]: row["objects"]["bbox"] for row in stream}
    table = load_detection_dataset(scenes, "train").dataset
    assert rows == {row["image_id"]: row["objects"]["bbox"] for row in table}
