"""`drmm export` as a user calls it, and as docs/export.md does."""

import json
import re
import sys
from pathlib import Path

import pytest
from transformers import RTDetrImageProcessor

from detector_fixtures import small_detector
from drmm_hf import DrmmImageProcessor
from drmm_hf.cli import main
from drmm_hf.data import generate_scenes
from drmm_hf.export import ExportedDetector
from export_fixtures import WITH_ONNX, spread_model

TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def test_an_export_is_checked_and_described(exported: Path) -> None:
    settings = json.loads((exported / "export.json").read_text())
    assert settings["inputs"] == ["pixel_values", "pixel_mask", "target_sizes"]
    assert settings["outputs"] == ["scores", "labels", "boxes", "scales"]
    assert (settings["batch"], settings["size"], settings["top_k"]) == ("dynamic", "dynamic", 20)
    assert settings["id2label"] == {"0": "disc", "1": "ring", "2": "star"}
    assert settings["image_processor"]["size"] == {"shortest_edge": 64, "longest_edge": 96}
    assert (exported / settings["file"]).is_file()
    printed = (exported.parent / "printed.txt").read_text()
    assert printed.count("  batch ") == 6
    assert "within 1e-04" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--size", "100x96"], "100x96"),
        (["--precision", "int8"], "int8"),
        (["--with-postprocessing", "--data", "x"], "--with-postprocessing"),
        pytest.param(["--format", "onnx", "--opset", "17"], "17", marks=WITH_ONNX),
        (["--format", "onnx"], "drmm-hf[export]"),
    ],
)
def test_a_mistake_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys, monkeypatch, arguments: list[str], named: str
) -> None:
    if "[" in named:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--format", "torch_export", *arguments]) == 2
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    [line] = [line for line in lines if line.strip() and not line.startswith("Loading weights")]  # its bar
    assert named in line


@pytest.mark.parametrize("kind", ["adapter", "detector of transformers"])
def test_what_has_no_graph_is_one_line(kind: str, tmp_path: Path, capsys) -> None:
    if kind == "adapter":
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    else:
        small_detector("rt_detr_v2").save_pretrained(tmp_path)
        RTDetrImageProcessor().save_pretrained(tmp_path)
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--format", "onnx"]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ("adapter_config.json" if kind == "adapter" else "--size HxW") in line


@pytest.mark.parametrize("size", ["100", "axb", "64x", "64X96"])
def test_a_size_that_is_none(size: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["export", "model", "out", "--format", "onnx", "--size", size])
    assert "--size" in capsys.readouterr().err


@pytest.mark.no_cover
def test_a_deviation_is_reported_beside_float32_rounding(short_checkpoint, tmp_path: Path, monkeypatch, capsys) -> None:
    intact = ExportedDetector.__init__

    def damaged(self, folder) -> None:
        intact(self, folder)
        run = self.run
        self.run = lambda inputs: [value + 2e-3 for value in run(inputs)]

    monkeypatch.setattr(ExportedDetector, "__init__", damaged)
    assert main(["export", short_checkpoint, str(tmp_path), "--format", "torch_export", "--size", "64x96"]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "EXCEEDS" in line]
    assert "EXCEEDS 1e-04; the checkpoint itself in float64 deviates from float32 there by logits" in line
    assert 0 < float(line.rsplit(" ", 1)[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_and_accuracy_on_data(checkpoint: Path, tmp_path: Path, capsys, precision: str) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    data = generate_scenes(tmp_path / "scenes", num_train=1, num_val=4, image_size=(96, 128))
    names = json.loads((data / "annotations/instances_val.json").read_text())["categories"]
    id2label = dict(enumerate(category["name"] for category in names))
    model = spread_model(num_stages=1, id2label=id2label, label2id={name: i for i, name in id2label.items()})
    model.half().save_pretrained(tmp_path / "model")
    DrmmImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    arguments = ["--format", "onnx", "--precision", precision, "--data", str(data)]
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{precision} has no bound" in printed
    assert "exported: AP" in printed


@pytest.mark.slow
def test_a_fixed_size_and_batch(short_checkpoint: str, tmp_path: Path, capsys) -> None:
    arguments = ["--format", "torch_export", "--batch", "3", "--size", "64x96"]
    assert main(["export", short_checkpoint, str(tmp_path), *arguments]) == 0
    assert "batch 3, 64x96" in capsys.readouterr().out
    settings = json.loads((tmp_path / "export.json").read_text())
    assert (settings["batch"], settings["size"]) == (3, [64, 96])
    assert settings["image_processor"]["pad_size"] == {"height": 64, "width": 96}


@pytest.mark.slow
def test_the_documented_snippets_run(short_checkpoint: str, tmp_path: Path, monkeypatch) -> None:
    load, write = re.findall(r"^```python\n(.+?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert main(["export", short_checkpoint, "exported", "--format", "torch_export"]) == 0
    names: dict = {}
    exec(load, names)
    assert names["pred_boxes"].shape == (1, 12, 4)
    (tmp_path / "CHECKPOINT").symlink_to(short_checkpoint)
    exec(write, {})
    assert json.loads((tmp_path / "exported/export.json").read_text())["top_k"] == 50
    assert isinstance(ExportedDetector(tmp_path / "exported").processor, DrmmImageProcessor)
