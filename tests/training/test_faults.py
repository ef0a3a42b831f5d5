"""What goes wrong in a training: gradients that are not finite, unreadable images, dead workers, odd batches."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from packaging.version import Version

from drmm_hf import DrmmForObjectDetection
from drmm_hf.data import TrainTransform
from drmm_hf.training import TrainConfig, TrainingStopped, train
from drmm_hf.training.loop import _Training

NEW_TRANSFORMERS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="torch.compile stumbles over the output recorder of older transformers",
)
SMALL = {"num_stages": 2, "num_proposals": 16}


def settings(scenes: Path, output: Path, **more: Any) -> TrainConfig:
    fields = {"data": str(scenes), "output": str(output), "train_images": 16, "batch_size": 2, "log_every": 1}
    return TrainConfig(**{**fields, "cpu": True, "eval_split": "", "save_every": 0, "config": SMALL, **more})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps infinite."""
    original, count = _Training._forward_backward, [0]

    def forward_backward(self: _Training, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        values = original(self, batches)
        count[0] += 1
        if count[0] in steps:
            self.model.model.stages[0].fc1.weight.grad[0, 0] = float("nan")
        return values

    monkeypatch.setattr(_Training, "_forward_backward", forward_backward)


def test_steps_without_a_finite_gradient_are_skipped_and_counted(scenes, tmp_path, monkeypatch, caplog) -> None:
    poison(monkeypatch, {3, 6})
    with caplog.at_level(logging.WARNING):
        result = train(settings(scenes, tmp_path))
    assert result.metrics["bad_steps"] == 2
    assert "step 3: 1 steps without a finite gradient were skipped" in caplog.text
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    losses = [line["loss"] for line in lines(tmp_path)]
    assert [loss is None for loss in losses] == [step in (3, 6) for step in range(1, 9)]


def test_too_many_bad_steps_in_a_row_stop_the_training_with_a_diagnosis(scenes, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, set(range(4, 99)))
    message = "3 steps in a row up to step 6 had no finite gradient.*Lower --learning-rate .now 0.001."
    with pytest.raises(TrainingStopped, match=message):
        train(settings(scenes, tmp_path, max_bad_steps=3))


def spoil(scenes: Path, folder: Path, count: int) -> list[str]:
    shutil.copytree(scenes, folder)
    pictures = sorted((folder / "images").glob("*train*"))[:count]
    for picture in pictures:
        picture.write_bytes(picture.read_bytes()[:400])
    return [picture.name for picture in pictures]


def test_unreadable_images_are_reported_once_and_do_not_stop_the_training(scenes, tmp_path, caplog) -> None:
    names = spoil(scenes, tmp_path / "data", 2)
    with caplog.at_level(logging.WARNING):
        result = train(settings(tmp_path / "data", tmp_path / "out", train_images=48))
    reported = result.metrics["unreadable_images"]
    assert sorted(next(name for name in names if name in message) for message in reported) == names
    assert caplog.text.count("training image replaced") == 2
    assert len(lines(tmp_path / "out")) == 24


def test_more_unreadable_images_than_allowed_stop_it(scenes, tmp_path) -> None:
    spoil(scenes, tmp_path / "data", 4)
    with pytest.raises(TrainingStopped, match=r"[34] training images cannot be read, more than --max-bad-images 2: "):
        train(settings(tmp_path / "data", tmp_path / "out", train_images=48, max_bad_images=2))


def test_a_worker_that_dies_is_a_clear_error(scenes, tmp_path, monkeypatch) -> None:
    main, original = os.getpid(), TrainTransform.__call__

    def die(self: TrainTransform, *args: Any, **kwargs: Any) -> Any:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TrainTransform, "__call__", die)
    with pytest.raises(TrainingStopped, match=r"A process that reads images has died .* lower --num-workers"):
        train(settings(scenes, tmp_path, num_workers=1))


