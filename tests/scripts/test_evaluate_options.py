"""Options of scripts/evaluate.py: saved results, more detections, files without annotations, scales."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from drmm_hf.configuration_drmm import DrmmConfig
from drmm_hf.evaluation import evaluate_coco, evaluate_detections
from drmm_hf.evaluation.cli import format_report, main
from drmm_hf.evaluation.localization_calibration import localization_calibration_report
from drmm_hf.evaluation.lrp import lrp_report
from drmm_hf.evaluation.scoring_rules import brier_report
from drmm_hf.evaluation.uncertainty import interval_report
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.modeling_drmm import DrmmForObjectDetection


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Folder of a random model with the classes cat and emu."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = DrmmConfig.from_preset(
        "drmm-sparse-rcnn-tiny", id2label={0: "cat", 1: "emu"}, num_proposals=60, num_stages=1
    )
    DrmmForObjectDetection(config).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


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
    assert main(arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


def test_saved_results_need_neither_model_nor_images(data, results, tmp_path, capsys):
    truth = data / "annotations" / "instances_val.json"
    for image in (data / "images").iterdir():
        image.unlink()
    arguments = ["--results", str(results), "--per-class"]
    assert main([*arguments, "--data", str(data), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 4 detections" in printed
    assert "AP cat  0.300  AR  0.300" in printed  # IoU .6: right at .50, .55 and .60
    assert "AP emu  1.000  AR  1.000" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["metrics"] == evaluate_coco(truth, results, per_class=True)
    assert metrics["metrics"]["AR/cat"] == pytest.approx(0.3)
    assert metrics["results"] == str(results)
    assert "model" not in metrics
    assert not (tmp_path / "out" / "results.json").exists()
    # A file of annotations alone does as well.
    assert main([*arguments, "--annotations", str(truth)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == printed.splitlines()[1:]


def test_more_measures_are_those_of_their_modules(data, results, tmp_path, capsys):
    truth = data / "annotations" / "instances_val.json"
    assert main(["--results", str(results), "--data", str(data), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
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
    plain = evaluate_detections(truth, results)
    assert {name: value for name, value in metrics["metrics"].items() if "/" not in name} == plain.metrics
    assert set(plain.to_dict()) == {"metrics", "calibration"}


def test_results_of_a_run_evaluate_to_the_same(model, data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["--model", model, "--data", str(data), "--output", str(first)]) == 0
    saved = first / "results.json"
    assert main(["--results", str(saved), "--data", str(data), "--output", str(second)]) == 0
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (first, second))
    for name in ("metrics", "calibration", "localization", "lrp", "brier", "images", "detections"):
        assert one[name] == other[name]
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]


def test_more_detections(data, tmp_path, capsys):
    """101 wrong cats before the right one: found among 120, not among 100."""
    truth = data / "annotations" / "instances_val.json"
    rows = [{"image_id": 3, "category_id": 4, "bbox": [50, 60, 5, 5], "score": 0.9} for _ in range(101)]
    rows.append({"image_id": 3, "category_id": 4, "bbox": [10, 10, 20, 30], "score": 0.5})
    saved = tmp_path / "many.json"
    saved.write_text(json.dumps(rows))
    arguments = ["--results", str(saved), "--data", str(data), "--max-detections", "120"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
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
    assert "--max-detections is 50" in fails([*arguments[:-1], "50"], capsys)


def test_more_detections_are_also_predicted(model, data, tmp_path):
    out = tmp_path / "out"
    assert main(["--model", model, "--data", str(data), "--max-detections", "110", "--output", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["top_k"] == 110
    assert metrics["detections"] == 2 * 110  # of 60 proposals and two classes


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
    assert main([*arguments, "--output", str(out), "--top-k", "5"]) == 0
    printed = capsys.readouterr().out
    assert "image_info_test.json: 2 images, 10 detections" in printed
    assert "has no annotations to evaluate with" in printed
    assert [path.name for path in out.iterdir()] == ["results.json"]
    rows = json.loads((out / "results.json").read_text())
    assert {row["image_id"] for row in rows} == {3, 7}
    assert {row["category_id"] for row in rows} <= {4, 9}
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in rows)
    # what COCO's own reader, and so its server, takes
    read = COCO(info).loadRes(str(out / "results.json")).loadAnns(range(1, 11))
    assert [one["bbox"] for one in read] == [row["bbox"] for row in rows]
    capsys.readouterr()
    assert "has no annotations, so that results.json is all there is; give --output" in fails(arguments, capsys)
    again = ["--results", str(out / "results.json"), "--annotations", str(info)]
    assert "field 'annotations' is missing" in fails(again, capsys)
    (data / "images" / "b.png").unlink()
    assert "1 of 2 images are missing" in fails([*arguments, "--output", str(out)], capsys)


def test_scales_are_kept_on_request(model, data, tmp_path):
    out = tmp_path / "out"
    assert main(["--model", model, "--data", str(data), "--output", str(out), "--with-scales"]) == 0
    rows = json.loads((out / "results.json").read_text())
    assert all(len(row["scales"]) == 4 and min(row["scales"]) > 0 for row in rows)
    truth = data / "annotations" / "instances_val.json"
    interval_report(truth, out / "results.json", iou_threshold=0.1, score_threshold=0.0)


def test_what_a_baseline_does_not_predict_is_refused(data, tmp_path, capsys):
    torch.manual_seed(0)
    config = DrmmConfig.from_preset("sparse-rcnn-tiny", id2label={0: "cat", 1: "emu"}, num_proposals=4, num_stages=1)
    DrmmForObjectDetection(config).save_pretrained(tmp_path / "baseline")
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "baseline")
    arguments = ["--model", str(tmp_path / "baseline"), "--data", str(data)]
    for option in ("--with-parts", "--with-scales"):
        assert f"{option}: a model with head='set_prediction' predicts none" in fails([*arguments, option], capsys)
    assert main(arguments) == 0


def test_model_or_results_is_needed_and_data(results, capsys):
    for arguments, problem in (
        (["--data", "x"], "--model --results"),
        (["--model", "m", "--results", str(results), "--data", "x"], "not allowed with"),
        (["--results", str(results)], "--data is required"),
        (["--model", "m", "--annotations", "x.json"], "--data is required"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        assert problem in capsys.readouterr().err


def test_bad_saved_results_are_named(data, tmp_path, capsys):
    saved = tmp_path / "bad.json"
    common = ["--results", str(saved), "--data", str(data)]
    assert "bad.json: no such file" in fails(common, capsys)
    saved.write_text("{")
    assert "bad.json: not valid JSON" in fails(common, capsys)
    saved.write_text(json.dumps([{"image_id": 8}]))
    assert "bad.json: results[0].image_id: 8 is no image of" in fails(common, capsys)
    assert "instances_train.json: no such annotation file" in fails([*common, "--split", "train"], capsys)


def test_table_without_the_new_numbers(data, results):
    report = evaluate_detections(data / "annotations" / "instances_val.json", results)
    lines = format_report(report).splitlines()
    assert len(lines) == 6  # two tables of two lines and two calibration errors
    with pytest.raises(ValueError, match="also_at is 100; it must be above 100"):
        evaluate_detections(data / "annotations" / "instances_val.json", results, also_at=100)
