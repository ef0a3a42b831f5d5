"""Folders as the usual tools write them train, evaluate and predict with one command and no option."""

import json
from pathlib import Path

import pytest

import annotation_folders as tools
from drmm_hf.cli import main
from drmm_hf.data import load_detection_dataset

QUICK = ["--train-images", "4", "--cpu", "--save-every", "0", "--config", "num_stages=1", "num_proposals=8"]


def _train(data: Path, output: Path, *options: str) -> int:
    return main(["train", "--data", str(data), "--output", str(output), *QUICK, *options])


@pytest.mark.slow
@pytest.mark.parametrize("name", tools.FOLDERS)
def test_every_tool_s_folder_trains_evaluates_and_predicts(name, tmp_path, capsys):
    data, model = tmp_path / "set", str(tmp_path / "run" / "model")
    tools.FOLDERS[name](data)
    assert _train(data, tmp_path / "run") == 0
    assert main(["evaluate", "--model", model, "--data", str(data), "--device", "cpu"]) == 0
    picture = next(data.rglob("*.jpg"), None) or next((tmp_path / "before").rglob("*.jpg"))
    assert (
        main(["predict", "--model", model, str(picture), "--output", str(tmp_path / "drawn"), "--device", "cpu"]) == 0
    )
    evaluated = json.loads((tmp_path / "run" / "data_report.json").read_text())["splits"]["val"]["images"]
    assert evaluated == len(load_detection_dataset(data, "val", validation_share=0.15))
    assert f"{evaluated} images" in capsys.readouterr().out


def test_the_check_comes_before_the_first_step(tmp_path, capsys):
    tools.cvat_coco(tmp_path / "set")
    assert _train(tmp_path / "set", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "CVAT COCO" in printed
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["num_proposals"] == 8
    assert [part["images"] for part in report["splits"].values()] == [5, 1]
    results = {one["image_id"] for one in json.loads((tmp_path / "run" / "results.json").read_text())}
    held_out = load_detection_dataset(tmp_path / "set", "val", validation_share=0.15)
    assert results == set(held_out.dataset["image_id"])


def test_what_cannot_train_is_refused_before_anything_is_written(tmp_path, capsys):
    tools.coco_folder(tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for record in content["annotations"]:
        record["bbox"][2:] = [0.3, 0.3]
    file.write_text(json.dumps(content))
    assert _train(tmp_path / "set", tmp_path / "run") == 2
    assert "--image-size" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_files_from_anywhere(tmp_path, capsys):
    tools.roboflow_coco(tmp_path / "set")
    (tmp_path / "set" / "train").rename(tmp_path / "photos")
    (tmp_path / "set" / "valid").rename(tmp_path / "others")
    train = ["--annotations", str(tmp_path / "photos" / "_annotations.coco.json"), "--images", str(tmp_path / "photos")]
    evaluate = ["--eval_annotations", str(tmp_path / "others" / "_annotations.coco.json")]
    options = ["--output", str(tmp_path / "run"), *QUICK, *train]
    assert main(["train", *options]) == 2
    assert "eval_annotations" in capsys.readouterr().err
    assert main(["train", *options, *evaluate, "--eval-images", str(tmp_path / "others")]) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert [part["images"] for part in report["splits"].values()] == [6, 3]
