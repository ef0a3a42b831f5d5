"""Interrupted trainings go on as if nothing had happened, wherever they were interrupted."""

import errno
import json
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError

from drmm_hf import DrmmForObjectDetection
from drmm_hf.cli import main
from drmm_hf.training import TrainConfig, TrainResult, train
from training.runs import SMALL, fields, lines, start


def saving(data: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Twelve steps with a checkpoint after every third."""
    return fields(data, output, **{"train_images": 24, "save_every": 3, **more})


@pytest.fixture(scope="module")
def uninterrupted(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Such a training from beginning to end."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(TrainConfig(**saving(scenes, tmp_path_factory.mktemp("whole"))))


def cut_in_save(monkeypatch: pytest.MonkeyPatch, saves: int, settings: dict[str, Any]) -> None:
    """Train, and stop the training while it writes its n-th checkpoint."""
    original, done = Accelerator.save_state, [0]

    def save_state(self: Accelerator, *args: Any, **kwargs: Any) -> None:
        done[0] += 1
        original(self, *args, **kwargs)
        if done[0] == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", save_state)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**settings))


@pytest.mark.parametrize(
    "more",
    [
        None,
        {"ema_decay": 0.9, "eval_every": 4, "eval_split": "val", "num_workers": 1},
        {"mixed_precision": "bf16", "batch_size": 1, "gradient_accumulation": 2},
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    scenes, tmp_path, monkeypatch, more: dict[str, Any] | None, uninterrupted: TrainResult
) -> None:
    whole = train(TrainConfig(**saving(scenes, tmp_path / "whole", **more))) if more else uninterrupted
    settings = saving(scenes, tmp_path / "cut", **(more or {}))
    cut_in_save(monkeypatch, 3, settings)
    with (tmp_path / "cut/metrics.jsonl").open("a") as log:  # what was logged after the checkpoint, cut short
        log.write('{"step": 10, "loss": 1.0}\n{"step": 11, "lo')
    resumed = train(TrainConfig(**settings, resume=True))
    assert lines(tmp_path / "cut") == lines(whole.model_dir.parent)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    timeless = [{k: v for k, v in r.metrics.items() if k != "train_seconds"} for r in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_a_resumed_run_may_have_another_rate_and_another_name_of_its_model(scenes, tmp_path, monkeypatch) -> None:
    train(TrainConfig(**fields(scenes, tmp_path / "start", train_images=2)))
    options = {
        "model": str(tmp_path / "start/model"),
        "schedule": "constant_with_warmup",
        "warmup_steps": 0,
        "config": None,
    }
    settings = saving(scenes, tmp_path / "cut", **options, learning_rate=1e-3)
    cut_in_save(monkeypatch, 3, settings)
    settings |= {"learning_rate": 1e-5, "weight_decay": 0.5, "model": f"{tmp_path}/start/../start/model/"}
    train(TrainConfig(**settings, resume=True))
    assert [line["learning_rate"] for line in lines(tmp_path / "cut")] == [1e-3] * 6 + [1e-5] * 6


def test_checkpoints_are_rotated_and_damaged_ones_are_passed_over_with_a_note(scenes, tmp_path, caplog) -> None:
    settings = saving(scenes, tmp_path, save_total_limit=3)
    train(TrainConfig(**settings))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}" for step in (6, 9, 12)]
    expected = lines(tmp_path)
    (folder / "step-00000012/checkpoint.json").unlink()
    weights = folder / "step-00000009/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (folder / ".partial").mkdir()
    with caplog.at_level(logging.WARNING):
        train(TrainConfig(**settings, resume=True))
    for name in ("step-00000012", "step-00000009", "step-00000006"):
        assert name in caplog.text
    assert lines(tmp_path) == expected
    assert not (folder / ".partial").exists()


def test_going_on_with_a_longer_training_begins_at_its_rate(scenes, tmp_path) -> None:
    """The rate of the cosine is 0 at the end of the shorter one."""
    first = train(TrainConfig(**saving(scenes, tmp_path)))
    longer = train(TrainConfig(**saving(scenes, tmp_path, train_images=26, resume=True)))
    assert longer.metrics["train_steps"] == first.metrics["train_steps"] + 1
    weights = [dict(result.model.named_parameters()) for result in (first, longer)]
    assert any(not torch.equal(before, weights[1][name]) for name, before in weights[0].items())


def test_a_training_that_stopped_early_stays_stopped(scenes, tmp_path) -> None:
    options = {"eval_split": "val", "eval_every": 1, "patience": 2, "learning_rate": 1e-12, "save_every": 100}
    first = train(TrainConfig(**saving(scenes, tmp_path, **options)))
    assert first.metrics["train_steps"] < 12
    (tmp_path / "metrics.json").unlink()  # as if it had been killed in its last evaluation
    again = train(TrainConfig(**saving(scenes, tmp_path, **options, resume=True)))
    assert {**again.metrics, "train_seconds": 0} == {**first.metrics, "train_seconds": 0}


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_training_is_overwritten_only_if_told(scenes, tmp_path, monkeypatch) -> None:
    settings = saving(scenes, tmp_path)
    cut_in_save(monkeypatch, 2, settings)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="--resume"):  # an unfinished one
        train(TrainConfig(**settings))
    assert content(tmp_path) == before
    train(TrainConfig(**settings, resume=True))
    (tmp_path / "best").mkdir()
    (tmp_path / "model" / "of_the_training_before").touch()
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}.*--overwrite"):  # a finished one
        train(TrainConfig(**settings))
    assert content(tmp_path) == before
    train(TrainConfig(**{**settings, "train_images": 4, "save_every": 0}, overwrite=True))
    assert len(lines(tmp_path)) == 2
    assert not (tmp_path / "best").exists()  # of the training before
    assert not (tmp_path / "model" / "of_the_training_before").exists()
    with pytest.raises(ValueError, match="--overwrite"):  # nothing to resume, and it would begin anew
        train(TrainConfig(**settings, resume=True))


def test_the_weights_of_an_unfinished_training_are_not_lost(scenes, tmp_path) -> None:
    settings = fields(scenes, tmp_path, train_images=4, eval_split="val", eval_every=1)
    train(TrainConfig(**settings))
    (tmp_path / "metrics.json").unlink()
    before = content(tmp_path)
    with pytest.raises(ValueError, match="--overwrite"):
        train(TrainConfig(**settings))
    assert content(tmp_path) == before


def test_files_of_others_in_the_output_folder_stay(scenes, tmp_path) -> None:
    others = [tmp_path / "checkpoints/mine/weights.pth", tmp_path / "model/code.py", tmp_path / "best/notes.txt"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.touch()
    train(TrainConfig(**fields(scenes, tmp_path, train_images=2)))
    assert all(path.exists() for path in others)


@pytest.mark.skipif(os.name == "nt", reason="files are not locked there")
def test_two_trainings_do_not_share_an_output_folder(scenes, tmp_path) -> None:
    process = start([fields(scenes, tmp_path / "run", train_images=4000)], tmp_path)
    try:
        while not (tmp_path / "run/metrics.jsonl").is_file() or len(lines(tmp_path / "run")) < 2:
            assert process.is_alive(), (tmp_path / "errors.txt").read_text()[-3000:]
            time.sleep(0.05)
        with pytest.raises(ValueError, match=str(tmp_path / "run")):
            train(TrainConfig(**fields(scenes, tmp_path / "run", train_images=2)))
        assert len(lines(tmp_path / "run")) >= 2
    finally:
        process.kill()
        process.join()
    train(TrainConfig(**fields(scenes, tmp_path / "run", train_images=2)))
    assert len(lines(tmp_path / "run")) == 1


def test_overwriting_is_not_repeated_by_the_recipe_that_a_run_leaves(scenes, tmp_path) -> None:
    train(TrainConfig(**fields(scenes, tmp_path, train_images=2, overwrite=True)))
    assert main(["train", "--recipe", str(tmp_path / "recipe.yaml")]) == 2


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of three steps, which nothing may change: what does not fit to it is refused."""
    AcceleratorState._reset_state(reset_partial_state=True)
    output = tmp_path_factory.mktemp("finished")
    train(TrainConfig(**saving(scenes, output, train_images=6)))
    return output


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 4}, "images_per_step"),
        ({"seed": 1}, "seed"),
        ({"config": {**SMALL, "hidden_size": 32}}, "hidden_size"),
        ({"ema_decay": 0.9}, "ema_decay"),
        ({"image_size": [64]}, "image_size"),
        ({"image_frame": "stored"}, "image_frame"),
        ({"classes": True}, "classes"),
        ({"data": True}, "training images"),
    ],
)
def test_resuming_something_else_is_refused_by_name(scenes, tmp_path, change, named, finished: Path) -> None:
    settings = saving(scenes, finished, resume=True)
    before = content(finished)
    if named in ("classes", "training images"):
        truth = json.loads((scenes / "annotations/instances_train.json").read_text())
        truth["categories"][0]["name"] = "something else" if named == "classes" else truth["categories"][0]["name"]
        truth["images"] = truth["images"] if named == "classes" else truth["images"][:-1]
        kept = {image["id"] for image in truth["images"]}
        truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
        (tmp_path / "annotations").mkdir()
        (tmp_path / "images").symlink_to(scenes / "images")
        (tmp_path / "annotations/instances_train.json").write_text(json.dumps(truth))
        change = {"data": str(tmp_path)}
    with pytest.raises(ValueError, match=named):
        train(TrainConfig(**{**settings, **change}))
    assert content(finished) == before


