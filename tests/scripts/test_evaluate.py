"""`drmm evaluate`: saved results, more detections, files without annotations, streams, several processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from annotation_folders import ultralytics_yolo
from drmm_hf.cli import main
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import (
    brier_report,
    evaluate_coco,
    evaluate_detections,
    interval_report,
    localization_calibration_report,
    lrp_report,
)
from model_fixtures import save_small
from training.runs import run_command_in_two_processes

ROOT = Path(__file__).parents[2]
CLASSES = {"id2label": {0: "cat", 1: "emu"}, "label2id": {"cat": 0, "emu": 1}}


def evaluate(arguments: list[str]) -> int:
    return main(["evaluate", *arguments])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Folder of a random model with the classes cat and emu."""
    return save_small(tmp_path_factory.mktemp("model"), **CLASSES, num_proposals=60, num_stages=1)


@pytest.fixture
def data(tmp_path) -> Path:
    """COCO-format folder of two images with the categories cat (4) and emu (9)."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for name, size in (("a.png", (80, 60)), ("b.png", (60, 80))):
        Image.new("RGB", size, (120, 90, 60)).save(folder / "images" / name)
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 3, "file_name": "b.png", "width": 60, "height": 80},
        ],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "emu"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [5, 5, 40, 40]},
            {"id": 2, "image_id": 3, "category_id": 4, "bbox": [10, 10, 20, 30]},
        ],
    }
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def results(tmp_path) -> Path:
    """Saved results: the emu found exactly, a duplicate, a cat found by half, and one on nothing."""
    rows = [
        {"image_id": 7, "category_id": 9, "bbox": [5, 5, 40, 40], "score": 0.9},
        {"image_id": 7, "category_id": 9, "bbox": [5, 5, 40, 36], "score": 0.6},
        {"image_id": 3, "category_id": 4, "bbox": [10, 10, 20, 18], "score": 0.8},
        {"image_id": 3, "category_id": 4, "bbox": [40, 50, 10, 10], "score": 0.1},
    ]
    (tmp_path / "saved.json").write_text(json.dumps(rows))
    return tmp_path / "saved.json"


def fails(arguments, capsys) -> str:
    """Run the command on input that it must refuse; the one line it prints."""
    assert evaluate(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


def test_saved_results_need_neither_model_nor_images(data, results, tmp_path, capsys):
    truth = data / "annotations" / "instances_val.json"
    for image in (data / "images").iterdir():
        image.unlink()
    arguments = ["--results", str(results), "--per-class"]
    assert evaluate([*arguments, "--data", str(data), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 4 detections" in printed
    assert "AP cat  0.300  AR  0.300" in printed  # IoU .6: right at .50, .55 and .60
    assert "AP emu  1.000  AR  1.000" in printed
    metrics = read(tmp_path / "out/metrics.json")
    assert metrics["metrics"] == evaluate_coco(truth, results, per_class=True)
    assert metrics["metrics"]["AR/cat"] == pytest.approx(0.3)
    assert metrics["results"] == str(results)
    assert "model" not in metrics
    assert not (tmp_path / "out" / "results.json").exists()
    # A file of annotations alone does as well.
    assert evaluate([*arguments, "--annotations", str(truth)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines()[1:]


def test_it_names_the_data_and_not_a_file_that_was_made_of_them(tmp_path, capsys):
    ultralytics_yolo(tmp_path / "pets")
    (tmp_path / "results.json").write_text("[]")
    assert evaluate(["--results", str(tmp_path / "results.json"), "--data", str(tmp_path / "pets")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{tmp_path / 'pets'} (val)")
    assert ".json" not in first


def test_more_measures_are_those_of_their_modules(data, results, tmp_path, capsys):
    truth = data / "annotations" / "instances_val.json"
    assert evaluate(["--results", str(results), "--data", str(data), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    metrics = read(tmp_path / "out/metrics.json")
    assert metrics["localization"] == [
        localization_calibration_report(truth, results, iou_threshold=iou).to_dict() for iou in (0.1, 0.0)
    ]
    assert metrics["lrp"] == lrp_report(truth, results).to_dict()
    assert metrics["brier"] == brier_report(truth, results).to_dict()
    # LRP: 0 for the emu, (1 - .6) / (1 - .5) for the cat. Brier: (.01 + .36 + .04 + .01) / 4.
    assert metrics["lrp"]["lrp"] == pytest.approx(0.4)
    assert metrics["brier"]["brier"] == pytest.approx(0.105)
    for line in ("LaECE ", "LaECE_0 ", "LRP 0.4000", "Brier 0.1050"):
        assert line in printed
    first_words = [line.split()[0] for line in printed.splitlines()]
    assert (first_words.count("ECE"), first_words.count("D-ECE")) == (1, 1)
    # scores 0.9, 0.6, 0.8 and 0.1, of which the first and the third are right
    assert (metrics["ECE"], metrics["D-ECE"]) == pytest.approx((1.0 / 4, 0.9 / 3))
    plain = evaluate_detections(truth, results)
    assert {name: value for name, value in metrics["metrics"].items() if "/" not in name} == plain.metrics
    assert set(plain.to_dict()) == {"metrics", "calibration"}


def test_results_of_a_run_evaluate_to_the_same(model, data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert evaluate(["--model", model, "--data", str(data), "--output", str(first), "--with-scales"]) == 0
    saved = first / "results.json"
    assert evaluate(["--results", str(saved), "--data", str(data), "--output", str(second)]) == 0
    one, other = (read(folder / "metrics.json") for folder in (first, second))
    for name in ("metrics", "calibration", "localization", "lrp", "brier", "images", "detections"):
        assert one[name] == other[name]
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
    assert all(len(row["scales"]) == 4 and min(row["scales"]) > 0 for row in read(saved))
    truth = data / "annotations" / "instances_val.json"
    interval_report(truth, saved, iou_threshold=0.1, score_threshold=0.0)


def test_more_detections(data, tmp_path, capsys):
    """101 wrong cats before the right one: found among 120, not among 100."""
    truth = data / "annotations" / "instances_val.json"
    rows = [{"image_id": 3, "category_id": 4, "bbox": [50, 60, 5, 5], "score": 0.9} for _ in range(101)]
    rows.append({"image_id": 3, "category_id": 4, "bbox": [10, 10, 20, 30], "score": 0.5})
    saved = tmp_path / "many.json"
    saved.write_text(json.dumps(rows))
    arguments = ["--results", str(saved), "--data", str(data), "--max-detections", "120"]
    assert evaluate([*arguments, "--output", str(tmp_path / "out")]) == 0
    metrics = read(tmp_path / "out/metrics.json")["metrics"]
    at_100 = evaluate_coco(truth, saved, per_class=True)
    at_120 = evaluate_coco(truth, saved, max_detections=(1, 10, 120))
    assert at_100["AR100"] == 0.0
    assert at_120["AR120"] == 0.5  # the cat of cat and emu
    assert {name: metrics[name] for name in at_100} == at_100
    assert metrics["AR120"] == at_120["AR120"]
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARs", "ARm", "ARl"):
        assert metrics[f"{name}@120"] == at_120[name]
    assert set(metrics) - set(at_100) == {"AR120"} | {name for name in metrics if name.endswith("@120")}
    printed = capsys.readouterr().out
    assert "AP50@120" in printed
    assert "maxDets 120" in printed
    assert "--max-detections" in fails([*arguments[:-1], "50"], capsys)


def test_file_without_annotations_gives_results_only(model, data, tmp_path, capsys):
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    # as in image_info_test-dev2017.json
    content |= {"info": {"year": 2017}, "licenses": [{"id": 1, "url": "", "name": ""}]}
    content["images"] = [
        {**image, "license": 1, "coco_url": "http://x/", "date_captured": ""} for image in content["images"]
    ]
    content["categories"] = [{**category, "supercategory": "animal"} for category in content["categories"]]
    info = data / "annotations" / "image_info_test.json"
    info.write_text(json.dumps(content))
    out = tmp_path / "out"
    arguments = ["--model", model, "--data", str(data), "--annotations", "annotations/image_info_test.json"]
    assert evaluate([*arguments, "--output", str(out), "--top-k", "5"]) == 0
    printed = capsys.readouterr().out
    assert "image_info_test.json: 2 images" in printed
    assert [path.name for path in out.iterdir()] == ["results.json"]
    rows = read(out / "results.json")
    assert {row["image_id"] for row in rows} == {3, 7}
    assert {row["category_id"] for row in rows} <= {4, 9}
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in rows)
    # what COCO's own reader, and so its server, takes
    taken = COCO(info).loadRes(str(out / "results.json")).loadAnns(range(1, 11))
    assert [one["bbox"] for one in taken] == [row["bbox"] for row in rows]
    capsys.readouterr()
    assert "--output" in fails(arguments, capsys)
    again = ["--results", str(out / "results.json"), "--annotations", str(info)]
    assert "annotations" in fails(again, capsys)
    (data / "images" / "b.png").unlink()
    assert "image_info_test.json" in fails([*arguments, "--output", str(out)], capsys)


def test_what_a_baseline_does_not_predict_is_refused(data, tmp_path, capsys):
    baseline = save_small(tmp_path / "baseline", **CLASSES, objective="set_prediction", head="set_prediction")
    arguments = ["--model", baseline, "--data", str(data)]
    for option, part in (("--with-parts", "objectness"), ("--with-scales", "scales")):
        assert part in fails([*arguments, option], capsys)
    assert evaluate(arguments) == 0


@pytest.mark.parametrize("arguments", [["--data", "x"], ["--model", "m", "--results", "r.json", "--data", "x"]])
def test_either_a_model_or_results(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate(arguments)
    assert end.value.code == 2
    assert "--results" in capsys.readouterr().err


def class_of_another_model(data: Path) -> None:
    content = read(data / "annotations/instances_val.json")
    content["categories"][0]["name"] = "yak"
    (data / "annotations/instances_test.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--results", "saved.json"], "--data"),
        (["--model", "MODEL", "--annotations", "x.json"], "--data"),
        (["--results", "none.json", "--data", "data"], "none.json"),
        (["--results", "cut.json", "--data", "data"], "cut.json"),
        (["--results", "other.json", "--data", "data"], "other.json"),
        (["--results", "saved.json", "--data", "data", "--split", "train"], "train"),
        (
            ["--results", "saved.json", "--annotations", "data/annotations/instances_val.json", "--streaming"],
            "--streaming",
        ),
        (["--model", "MODEL", "--data", "data", "--streaming", "--annotations", "x.json"], "--annotations"),
        (["--model", "MODEL", "--data", "data", "--split", "train"], "train"),
        (["--model", "MODEL", "--data", "data", "--split", "test"], "yak"),
        (["--model", "MODEL", "--data", "nowhere"], "nowhere"),
        (["--model", "run", "--data", "data"], "run/model"),
        (["--model", "MODEL", "--data", "data", "--images", "torn"], "a.png"),
        (["--model", "MODEL", "--data", "data", "--output", "saved.json"], "saved.json"),
    ],
)
def test_bad_inputs_are_one_line(arguments, named, model, data, results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps([{"image_id": 8}]))
    (tmp_path / "torn").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "torn" / name).write_bytes(b"no image")
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "run/model/config.json").write_text("{}")
    class_of_another_model(data)
    assert named in fails([model if word == "MODEL" else word for word in arguments], capsys)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=1, num_val=11, image_size=(64, 96))


@pytest.fixture(scope="module")
def on_scenes(scenes, tmp_path_factory) -> list[str]:
    """A random model, and batches of two of the eleven images."""
    dataset = load_detection_dataset(scenes, "val")
    folder = save_small(tmp_path_factory.mktemp("model"), id2label=dataset.id2label, label2id=dataset.label2id)
    few = ["--batch-size", "2", "--top-k", "7", "--device", "cpu", "--with-parts"]
    return ["--model", folder, "--data", str(scenes), *few]


@pytest.fixture(scope="module")
def whole(on_scenes, tmp_path_factory) -> Path:
    """The output of one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate([*on_scenes, "--output", str(folder)]) == 0
    return folder


