"""The commands take detectors of transformers: fine-tuned by likelihood, evaluated, analyzed, deployed as they were."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from packaging.version import Version
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DeformableDetrImageProcessor,
    DetrImageProcessor,
    RTDetrImageProcessor,
    YolosConfig,
    YolosImageProcessor,
)
from transformers.utils import logging as transformers_logging

from detector_fixtures import small_detector
from drmm_hf import DrmmDetrForObjectDetection
from drmm_hf.cli import main
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import predict_dataset
from drmm_hf.export import ExportedDetector
from drmm_hf.training import TrainConfig
from drmm_hf.training import train as train_here
from export_fixtures import WITH_ONNX
from training.runs import run_two_processes

# 2.11 raises SerializeError where it stores the graph, 2.14 does not; those between were not tried
WITH_NEW_TORCH = pytest.mark.skipif(Version(torch.__version__) < Version("2.14"), reason="needs torch 2.14")
PROCESSORS = {
    "rt_detr_v2": RTDetrImageProcessor(size={"height": 64, "width": 64}),
    "rf_detr": RTDetrImageProcessor(size={"height": 64, "width": 64}, do_normalize=True),
    "deformable_detr": DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
    "detr": DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, num_train=8, num_val=4, image_size=(64, 96))
    return folder


@pytest.fixture
def stock(request, tmp_path, scenes) -> str:
    """Folder of a stock checkpoint with the classes of the scenes."""
    family = getattr(request, "param", "rt_detr_v2")
    names = load_detection_dataset(scenes, "val").id2label
    labels = {name: label for label, name in names.items()}
    small_detector(family, id2label=names, label2id=labels).save_pretrained(tmp_path / "stock")
    PROCESSORS[family].save_pretrained(tmp_path / "stock")
    return str(tmp_path / "stock")


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def train(stock: str, scenes: Path, output: Path, *more: str) -> dict[str, Any]:
    words = ["train", "--model", stock, "--data", scenes, "--output", output, "--train-images", "8"]
    run(*words, "--cpu", "--log-every", "1", "--learning-rate", "1e-4", *more)
    return json.loads((output / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("stock", PROCESSORS, indirect=True)
def test_trained_evaluated_and_deployed(stock, scenes, tmp_path, capsys):
    first = train(stock, scenes, tmp_path / "out")
    assert "nll_stage_1" in first
    printed = capsys.readouterr().out
    run(
        "evaluate",
        "--model",
        tmp_path / "out/model",
        "--data",
        scenes,
        "--with-scales",
        "--output",
        tmp_path / "evaluated",
    )
    results = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert len(results[0]["scales"]) == 4
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "out/model")
    assert isinstance(model, DrmmDetrForObjectDetection)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out/model")
    assert type(processor) is type(AutoImageProcessor.from_pretrained(stock))
    # what is deployed, without D-RMM, is the stock detector and detects the same
    assert str(tmp_path / "out/deployed") in printed
    deployed = AutoModelForObjectDetection.from_pretrained(tmp_path / "out/deployed")
    assert type(deployed) is type(AutoModelForObjectDetection.from_pretrained(stock))
    assert deployed.config.id2label == model.config.id2label
    words = ["--model", tmp_path / "out/deployed", "--data", scenes, "--top-k", "8", "--output", tmp_path / "again"]
    run("evaluate", *words)
    again = json.loads((tmp_path / "again/results.json").read_text())
    scores = {(one["image_id"], tuple(one["bbox"])): one["score"] for one in results}
    known = [(one["score"], scores.get((one["image_id"], tuple(one["bbox"])))) for one in again]
    assert sum(old is not None for _, old in known) >= 0.5 * len(again)  # DETR keeps one class of a box


def test_native_objective_and_other_classes(stock, scenes, tmp_path):
    names = {0: "a", 1: "b"}
    small_detector("rt_detr_v2", id2label=names, label2id={"a": 0, "b": 1}).save_pretrained(stock)
    first = train(stock, scenes, tmp_path / "native", "--config", "objective=native", "--eval-every", "2")
    assert "nll_stage_1" not in first
    assert first["loss"] > 0
    for wrapped, plain in (("model", "deployed"), ("best", "deployed-best")):
        weights = AutoModelForObjectDetection.from_pretrained(tmp_path / "native" / wrapped).detector.state_dict()
        deployed = AutoModelForObjectDetection.from_pretrained(tmp_path / "native" / plain)
        assert not isinstance(deployed, DrmmDetrForObjectDetection)
        assert all(torch.equal(value, weights[name]) for name, value in deployed.state_dict().items())
        AutoImageProcessor.from_pretrained(tmp_path / "native" / plain)
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "native/model")
    assert model.config.id2label == load_detection_dataset(scenes, "val").id2label
    # the result goes on learning by likelihood
    assert "mcm_stage_0" in train(
        str(tmp_path / "native/model"), scenes, tmp_path / "on", "--config", "objective=nll_mcm"
    )


def test_native_objective_with_few_objects_in_small_batches(stock, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "sparse")
    file = tmp_path / "sparse/annotations/instances_train.json"
    truth = json.loads(file.read_text())
    with_objects = [image["id"] for image in truth["images"][::2]]
    truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] in with_objects]
    file.write_text(json.dumps(truth))
    words = ("--config", "objective=native", "--batch-size", "1", "--log-every", "8", "--eval-split", "")
    assert train(stock, tmp_path / "sparse", tmp_path / "single", *words)["objects"] == len(truth["annotations"])
    # a step of four batches has the mean of their losses
    one = train(stock, scenes, tmp_path / "one", *words)["loss"]
    words = (*words, "--gradient-accumulation", "4", "--learning-rate", "1e-9")
    assert train(stock, scenes, tmp_path / "four", *words)["loss"] == pytest.approx(one, rel=0.5)


def test_other_classes_are_one_line_and_no_bars_of_a_second(stock, scenes, tmp_path, capfd, caplog):
    small_detector("rt_detr_v2", id2label={0: "a"}, label2id={"a": 0}).save_pretrained(stock)
    capfd.readouterr()
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    try:
        train(stock, scenes, tmp_path / "out", "--eval-split", "")
    finally:
        transformers_logging.set_verbosity(before)
    printed = capfd.readouterr().err
    assert {bar for bar in re.findall(r"[\w ]+(?=:\s+\d+%\|)", printed)} == {"training"}
    assert "LOAD REPORT" not in printed
    classes = len(load_detection_dataset(scenes, "val").id2label)
    [note] = (record.getMessage() for record in caplog.records if stock in record.getMessage())
    assert {str(classes), "1"} <= {*note.split()}


@pytest.fixture
def own_precision() -> Iterator[None]:
    """Accelerate keeps the precision of the first training of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_average_half_precision_fixed_backbone_and_size(stock, scenes, tmp_path, own_precision):
    options = ["--ema-decay", "0.9", "--mixed-precision", "bf16", "--backbone-lr-factor", "0", "--image-size", "96"]
    train(stock, scenes, tmp_path / "out", *options, "--eval-split", "")
    assert AutoImageProcessor.from_pretrained(tmp_path / "out/model").size == {"height": 96, "width": 96}
    old, new = (
        dict(model.named_parameters())
        for model in (
            AutoModelForObjectDetection.from_pretrained(stock),
            AutoModelForObjectDetection.from_pretrained(tmp_path / "out/model").detector,
        )
    )
    same = {name for name, value in old.items() if torch.equal(value, new[name])}
    assert same >= {name for name in old if ".backbone." in name}
    assert len(same) < len(old) / 2
    assert {value.dtype for value in new.values()} == {torch.float32}


