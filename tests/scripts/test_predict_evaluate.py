"""scripts/predict.py and scripts/evaluate.py on a small random model."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from drmm_hf.configuration_drmm import DrmmConfig
from drmm_hf.evaluation.predict_cli import name_outputs
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.modeling_drmm import DrmmForObjectDetection

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load_main(name: str):
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


predict, evaluate = load_main("predict"), load_main("evaluate")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Folder of a random model with the classes cat, dog and emu."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    names = {0: "cat", 1: "dog", 2: "emu"}
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label=names, num_proposals=8, num_stages=1)
    DrmmForObjectDetection(config).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def broken_model(model, tmp_path) -> Path:
    """A copy of the model's folder to break."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images of different sizes and formats."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in [("a.png", (80, 60)), ("b.jpg", (50, 90)), ("c.JPEG", (64, 64))]:
        Image.new("RGB", size, (120, 90, 60)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def data(tmp_path, images) -> Path:
    """COCO-format folder over `images` with the categories cat (4) and emu (9)."""
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 3, "file_name": "b.jpg", "width": 50, "height": 90},
        ],
        "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "emu"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [5, 5, 40, 40]}],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path


def fails(command, arguments, capsys) -> str:
    """Run a command that must refuse its input; the one line it prints."""
    assert command(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_predict_writes_drawings_and_results(model, images, tmp_path, capsys):
    out = tmp_path / "out" / "deep"
    arguments = [str(images), "--model", model, "--output", str(out), "--threshold", "0", "--top-k", "5"]
    assert predict([*arguments, "--batch-size", "2"]) == 0
    results = json.loads((out / "predictions.json").read_text())
    assert [one["image_id"] for one in results] == [1] * 5 + [2] * 5 + [3] * 5
    assert [Path(one["file_name"]).name for one in results[::5]] == ["a.png", "b.jpg", "c.JPEG"]
    names = ["cat", "dog", "emu"]
    assert all(one["category_name"] == names[one["category_id"]] for one in results)
    assert all(len(one["bbox"]) == 4 and 0 < one["score"] < 1 for one in results)
    for name, size in [("a.png", (80, 60)), ("b.png", (50, 90)), ("c.png", (64, 64))]:
        with Image.open(out / name) as drawn:
            assert drawn.size == size
            assert len(set(drawn.get_flattened_data() if hasattr(drawn, "get_flattened_data") else drawn.getdata())) > 1
    assert "15 detections in 3 of 3 images" in capsys.readouterr().out


def test_predict_without_output_writes_into_drawn(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict([str(images / "a.png"), "--model", model]) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.png", "predictions.json"]


def test_predict_skips_what_it_cannot_read_and_finishes(model, images, tmp_path, capsys):
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:300])
    out = tmp_path / "out"
    assert predict([str(images), "--model", model, "--output", str(out), "--threshold", "0"]) == 1
    captured = capsys.readouterr()
    assert [line for line in captured.err.splitlines() if line.startswith("skipped: ") and "b.jpg" in line]
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png", "predictions.json"]
    assert {one["image_id"] for one in json.loads((out / "predictions.json").read_text())} == {1, 3}


def test_predict_turns_photographs_upright(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (80, 60)).save(tmp_path / "photo.jpg", exif=exif)
    arguments = [str(tmp_path / "photo.jpg"), "--model", model, "--output", str(tmp_path / "out")]
    assert predict(arguments) == 0
    with Image.open(tmp_path / "out" / "photo.png") as drawn:
        assert drawn.size == (60, 80)


def test_equal_names_are_kept_apart(tmp_path):
    files = [Path("one/x.jpg"), Path("two/x.jpg"), Path("one/X.png"), Path("one/x-2.jpg"), tmp_path / "y.png"]
    targets = name_outputs(files, tmp_path)
    assert [target.name for target in targets.values()] == [
        "x.png",
        "x-2.png",
        "X-3.png",
        "x-2-2.png",
        "y-2.png",
    ]


def test_an_image_is_predicted_once(model, images, tmp_path, capsys):
    arguments = [str(images / "a.png"), str(images), "--model", model, "--output", str(tmp_path / "out")]
    assert predict(arguments) == 0
    assert "in 3 of 3 images" in capsys.readouterr().out