def test_the_parts_of_the_scores_are_measured(whole):
    results, metrics = read(whole / "results.json"), read(whole / "metrics.json")
    assert len(results) == 7 * 11
    assert all(row["score"] <= row["objectness"] for row in results)
    assert set(metrics["parts"]) == {"score", "class_probability", "objectness"}
    assert metrics["parts"]["score"]["ece"] == metrics["calibration"][0]["ece"]


def shards(scenes: Path, folder: Path, ids: Callable[[int], int]) -> str:
    """The validation split as three parquet files, with these image ids."""
    folder.mkdir()
    rows = load_detection_dataset(scenes, "val").dataset.cast_column("image", datasets.Image())
    rows = rows.map(lambda row: {"image_id": ids(row["image_id"])})
    for index in range(3):
        part = rows.select(range(index * 4, min((index + 1) * 4, len(rows))))
        part.to_parquet(folder / f"validation-{index:05d}-of-00003.parquet")
    return str(folder)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stream_gives_the_same_numbers(on_scenes, scenes, whole, tmp_path, workers):
    data = shards(scenes, tmp_path / "shards", lambda image_id: image_id)
    out, again = tmp_path / "out", tmp_path / "again"
    assert evaluate([*on_scenes, "--data", data, "--streaming", "--workers", workers, "--output", str(out)]) == 0
    # labels of the stream are its category ids
    category_ids = load_detection_dataset(scenes, "val").category_ids
    results = [{**row, "category_id": category_ids[row["category_id"]]} for row in read(out / "results.json")]
    assert results == read(whole / "results.json")
    metrics, before = read(out / "metrics.json"), read(whole / "metrics.json")
    for name in ("metrics", "calibration", "brier", "parts", "images", "detections"):
        assert metrics[name] == before[name]
    # and its ground truth is a file to evaluate with
    truth = ["--annotations", str(out / "ground_truth.json")]
    assert evaluate(["--results", str(out / "results.json"), "--output", str(again), *truth]) == 0
    assert read(again / "metrics.json")["metrics"] == before["metrics"]