@pytest.mark.parametrize("stock", ["detr"], indirect=True)
def test_gradient_checkpointing_accumulation_and_shortest_edge(stock, scenes, tmp_path):
    options = ["--image-size", "96", "--batch-size", "1", "--gradient-accumulation", "2", "--eval-split", ""]
    plain = train(stock, scenes, tmp_path / "plain", *options)
    saving = train(stock, scenes, tmp_path / "saving", *options, "--gradient-checkpointing")
    assert saving["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    size = AutoImageProcessor.from_pretrained(tmp_path / "saving/model").size
    assert (size["shortest_edge"], size["longest_edge"]) == (96, 144)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("stock", "options"),
    [
        pytest.param("rt_detr_v2", ["--format", "torch_export"], marks=WITH_NEW_TORCH),
        pytest.param("detr", ["--format", "onnx", "--with-postprocessing"], marks=WITH_ONNX),
    ],
    indirect=["stock"],
)
def test_exported(stock, options, tmp_path, capsys):
    """The command compares the file with the checkpoint itself; with D-RMM on it, the file has gamma, too."""
    DrmmDetrForObjectDetection.from_detector(stock).save_pretrained(tmp_path / "drmm")
    AutoImageProcessor.from_pretrained(stock).save_pretrained(tmp_path / "drmm")
    words = ["export", str(tmp_path / "drmm"), str(tmp_path / "out"), *options]
    assert main(words) == 2
    assert "--batch 1" in capsys.readouterr().err
    run(*words, "--batch", "2", "--size", "64x96")
    sidecar = json.loads((tmp_path / "out/export.json").read_text())
    assert sidecar["outputs"][-1].endswith("scales")
    pixels = ExportedDetector(tmp_path / "out").processor(Image.new("RGB", (96, 64)), return_tensors="pt")
    assert pixels["pixel_values"].shape[-2:] == (64, 96)