@pytest.mark.parametrize("moment", ["state", "manifest"])
def test_a_full_disk_leaves_the_previous_checkpoint(scenes, tmp_path, monkeypatch, moment, uninterrupted) -> None:
    settings = saving(scenes, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    original = Accelerator.save_state if moment == "state" else os.fsync

    def full(*args: Any, **kwargs: Any) -> None:
        """The disk is full once there is a checkpoint and the next is being written."""
        if (folder / "step-00000003").exists() and (folder / ".partial").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*((Accelerator, "save_state") if moment == "state" else (os, "fsync")), full)
        with pytest.raises(OSError, match="step-00000003"):
            train(TrainConfig(**settings))
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    train(TrainConfig(**settings, resume=True))
    assert lines(tmp_path / "run") == lines(uninterrupted.model_dir.parent)


@pytest.mark.parametrize("folder", ["best", "model"])
def test_a_full_disk_at_the_weights_names_them(scenes, tmp_path, monkeypatch, folder: str) -> None:
    settings = saving(scenes, tmp_path, eval_split="val", eval_every=6)
    original = DrmmForObjectDetection.save_pretrained

    def full(self: DrmmForObjectDetection, place: Any, *args: Any, **kwargs: Any) -> None:
        if Path(place).name == folder:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        original(self, place, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DrmmForObjectDetection, "save_pretrained", full)
        with pytest.raises(OSError, match=str(tmp_path / folder)):
            train(TrainConfig(**settings))
    assert train(TrainConfig(**settings, resume=True)).metrics["train_steps"] == 12


