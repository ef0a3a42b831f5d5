"""`drmm quickstart`: the detector that comes with the package, and fine-tuning it in two minutes."""

import json
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from drmm_hf import DrmmForObjectDetection
from drmm_hf.cli import main
from drmm_hf.commands import quickstart
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import evaluate_detections, predict_dataset
from drmm_hf.loading import label_names, load_detector

pytest.importorskip("matplotlib", reason="needs the extra plots")


@pytest.fixture(autouse=True)
def fresh_processes() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # of the tests before


def run(folder: Path, *words: object) -> None:
    arguments = ["--output", folder, "--train-images", 2, "--num-pictures", 2, *words]
    assert main(["quickstart", *map(str, arguments)]) == 0


def check_what_is_left(folder: Path, printed: str) -> None:
    assert "AP50" in printed
    for part in ("metrics.json", "model", "pictures/overview.png", "results.json", "report/report.html"):
        assert str(folder / part) in printed
        assert (folder / part).stat().st_size > 0
    assert len(list((folder / "pictures").glob("*.png"))) == 3


def test_a_first_look_and_a_task_that_is_new_to_the_model(tmp_path: Path, capsys, monkeypatch) -> None:
    for settings in (quickstart.KNOWN, quickstart.TASK):
        monkeypatch.setitem(settings, "num_val", 4)
    monkeypatch.setitem(quickstart.TASK, "num_train", 4)
    run(tmp_path)
    printed = capsys.readouterr().out
    check_what_is_left(tmp_path, printed)
    for part in ("first-look/detections.png", "first-look/reliability.png"):
        assert printed.index(str(tmp_path / part)) < printed.index("Fine-tuning")
        assert Image.open(tmp_path / part).size[0] > 500
    start, tuned = (DrmmForObjectDetection.from_pretrained(at) for at in (quickstart.checkpoint(), tmp_path / "model"))
    assert set(label_names(start).values()).isdisjoint(label_names(tuned).values())
    same = "model.backbone.model._backbone.layer1.0.conv1.weight"
    moved = (start.state_dict()[same] - tuned.state_dict()[same]).abs().max()
    assert 0 < moved < 0.05  # one step from the checkpoint, and not from random weights


def test_your_own_data_alone(tmp_path: Path, capsys) -> None:
    data = generate_scenes(tmp_path / "data", num_train=13, num_val=1, image_size=(96, 128))
    (data / "annotations" / "instances_val.json").unlink()  # two of thirteen are held out
    run(tmp_path / "out", "--data", data)
    check_what_is_left(tmp_path / "out", capsys.readouterr().out)
    assert not (tmp_path / "out" / "first-look").exists()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["train_images"] == 2
    words = ["quickstart", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main(words) == 2  # a folder of one's own is not overwritten
    assert "--overwrite" in capsys.readouterr().err
    run(tmp_path / "out", "--data", data, "--overwrite")


def test_the_packages_checkpoint_sees_what_it_says(tmp_path: Path) -> None:
    """On scenes of a seed of their own; README.md beside the weights has the numbers of 300 scenes."""
    model, processor = load_detector(quickstart.checkpoint(), "cpu")
    data = generate_scenes(tmp_path, **{**quickstart.KNOWN, "num_val": 24, "seed": 2})
    dataset = load_detection_dataset(data, "val", id2label=label_names(model))
    report = evaluate_detections(dataset.annotations_path, predict_dataset(model, processor, dataset, progress=False))
    assert report.metrics["AP50"] > 0.75
    assert report.named_calibration["ECE"].ece < 0.02
    assert report.named_calibration["D-ECE"].ece < 0.2
    assert sum(file.stat().st_size for file in Path(quickstart.checkpoint()).iterdir()) < 3e6