def test_what_a_family_cannot_do_is_refused(stock, scenes, tmp_path, capsys):
    words = ["train", "--model", stock, "--data", str(scenes), "--train-images", "2", "--cpu"]
    for more in (["--gradient-checkpointing"], ["--config", "mcm_wieght=1"], ["--compile", "inductor"]):
        assert main([*words, "--output", str(tmp_path / more[0]), *more]) == 2
        error = capsys.readouterr().err
        assert more[-1].strip("-").split("=")[0].replace("-", " ") in error
        assert "Traceback" not in error


def test_a_family_without_an_adapter_is_not_trained(scenes, tmp_path, capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = YolosConfig(**sizes, image_size=[64, 64], num_detection_tokens=4)
    AutoModelForObjectDetection.from_config(config).save_pretrained(tmp_path / "yolos")
    YolosImageProcessor().save_pretrained(tmp_path / "yolos")
    words = ["train", "--model", tmp_path / "yolos", "--data", scenes, "--output", tmp_path / "out"]
    assert main([*map(str, words), "--train-images", "2", "--cpu"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(name in line for name in ("yolos", *PROCESSORS))
    assert not (tmp_path / "out").exists()


def test_resumed_to_the_bit(stock, scenes, tmp_path):
    more = ["--schedule", "constant_with_warmup", "--eval-split", "", "--save-every", "2", "--ema-decay", "0.9"]
    train(stock, scenes, tmp_path / "whole", *more)
    train(stock, scenes, tmp_path / "parts", *more, "--train-images", "4")
    train(stock, scenes, tmp_path / "parts", *more, "--resume")
    whole, parts = (
        AutoModelForObjectDetection.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_any_stock_detector_is_analyzed_and_predicts(stock, scenes, tmp_path):
    run("analyze", "--checkpoint", stock, "--data", scenes, "--split", "val", "--output_dir", tmp_path / "page")
    assert (tmp_path / "page/report.html").is_file()
    image = tmp_path / "image.png"
    Image.effect_noise((96, 64), 60).convert("RGB").save(image)
    run("predict", "--model", stock, image, "--output", tmp_path / "drawn", "--threshold", "0")


def test_scores_of_a_stock_detector_are_those_of_its_processor(stock, scenes):
    model, processor = AutoModelForObjectDetection.from_pretrained(stock), AutoImageProcessor.from_pretrained(stock)
    dataset = load_detection_dataset(scenes, "val", id2label=model.config.id2label)
    found = predict_dataset(model, processor, dataset, progress=False, top_k=8)
    row = dataset.dataset[0]
    image = Image.open(row["image"]["path"])
    with torch.inference_mode():
        outputs = model(**processor(images=image, return_tensors="pt"))
    expected = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 96)])[0]
    scores = [one["score"] for one in found if one["image_id"] == row["image_id"]]
    torch.testing.assert_close(torch.tensor(scores), expected["scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stock", ["deformable_detr"], indirect=True)
def test_two_processes_train_as_one(stock, scenes, tmp_path):
    """Of a family whose normalization does not depend on the batch."""
    options = {"model": stock, "data": str(scenes), "train_images": 8, "eval_split": "", "log_every": 1, "cpu": True}
    options |= {"horizontal_flip": 0.0, "learning_rate": 1e-5}
    train_here(TrainConfig(**options, batch_size=2, output=str(tmp_path / "one")))
    run_two_processes([{**options, "batch_size": 1, "output": str(tmp_path / "two")}], tmp_path)
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-4)