def test_predict_refuses_bad_inputs(model, images, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    common = ["--model", model, "--output", str(tmp_path / "out")]
    assert "empty: no images in this folder" in fails(predict, [str(empty), *common], capsys)
    assert "none.jpg: no such image" in fails(predict, [str(images), "none.jpg", *common], capsys)
    same = [str(images), "--model", model, "--output", str(images)]
    assert "is also an input folder" in fails(predict, same, capsys)
    taken = [str(images), "--model", model, "--output", str(images / "a.png")]
    assert "a file is in the way" in fails(predict, taken, capsys)
    device = [str(images), *common, "--device", "abacus"]
    assert "device 'abacus' cannot be used" in fails(predict, device, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("--threshold", "1.5"), ("--top-k", "0"), ("--batch-size", "x")])
def test_bad_options_are_named(option, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        predict(["x.jpg", "--model", "m", "--output", "o", option, value])
    assert exit_info.value.code == 2
    assert option in capsys.readouterr().err


def break_file(name: str, content: str | bytes | None):
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def drop_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            break_file("config.json", '{"model_type": "detr"}'),
            "config.json: field model_type is 'detr', expected 'drmm'",
        ),
        (break_file("config.json", '{"hidden_size": 64}'), "field model_type is None"),
        (break_file("config.json", '{"model_type": '), "config.json: not valid JSON; line 1, column"),
        (break_file("config.json", '{"model_type": "drmm", "num_stages": 0}'), "num_stages"),
        (break_file("config.json", None), "no config.json in this folder"),
        (break_file("preprocessor_config.json", None), "no preprocessor_config.json in this folder"),
        (break_file("preprocessor_config.json", "{"), "preprocessor_config.json cannot be used"),
        (break_file("model.safetensors", None), "no weights (model.safetensors)"),
        (break_file("model.safetensors", b"\x08\0\0\0"), "the model cannot be loaded"),
        (drop_weights, "the weights lack 1 tensors that config.json asks for"),
    ],
)
def test_broken_model_folders(change, message, broken_model, images, tmp_path, capsys):
    change(broken_model)
    arguments = [str(images), "--model", str(broken_model), "--output", str(tmp_path / "out")]
    error = fails(predict, arguments, capsys)
    assert message in error
    assert "broken" in error


def test_model_path_that_is_no_folder(images, tmp_path, capsys):
    common = [str(images), "--output", str(tmp_path / "out"), "--model"]
    assert "nowhere: no such model folder" in fails(predict, [*common, str(tmp_path / "nowhere")], capsys)
    assert "is a file" in fails(predict, [*common, str(images / "a.png")], capsys)


def test_evaluate_prints_and_writes(model, data, tmp_path, capsys):
    out = tmp_path / "metrics"
    assert evaluate(["--model", model, "--data", str(data), "--output", str(out), "--per-class"]) == 0
    printed = capsys.readouterr().out
    assert "2 images" in printed
    assert all(word in printed for word in ["AP75", "AR100", "ECE", "IoU 0.5, 10 bins", "AP cat", "AP emu"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert metrics["metrics"]["AP/cat"] == -1.0  # no cat in the ground truth
    assert 0.0 <= metrics["metrics"]["AP"] <= 1.0
    assert metrics["calibration"][0]["score_threshold"] == 0.0
    results = json.loads((out / "results.json").read_text())
    assert metrics["detections"] == len(results)
    assert {one["image_id"] for one in results} == {3, 7}
    assert {one["category_id"] for one in results} <= {4, 9}


def test_evaluate_refuses_bad_inputs(model, data, tmp_path, capsys):
    wrong = json.loads((data / "annotations" / "instances_val.json").read_text())
    wrong["categories"][0]["name"] = "yak"
    (data / "annotations" / "instances_test.json").write_text(json.dumps(wrong))
    common = ["--model", model, "--data", str(data)]
    assert "yak" in fails(evaluate, [*common, "--split", "test"], capsys)
    assert "instances_val.json" in fails(evaluate, [*common, "--split", "train"], capsys)
    assert "nowhere" in fails(evaluate, ["--model", model, "--data", str(data / "nowhere")], capsys)
    (data / "images" / "b.jpg").write_bytes(b"no image")
    assert "b.jpg" in fails(evaluate, [*common], capsys)


def test_debug_shows_the_traceback(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        predict(["none.jpg", "--model", model, "--output", str(tmp_path), "--debug"])
