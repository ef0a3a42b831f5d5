"""The training loop and the commands around it, run as a user runs them, only shorter."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.conversion import released_state_dict
from drmm_hf.training import TrainConfig, read_recipe, train

ROOT = Path(__file__).parents[2]


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def short_run(scenes: Path, output: Path, **fields) -> TrainConfig:
    fields = {"train_images": 8, "batch_size": 4, "log_every": 1, "cpu": True, **fields}
    return TrainConfig(data=str(scenes), output=str(output), **fields)


def test_a_run_leaves_model_metrics_and_settings(scenes: Path, tmp_path: Path) -> None:
    result = train(short_run(scenes, tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"AP", "AP50", "AP75", "AR100", "ECE", "train_seconds"} <= set(metrics)
    assert metrics["train_images"] == 8
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss", "grad_norm", "nll_stage_1", "mcm_stage_3", "learning_rate", "images_per_second"} <= set(lines[0])
    assert read_recipe(str(tmp_path / "recipe.yaml"))["batch_size"] == 4
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 4 * 100
    assert {r["category_id"] for r in results} <= category_ids(scenes)
    reloaded = DrmmForObjectDetection.from_pretrained(result.model_dir)
    assert reloaded.config.id2label == result.model.config.id2label
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name


def category_ids(scenes: Path) -> set[int]:
    content = json.loads((scenes / "annotations/instances_val.json").read_text())
    return {category["id"] for category in content["categories"]}


def test_the_seed_decides_everything(scenes: Path, tmp_path: Path) -> None:
    losses = []
    for i, seed in enumerate((3, 3, 4)):
        train(short_run(scenes, tmp_path / str(i), seed=seed, eval_split=""))
        lines = (tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_training_lowers_the_loss(scenes: Path, tmp_path: Path) -> None:
    train(short_run(scenes, tmp_path, train_images=160, eval_split="", schedule="constant_with_warmup"))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # means of about 71 and 66; that of ten batches varies by less than 1
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 3


def test_fine_tuning_keeps_what_fits_and_takes_the_new_classes(scenes: Path, tmp_path: Path) -> None:
    first = train(short_run(scenes, tmp_path / "first", eval_split=""))
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    content["categories"] = [{"id": 5, "name": "thing"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 5
    other = tmp_path / "other"
    (other / "annotations").mkdir(parents=True)
    (other / "annotations/instances_train.json").write_text(json.dumps(content))
    (other / "images").symlink_to(scenes / "images")
    tuned = train(
        short_run(
            other, tmp_path / "tuned", eval_split="", model=str(first.model_dir), learning_rate=1e-9, train_images=4
        )
    )
    assert tuned.model.config.id2label == {0: "thing"}
    before, after = first.model.state_dict(), tuned.model.state_dict()
    trained = {n for n in before if "classifier" not in n and "running" not in n and "num_batches" not in n}
    for name in trained:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert after["model.heads.0.classifier.weight"].shape[0] == 1


def test_the_train_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = run_script("train.py", "--data", tmp_path / "nowhere", "--train-images", 8, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(scenes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name, text in {"config.json": '{"model_type": "detr"}', "preprocessor_config.json": "{}"}.items():
        (other / name).write_text(text)
    (other / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"config\.json: field model_type is 'detr', expected 'drmm'"):
        train(short_run(scenes, tmp_path / "out", model=str(other)))


def test_quickstart_on_own_data(scenes: Path, tmp_path: Path) -> None:
    done = run_script("quickstart.py", "--data", scenes, "--output", tmp_path, "--train-images", 8, "--num-pictures", 2)
    assert done.returncode == 0, done.stderr
    for part in ("metrics.json", "model/model.safetensors", "pictures/overview.png", "results.json"):
        assert str(tmp_path / part).removesuffix("/model.safetensors") in done.stdout
        assert (tmp_path / part).stat().st_size > 0
    assert "AP50" in done.stdout
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_picture_stops_the_training_by_its_name(scenes: Path, tmp_path: Path, num_workers: int) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    broken = sorted((data / "images").glob("*train*"))[3]
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(ValueError, match=broken.name) as caught:
        train(short_run(data, tmp_path / "out", train_images=12, num_workers=num_workers, max_bad_images=0))
    assert "Traceback" not in str(caught.value)


def test_training_without_any_box_is_refused(scenes: Path, tmp_path: Path) -> None:
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    content["annotations"] = []
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(scenes / "images")
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances_train\.json: no boxes to learn from"):
        train(short_run(tmp_path, tmp_path / "out", eval_split=""))
    assert not (tmp_path / "out").exists()


def test_a_converted_baseline_starts_a_mixture(scenes: Path, tmp_path: Path) -> None:
    """Released Sparse R-CNN file -> scripts/convert.py -> scripts/train.py --warm-start, as a user would."""
    torch.manual_seed(0)
    baseline = DrmmForObjectDetection(DrmmConfig.from_preset("sparse-rcnn-tiny", num_labels=5))
    with torch.no_grad():
        for parameter in baseline.parameters():
            parameter.add_(0.01)
    torch.save({"state_dict": released_state_dict(baseline)}, tmp_path / "released.pth")
    done = run_script("convert.py", tmp_path / "released.pth", tmp_path / "start", "--preset", "sparse-rcnn-tiny")
    assert done.returncode == 0, done.stderr
    options = ["--data", scenes, "--output", tmp_path / "run", "--train-images", 4, "--batch-size", 4, "--cpu"]
    options += ["--warm-start", tmp_path / "start", "--eval-split", "", "--learning-rate", "1e-9", "--config"]
    done = run_script("train.py", *options, "mcm_weight=0.25", "objective=nll_mcm")
    assert done.returncode == 0, done.stderr
    trained = DrmmForObjectDetection.from_pretrained(tmp_path / "run" / "model")
    assert (trained.config.head, trained.config.mcm_weight) == ("mixture", 0.25)
    start, end = dict(baseline.named_parameters()), dict(trained.named_parameters())
    for name, parameter in end.items():
        if name.startswith("model.heads.") and name.split(".")[3] in ("classifier", "objectness", "box"):
            assert name not in start or start[name].shape != parameter.shape or not torch.equal(start[name], parameter)
        else:
            torch.testing.assert_close(parameter, start[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"objectiv": "nll"}}, "objectiv"),
        ({"config": {"objective": "set_prediction"}}, "objective"),
        ({"config": {"num_stages": "many"}}, "num_stages"),
        ({"warm_start": "no/such/folder"}, "no/such/folder"),
        ({"warm_start": "a", "model": "b"}, "Give one of model .* and warm_start"),
    ],
)
def test_a_bad_start_is_refused_before_the_training(scenes: Path, tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(short_run(scenes, tmp_path, **fields))


def test_a_warm_start_of_another_decoder_is_refused(scenes: Path, tmp_path: Path) -> None:
    DrmmForObjectDetection(DrmmConfig.from_preset("adamixer-tiny")).save_pretrained(tmp_path / "start")
    DrmmImageProcessor().save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="has decoder='adamixer', the model to train 'sparse_rcnn'"):
        train(short_run(scenes, tmp_path / "run", warm_start=str(tmp_path / "start")))


def test_a_warm_start_of_another_size_is_refused(scenes: Path, tmp_path: Path) -> None:
    config = DrmmConfig.from_preset("sparse-rcnn-tiny", num_stages=2)
    DrmmForObjectDetection(config).save_pretrained(tmp_path / "start")
    DrmmImageProcessor().save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match=r"tensors missing .* Choose the preset of the same backbone"):
        train(short_run(scenes, tmp_path / "run", warm_start=str(tmp_path / "start")))