def without_boxes(scenes: Path, folder: Path, keep: int) -> Path:
    """The scenes with the boxes of the first images only."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").symlink_to(scenes / "images")
    for split in ("train", "val"):
        content = json.loads((scenes / f"annotations/instances_{split}.json").read_text())
        kept = {image["id"] for image in content["images"][:keep]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return folder


def test_batches_of_boxless_images_leave_the_weights_finite(scenes: Path, tmp_path: Path) -> None:
    data = without_boxes(scenes, tmp_path / "data", keep=3)
    result = train(settings(data, tmp_path / "out", train_images=24))
    assert result.metrics["bad_steps"] == 0
    assert 0.0 in [line["loss"] for line in lines(tmp_path / "out")]
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_boxless_images_can_be_left_out(scenes: Path, tmp_path: Path) -> None:
    data = without_boxes(scenes, tmp_path / "data", keep=5)
    result = train(settings(data, tmp_path / "out", epochs=4, train_images=None, skip_empty_images=True))
    content = json.loads((data / "annotations/instances_train.json").read_text())
    images = len({a["image_id"] for a in content["annotations"]})
    assert result.metrics["train_steps"] == round(4 * images / 2)
    assert all(line["loss"] > 0 for line in lines(tmp_path / "out"))


class TestEvaluationDuringTraining:
    def test_the_best_and_the_last_are_kept(self, scenes, tmp_path, monkeypatch) -> None:
        scores = iter([0.1, 0.3, 0.2, 0.25])
        monkeypatch.setattr("drmm_hf.training.loop.evaluate_model", lambda *a, **k: {"AP": next(scores), "n": "text"})
        result = train(settings(scenes, tmp_path, eval_split="val", eval_every=2))
        assert (result.metrics["best_AP"], result.metrics["best_step"], result.metrics["AP"]) == (0.3, 4, 0.25)
        best, last = (DrmmForObjectDetection.from_pretrained(tmp_path / name) for name in ("best", "model"))
        assert not torch.equal(best.model.stages[0].fc1.weight, last.model.stages[0].fc1.weight)
        assert [line["AP"] for line in lines(tmp_path) if "AP" in line] == [0.1, 0.3, 0.2]

    def test_it_stops_when_nothing_gets_better(self, scenes, tmp_path, monkeypatch) -> None:
        scores = iter([0.3, 0.2, 0.1, 0.1, 0.1])
        monkeypatch.setattr("drmm_hf.training.loop.evaluate_model", lambda *a, **k: {"AP": next(scores)})
        result = train(settings(scenes, tmp_path, eval_split="val", eval_every=1, patience=2))
        assert result.metrics["train_steps"] == 3
        assert result.metrics["best_step"] == 1

    def test_by_epochs(self, scenes, tmp_path) -> None:
        result = train(settings(scenes, tmp_path, eval_split="val", eval_every_epochs=0.5, epochs=1, train_images=None))
        assert [line["step"] for line in lines(tmp_path) if "AP" in line] == [3]
        assert "AP" in result.metrics


def test_the_average_is_what_is_evaluated_and_saved(scenes: Path, tmp_path: Path) -> None:
    plain = train(settings(scenes, tmp_path / "plain"))
    averaged = train(settings(scenes, tmp_path / "average", ema_decay=0.99))
    saved = DrmmForObjectDetection.from_pretrained(tmp_path / "average/model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in averaged.model.state_dict().items())
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("plain", "average")]
    assert losses[0] == losses[1]
    assert not torch.equal(saved["model.proposals.features"], plain.model.state_dict()["model.proposals.features"])


# rounding adds up over the steps; recomputing the stages is the same arithmetic
@pytest.mark.parametrize(
    ("options", "first", "later"),
    [
        ({"mixed_precision": "bf16"}, 5e-3, 5e-2),
        ({"gradient_checkpointing": True}, 1e-6, 1e-5),
        pytest.param(
            {"compile": "eager"},
            1e-5,
            5e-3,
            marks=NEW_TRANSFORMERS,
        ),
    ],
)
def test_cheaper_arithmetic_trains_alike(scenes: Path, tmp_path: Path, options: dict, first, later) -> None:
    train(settings(scenes, tmp_path / "plain"))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(settings(scenes, tmp_path / "other", **options))
    plain, other = ([line["loss"] for line in lines(tmp_path / name)] for name in ("plain", "other"))
    assert other[0] == pytest.approx(plain[0], rel=first)
    assert other == pytest.approx(plain, rel=later)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor compiles with gcc on a CPU")
@NEW_TRANSFORMERS
def test_inductor_trains_as_eager_in_one_graph(scenes: Path, tmp_path: Path) -> None:
    options = {"config": {"num_stages": 1, "num_proposals": 16}, "learning_rate": 1e-5, "train_images": 8}
    train(settings(scenes, tmp_path / "plain", **options))
    torch._dynamo.utils.counters.clear()
    train(settings(scenes, tmp_path / "other", compile="inductor", **options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    plain, other = ([line["loss"] for line in lines(tmp_path / name)] for name in ("plain", "other"))
    assert other == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("augmentation", ["multi_scale", "resize"])
def test_the_papers_augmentation_and_batches_of_one_orientation(scenes, tmp_path, augmentation) -> None:
    fields = {"augmentation": augmentation, "aspect_ratio_batches": True, "train_images": 2, "config": SMALL}
    train(settings(scenes, tmp_path, **fields))
    assert lines(tmp_path)[0]["loss"] > 0


def test_a_tracker_that_is_not_there_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report_to='tensorbord'; choose of .*tensorboard"):
        train(settings(scenes, tmp_path, report_to="tensorbord"))


def test_metrics_go_to_a_tracker(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(settings(scenes, tmp_path, report_to="tensorboard"))
    assert list(tmp_path.rglob("events.out.tfevents*"))
