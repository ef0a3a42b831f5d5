"""Interrupted trainings go on as if nothing had happened, wherever they were interrupted."""

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from drmm_hf.training import TrainConfig, train
from drmm_hf.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
SMALL = {"num_stages": 2, "num_proposals": 16}


def settings(scenes: Path, output: Path, **more: Any) -> dict[str, Any]:
    fields = {"data": str(scenes), "output": str(output), "train_images": 24, "batch_size": 2, "log_every": 1}
    return {**fields, "cpu": True, "eval_split": "", "save_every": 3, "config": SMALL, **more}


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, saves: int, fields: dict[str, Any]) -> None:
    """Train and interrupt the training right after its n-th checkpoint."""
    original, done = Checkpoints.save, []

    def save(self: Checkpoints, *args: Any, **kwargs: Any) -> Path:
        path = original(self, *args, **kwargs)
        done.append(path)
        if len(done) == saves:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**fields))


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9, "eval_every": 4, "eval_split": "val", "num_workers": 1}])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(scenes, tmp_path, monkeypatch, more) -> None:
    whole = train(TrainConfig(**settings(scenes, tmp_path / "whole", **more)))
    fields = settings(scenes, tmp_path / "cut", **more)
    interrupt_after(monkeypatch, 2, fields)
    with (tmp_path / "cut/metrics.jsonl").open("a") as log:  # what was logged after the checkpoint, cut short
        log.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    resumed = train(TrainConfig(**fields, resume=True))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    timeless = [{k: v for k, v in r.metrics.items() if k != "train_seconds"} for r in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_checkpoints_are_rotated_and_the_average_is_among_them(scenes: Path, tmp_path: Path) -> None:
    train(TrainConfig(**settings(scenes, tmp_path, ema_decay=0.5)))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000009", "step-00000012"]
    average = load_file(tmp_path / "checkpoints/step-00000012/average.safetensors")
    saved = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in average.items())


def test_damaged_checkpoints_are_passed_over_with_a_note(scenes, tmp_path, caplog) -> None:
    fields = settings(scenes, tmp_path, save_total_limit=9)
    train(TrainConfig(**fields))
    expected = lines(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000012/checkpoint.json").unlink()
    weights = folder / "step-00000009/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (folder / ".partial-00000014").mkdir()
    with caplog.at_level(logging.WARNING):
        train(TrainConfig(**fields, resume=True))
    text = caplog.text
    assert "step-00000012: incomplete or damaged" in text
    assert "step-00000009: model.safetensors has" in text
    assert "going on from" in text
    assert "step-00000006" in text
    assert lines(tmp_path) == expected


def test_without_resume_an_unfinished_run_is_not_overwritten(scenes, tmp_path, monkeypatch) -> None:
    fields = settings(scenes, tmp_path)
    interrupt_after(monkeypatch, 1, fields)
    with pytest.raises(ValueError, match="an unfinished training has left checkpoints here; add --resume"):
        train(TrainConfig(**fields))
    train(TrainConfig(**fields, resume=True))
    train(TrainConfig(**fields))  # a finished one may be made again
    assert len(lines(tmp_path)) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "was made with images_per_step=2, but this run has 4; choose --gradient-accumulation"),
        ({"seed": 1}, "was made with seed=0, but this run has 1"),
        ({"config": {**SMALL, "hidden_size": 32}}, "was made with config.hidden_size=64, but this run has 32"),
        ({"ema_decay": 0.9}, "was made with ema_decay=None"),
    ],
)
def test_resuming_something_else_is_refused_by_name(scenes, tmp_path, change, message) -> None:
    train(TrainConfig(**settings(scenes, tmp_path, train_images=6)))
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(**{**settings(scenes, tmp_path, resume=True), **change}))


def test_other_classes_on_resume_are_refused(scenes: Path, tmp_path: Path) -> None:
    train(TrainConfig(**settings(scenes, tmp_path / "run", train_images=6)))
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    content["categories"][0]["name"] = "something else"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(scenes / "images")
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"was made with classes=.*something else.*fine-tune with --model"):
        train(TrainConfig(**settings(tmp_path, tmp_path / "run", resume=True)))


@pytest.mark.parametrize("moment", ["state", "manifest"])
def test_a_full_disk_leaves_the_previous_checkpoint(scenes, tmp_path, monkeypatch, moment) -> None:
    fields = settings(scenes, tmp_path)
    train(TrainConfig(**{**fields, "output": str(tmp_path / "whole")}))
    original = Accelerator.save_state if moment == "state" else os.fsync

    def full(*args: Any, **kwargs: Any) -> None:
        """The disk is full once there is a checkpoint and the next is being written."""
        if (tmp_path / "checkpoints/step-00000003").exists() and (tmp_path / "checkpoints/.partial-00000006").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*((Accelerator, "save_state") if moment == "state" else (os, "fsync")), full)
        with pytest.raises(OSError, match=r"cannot be written .*No space left.*the last good one is .*step-00000003"):
            train(TrainConfig(**fields))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    train(TrainConfig(**fields, resume=True))
    assert lines(tmp_path) == lines(tmp_path / "whole")


def killed_run(fields: dict[str, Any], folder: Path, *, when: Any) -> bool:
    """Run the training in a process of its own and kill it as soon as `when()`; True if it was killed."""
    (folder / "configs.json").write_text(json.dumps([fields]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/training/run_configs.py"), str(folder / "configs.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if when():
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors[-3000:]
    return process.returncode != 0


def kill_test(scenes: Path, tmp_path: Path, kills: int) -> None:
    length = {"train_images": 16 * (kills + 1), "save_every": 2}
    # in a process of its own as well: the number of threads changes the last bits of a sum
    assert not killed_run(settings(scenes, tmp_path / "whole", **length), tmp_path, when=lambda: False)
    output, draw = tmp_path / "killed", random.Random(0)
    checkpoints, log = output / "checkpoints", output / "metrics.jsonl"

    def steps() -> int:
        return len(log.read_text().splitlines()) if log.is_file() else 0

    for turn in range(kills):
        start = steps()
        if turn % 2 == 0:  # in the middle of the writing of a checkpoint

            def when(start: int = start) -> bool:
                # the moment may be missed on a busy machine: then somewhere else
                return steps() > start + 2 and (any(checkpoints.glob(".partial-*")) or steps() >= start + 7)

        else:
            goal = start + draw.randint(3, 7)

            def when(goal: int = goal) -> bool:
                return steps() >= goal

        resume = {"resume": True} if turn else {}
        assert killed_run(settings(scenes, output, **length, **resume), tmp_path, when=when), f"turn {turn} finished"
    assert not killed_run(settings(scenes, output, **length, resume=True), tmp_path, when=lambda: False)
    assert lines(output) == lines(tmp_path / "whole")
    whole, killed = (load_file(folder / "model/model.safetensors") for folder in (tmp_path / "whole", output))
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())


def test_killed_while_it_saves_the_run_is_still_the_same(scenes: Path, tmp_path: Path) -> None:
    kill_test(scenes, tmp_path, kills=1)


@pytest.mark.slow
def test_killed_ten_times_the_run_is_still_the_same(scenes: Path, tmp_path: Path) -> None:
    kill_test(scenes, tmp_path, kills=10)
