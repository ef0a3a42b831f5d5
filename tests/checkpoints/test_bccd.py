"""The checkpoint of the repository: it loads without a question, and detects as well as its card says."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import load_file
from transformers import pipeline

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import main
from drmm_hf.data import generate_scenes

ROOT = Path(__file__).parents[2]
NAME = "checkpoints/drmm-adamixer-tiny-bccd"
FOLDER = ROOT / NAME
LABELS = {0: "RBC", 1: "WBC", 2: "Platelets"}
FILES = [
    "README.md", "analysis.json", "config.json", "images/reliability.png", "metrics.json", "model.safetensors",
    "preprocessor_config.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DrmmForObjectDetection:
    return DrmmForObjectDetection.from_pretrained(FOLDER)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_what_lies_in_the_folder_is_small_and_names_no_folder_of_a_machine() -> None:
    paths = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(FOLDER).as_posix() for path in paths) == FILES
    assert sum(path.stat().st_size for path in paths) < 10e6
    for path in paths:
        if path.suffix in (".json", ".md"):
            assert not re.search(r'["\s](/|[A-Za-z]:\\|~)\w', path.read_text()), path


def test_the_weights_are_those_of_the_preset_in_half_precision(model: DrmmForObjectDetection) -> None:
    config = DrmmConfig.from_preset("drmm-adamixer-tiny", id2label=LABELS)
    built = DrmmForObjectDetection(config).state_dict()
    stored = load_file(FOLDER / "model.safetensors")
    assert {name: tensor.shape for name, tensor in stored.items()} == {name: t.shape for name, t in built.items()}
    for name, tensor in built.items():
        assert stored[name].dtype == (torch.float16 if tensor.is_floating_point() else tensor.dtype), name
        assert stored[name].isfinite().all(), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ours, preset = model.config.to_dict(), config.to_dict()
    changed = {name for name in preset if ours.get(name) != preset[name]} - {"_name_or_path", "architectures", "dtype"}
    assert changed <= {"backbone_config", "min_scale_ratio", "objectness_anchor"}  # in the first are more fields


def test_it_loads_without_a_question_and_runs_in_the_stock_pipeline(capfd: pytest.CaptureFixture[str]) -> None:
    """No code in the folder, so transformers has nothing to ask about."""
    assert not list(FOLDER.glob("*.py"))
    assert "auto_map" not in read(FOLDER / "config.json")
    detector = pipeline("object-detection", model=str(FOLDER), device="cpu")
    assert isinstance(detector.model, DrmmForObjectDetection)
    assert isinstance(detector.image_processor, DrmmImageProcessor)
    assert detector.model.config.id2label == LABELS
    # bright, and no blood: nothing of it is a cell
    assert detector(Image.new("RGB", (640, 480), (235, 235, 240)), threshold=0.9) == []
    assert "trust_remote_code" not in "".join(capfd.readouterr())


def test_a_drawn_cell_is_found(model: DrmmForObjectDetection) -> None:
    """Without any data: a large dark nucleus in a pale cell is a white cell where it was drawn."""
    image = Image.new("RGB", (640, 480), (205, 200, 190))
    draw = ImageDraw.Draw(image)
    draw.ellipse((220, 140, 420, 340), fill=(190, 160, 190))
    draw.ellipse((255, 170, 385, 305), fill=(100, 60, 160))
    image = image.filter(ImageFilter.GaussianBlur(2))
    processor = DrmmImageProcessor.from_pretrained(FOLDER)
    with torch.inference_mode():
        outputs = model.eval()(**processor(images=[image], return_tensors="pt"))
    found = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(480, 640)])[0]
    best = found["scores"].argmax()
    assert model.config.id2label[int(found["labels"][best])] == "WBC"
    middle = (found["boxes"][best][:2] + found["boxes"][best][2:]) / 2
    assert (middle - torch.tensor([320.0, 240.0])).abs().max() < 40


def test_it_reproduces_its_numbers_on_the_held_out_test_split(bccd: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(FOLDER), "--data", str(bccd), "--split", "test", "--device", "cpu"]
    assert main(["evaluate", *arguments, "--output", str(tmp_path)]) == 0
    measured = read(tmp_path / "metrics.json")
    card = {
        result.metric_name.split()[0]: result.metric_value
        for result in ModelCard.load(FOLDER / "README.md").data.eval_results
        if result.dataset_split == "test"
    }
    for name in ("AP", "AP50", "AP75", "AR100"):
        assert measured["metrics"][name] == pytest.approx(card[name], abs=0.002), name
    ece, d_ece = (entry["ece"] for entry in measured["calibration"])
    assert ece == pytest.approx(card["ECE"], abs=0.001)
    assert d_ece == pytest.approx(card["D-ECE"], abs=0.004)


def test_the_card_the_analysis_and_the_metrics_agree() -> None:
    facts, metrics = read(FOLDER / "analysis.json"), read(FOLDER / "metrics.json")
    entry = facts["checkpoints"][0]
    assert entry["checkpoint"] == NAME
    assert (facts["data"]["split"], facts["data"]["images"]) == ("val", 87)
    assert round(entry["accuracy"]["metrics"]["AP"], 4) == metrics["AP"]
    assert round(entry["calibration"]["measures"]["D-ECE"]["value"], 4) == metrics["D-ECE"]


def test_its_first_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A drawing of a picture, and the dry run of publishing, from the root of a checkout."""
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (320, 240), (200, 190, 190)).save("picture.jpg")
    assert main(["predict", "picture.jpg", "--model", NAME, "--output", "drawn", "--device", "cpu"]) == 0
    assert Image.open("drawn/picture.png").size == (320, 240)
    assert main(["publish", NAME, "me/cells"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in FILES if f"  {name}\n" not in printed] == []
    assert "\nleft out:" not in printed
    assert "Dry run: nothing was sent." in printed


@pytest.mark.parametrize("command", ["train", "quickstart"])
def test_training_starts_from_it_with_other_classes(command: str, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(FOLDER, tmp_path / "checkpoint"))
    data = generate_scenes(tmp_path / "data", num_train=4, num_val=2, image_size=(96, 128))
    classes = [entry["name"] for entry in read(data / "annotations" / "instances_train.json")["categories"]]
    output = tmp_path / "run"
    AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before
    arguments = ["--model", str(checkpoint), "--data", str(data), "--output", str(output), "--train-images", "4"]
    recipe = ["--recipe", "finetune-small"] if command == "train" else []
    assert main([command, *arguments, *recipe]) == 0
    tuned = DrmmForObjectDetection.from_pretrained(output / "model")
    assert list(tuned.config.id2label.values()) == classes
    start = DrmmForObjectDetection.from_pretrained(checkpoint)
    name = "model.backbone.model._backbone.layer1.0.conv1.weight"
    moved = (tuned.state_dict()[name] - start.state_dict()[name]).abs().max()
    assert 0 < moved < 0.05  # two steps from the checkpoint, and not from random weights