def killed(settings: dict[str, Any], folder: Path, *, when: Callable[[], bool]) -> None:
    """Run the training in a process of its own and kill it as soon as `when()`."""
    process = start([settings], folder)
    deadline = time.monotonic() + 300
    while process.is_alive() and time.monotonic() < deadline and not when():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (folder / "errors.txt").read_text()[-3000:]


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_while_it_saves_the_run_is_still_the_same(scenes, tmp_path, one_thread, kills: int) -> None:
    length = {"train_images": 16 * (kills + 1), "save_every": 2}
    whole = train(TrainConfig(**fields(scenes, tmp_path / "whole", **length)))
    output, draw = tmp_path / "killed", random.Random(0)

    def steps() -> int:
        log = output / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.is_file() else 0

    for turn in range(kills):
        begin, goal = steps(), draw.randint(3, 7)

        def when(turn: int = turn, begin: int = begin, goal: int = goal) -> bool:
            if turn % 2:
                return steps() >= begin + goal
            # in the middle of the writing of a checkpoint; the moment may be missed on a busy machine
            writing = (output / "checkpoints/.partial").exists()
            return steps() > begin + 2 and (writing or steps() >= begin + 7)

        killed(fields(scenes, output, **length, resume=turn > 0), tmp_path, when=when)
    resumed = train(TrainConfig(**fields(scenes, output, **length, resume=True)))
    assert lines(output) == lines(tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the other process: the number of threads changes the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
