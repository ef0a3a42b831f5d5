"""A small detector, data for it, and the commands that write something, each with arguments that succeed."""

from pathlib import Path

import pytest
import torch

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.conversion import released_state_dict
from drmm_hf.conversion.cli import main as convert
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation.analyze_cli import main as analyze
from drmm_hf.evaluation.cli import main as evaluate
from drmm_hf.evaluation.predict_cli import main as predict
from drmm_hf.export.cli import main as export
from drmm_hf.training.cli import main as train
from faults.command import Command
from model_fixtures import NAMES, small_config

NUM_IMAGES = 6


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return generate_scenes(folder, num_train=NUM_IMAGES, num_val=NUM_IMAGES, image_size=(64, 96))


@pytest.fixture(scope="package")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = load_detection_dataset(data, "val")
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    labels = {"id2label": dataset.id2label, "label2id": dataset.label2id}
    DrmmForObjectDetection(small_config(**labels)).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under the released names."""
    path = tmp_path_factory.mktemp("released") / "drmm.pth"
    torch.manual_seed(0)
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label=NAMES, num_stages=2, num_proposals=10)
    state = released_state_dict(DrmmForObjectDetection(config))
    torch.save({"meta": {"CLASSES": tuple(NAMES.values())}, "state_dict": state}, path)
    return path


@pytest.fixture(scope="package")
def commands(model: Path, data: Path, released: Path) -> dict[str, Command]:
    few = ["--device", "cpu", "--batch-size", "2", "--top-k", "5"]
    loaded = ["--model", str(model), *few]
    small = ["--config", "num_stages=1", "num_proposals=8"]
    training = ["--data", str(data), "--train-images", "4", "--cpu", "--eval-split", "", *small]
    return {
        "evaluate": Command(evaluate, [*loaded, "--data", str(data)], "--output"),
        "predict": Command(predict, [*loaded, str(data / "images"), "--threshold", "0"], "--output"),
        "analyze": Command(analyze, ["--checkpoint", str(model), "--data", str(data), *few], "--output_dir"),
        "train": Command(train, training, "--output"),
        "export": Command(export, [str(model), "--format", "torch_export", "--size", "64x96", "--batch", "1"], ""),
        "convert": Command(convert, ["--preset", "drmm-sparse-rcnn-tiny", str(released)], ""),
    }