def test_images_of_a_stream_without_ids_are_numbered(on_scenes, scenes, whole, tmp_path):
    data = shards(scenes, tmp_path / "shards", lambda image_id: 5)
    out = tmp_path / "out"
    assert evaluate([*on_scenes, "--data", data, "--streaming", "--output", str(out)]) == 0
    results = read(out / "results.json")
    assert [row["image_id"] for row in results[::7]] == list(range(11))
    assert [row["score"] for row in results] == [row["score"] for row in read(whole / "results.json")]
    assert read(out / "metrics.json")["metrics"] == read(whole / "metrics.json")["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_give_what_one_gives(on_scenes, scenes, whole, tmp_path, streaming):
    """Of a folder started by torchrun, as a user does it; of a stream forked, which saves the imports."""
    arguments = [*on_scenes, "--output", str(tmp_path / "out")]
    if streaming:
        data = shards(scenes, tmp_path / "shards", lambda image_id: image_id)
        run_command_in_two_processes(["evaluate", *arguments, "--streaming", "--data", data], tmp_path)
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = [str(ROOT / "scripts/evaluate.py"), *arguments]
        # as many threads as here: another number adds in another order
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run([*launch, *script], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-9000:]
    found, expected = read(tmp_path / "out/results.json"), read(whole / "results.json")
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    metrics, before = read(tmp_path / "out/metrics.json"), read(whole / "metrics.json")
    assert metrics["metrics"] == pytest.approx(before["metrics"], abs=1e-5)
    assert (metrics["images"], metrics["detections"]) == (11, 77)
