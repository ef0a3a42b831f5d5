"""What goes wrong in a training, inside or from outside, ends with one message and leaves a way to go on."""

import dataclasses
import json
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from drmm_hf import DrmmForObjectDetection
from drmm_hf.data import TrainTransform, load_detection_dataset
from drmm_hf.training import TrainingStopped, parse_config, train
from training.runs import lines, settings, spoil, start_command, two_ranks, with_annotations

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory ..."),
    MemoryError(),
]


def change_forward(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, DrmmForObjectDetection, Any], None]) -> None:
    """Call `change(turn, model, outputs)` after every forward pass, counted from 1."""
    original, turns = DrmmForObjectDetection.forward, [0]

    def forward(self: DrmmForObjectDetection, *args: Any, **kwargs: Any) -> Any:
        outputs = original(self, *args, **kwargs)
        turns[0] += 1
        change(turns[0], self, outputs)
        return outputs

    monkeypatch.setattr(DrmmForObjectDetection, "forward", forward)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of these steps, and so all gradients, NaN."""

    def spoil(turn: int, model: DrmmForObjectDetection, outputs: Any) -> None:
        if turn in steps:
            outputs.loss = outputs.loss * float("nan")

    change_forward(monkeypatch, spoil)


def test_steps_without_a_finite_gradient_are_skipped_and_counted(scenes, tmp_path, monkeypatch, caplog) -> None:
    poison(monkeypatch, {3, 6})
    with caplog.at_level(logging.WARNING):
        result = train(settings(scenes, tmp_path))
    assert result.metrics["bad_steps"] == 2
    assert "step 3" in caplog.text
    assert "step 6" in caplog.text
    assert all(torch.isfinite(p).all() for p in result.model.state_dict().values())
    assert [line["step"] for line in lines(tmp_path) if line["loss"] is None] == [3, 6]


def test_the_mean_of_a_line_is_that_of_its_good_steps(scenes, tmp_path, monkeypatch) -> None:
    train(settings(scenes, tmp_path / "each", train_images=4))
    poison(monkeypatch, {2})
    train(settings(scenes, tmp_path / "two", train_images=4, log_every=2))
    each, [two] = lines(tmp_path / "each"), lines(tmp_path / "two")
    different = {"step", "learning_rate", "objects", "dropped_boxes"}
    assert {name: two[name] for name in two.keys() - different} == {k: each[0][k] for k in each[0].keys() - different}
    assert two["objects"] == each[0]["objects"] + each[1]["objects"]


def test_too_many_bad_steps_in_a_row_stop_the_training(scenes, tmp_path, monkeypatch) -> None:
    poison(monkeypatch, set(range(4, 99)))
    with pytest.raises(TrainingStopped, match="--learning-rate"):
        train(settings(scenes, tmp_path, max_bad_steps=3))
    assert len(lines(tmp_path)) == 5


def test_a_rate_that_ruins_the_weights_stops_the_training(scenes, tmp_path) -> None:
    with pytest.raises(TrainingStopped, match=r"--learning-rate"):
        train(settings(scenes, tmp_path, learning_rate=1.0, train_images=80, warmup_steps=0, max_bad_steps=10))
    assert len(lines(tmp_path)) < 30


@pytest.mark.usefixtures("quick_streams")
def test_steps_whose_boxes_are_all_dropped_stop_the_training(scenes, tmp_path) -> None:
    """Of a stream; a folder is looked over before the training."""
    rows = load_detection_dataset(scenes, "train").dataset.cast_column("image", datasets.Image())

    def shrink(row: dict[str, Any]) -> dict[str, Any]:
        return {"objects": row["objects"] | {"bbox": [[60.0, 40.0, 1.5, 1.5] for _ in row["objects"]["bbox"]]}}

    rows.map(shrink).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(TrainingStopped, match="--image-size"):
        train(settings(tmp_path, tmp_path / "out", streaming=True, train_images=40, max_bad_steps=3, log_every=2))
    [line] = lines(tmp_path / "out")
    assert (line["objects"], line["loss"]) == (0, 0)
    assert line["dropped_boxes"] > 4


def test_too_many_steps_without_any_box_stop_the_training(scenes, tmp_path) -> None:
    content = json.loads((scenes / "annotations/instances_train.json").read_text())
    del content["annotations"][1:]
    data = with_annotations(scenes, tmp_path / "data", content)
    with pytest.raises(TrainingStopped, match="--skip-empty-images"):
        train(settings(data, tmp_path / "out", train_images=200, batch_size=1, max_bad_steps=1))
    assert len(lines(tmp_path / "out")) < 60


def test_unreadable_images_are_reported_once_and_do_not_stop_the_training(scenes, tmp_path, caplog) -> None:
    names = spoil(scenes, tmp_path / "data", 2)
    with caplog.at_level(logging.WARNING):
        result = train(settings(tmp_path / "data", tmp_path / "out", train_images=48))
    reported = result.metrics["unreadable_images"]
    assert sorted(next(name for name in names if name in message) for message in reported) == names
    assert all(caplog.text.count(name) == 1 for name in names)
    assert len(lines(tmp_path / "out")) == 24


def test_more_unreadable_images_than_allowed_stop_it(scenes, tmp_path) -> None:
    spoil(scenes, tmp_path / "data", 4)
    with pytest.raises(TrainingStopped, match="--max-bad-images"):
        train(settings(tmp_path / "data", tmp_path / "out", train_images=48, max_bad_images=2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_first_unreadable_image_can_stop_it_by_its_name(scenes, tmp_path, num_workers: int) -> None:
    [name] = spoil(scenes, tmp_path / "data", 1)
    with pytest.raises(ValueError, match=name) as caught:
        train(settings(tmp_path / "data", tmp_path / "out", num_workers=num_workers, max_bad_images=0))
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_dies_is_a_clear_error(scenes, tmp_path, monkeypatch) -> None:
    here, original = os.getpid(), TrainTransform.__call__

    def die(self: TrainTransform, *args: Any, **kwargs: Any) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TrainTransform, "__call__", die)
    with pytest.raises(OSError, match="--num-workers"):
        train(settings(scenes, tmp_path, num_workers=1))


@pytest.mark.parametrize("error", NO_MEMORY, ids=["gpu", "cpu", "python"])
def test_no_memory_in_a_step_names_the_sizes(scenes: Path, tmp_path: Path, monkeypatch, error: Exception) -> None:
    def fail(turn: int, model: DrmmForObjectDetection, outputs: Any) -> None:
        if turn == 5:
            raise error

    change_forward(monkeypatch, fail)
    with pytest.raises(TrainingStopped, match=r"2 images .* 96x128 .* 16 proposals .*--batch-size.*--resume"):
        train(settings(scenes, tmp_path, save_every=2))
    monkeypatch.undo()
    assert train(settings(scenes, tmp_path, save_every=2, resume=True)).metrics["train_steps"] == 8


def test_no_memory_in_an_evaluation_names_its_batch_size(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(turn: int, model: DrmmForObjectDetection, outputs: Any) -> None:
        if not model.training:
            raise NO_MEMORY[0]

    change_forward(monkeypatch, fail)
    with pytest.raises(TrainingStopped, match="--eval-batch-size"):
        train(settings(scenes, tmp_path, eval_split="val", eval_every=1))


def test_another_error_stays_what_it_is(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(turn: int, model: DrmmForObjectDetection, outputs: Any) -> None:
        raise RuntimeError("shapes do not match")

    change_forward(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(settings(scenes, tmp_path))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_model_in_pieces_is_refused(scenes: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=name):
        train(settings(scenes, tmp_path))


def wait_for_steps(process: BaseProcess, output: Path, steps: int) -> None:
    log, deadline = output / "metrics.jsonl", time.monotonic() + 300
    while not log.is_file() or len(log.read_text().splitlines()) < steps:
        assert process.is_alive(), output.with_name("errors.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path / "run", train_images=2000, save_every=900, num_workers=1)
    process = start_command(config)
    wait_for_steps(process, tmp_path / "run", 2)
    os.killpg(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 128 + signal.SIGINT
    errors = (tmp_path / "errors.txt").read_text()
    assert "Traceback" not in errors
    step = int(next((tmp_path / "run/checkpoints").iterdir()).name.removeprefix("step-"))
    assert step == len(lines(tmp_path / "run")) < 900
    told = parse_config(shlex.split(errors.strip().splitlines()[-1].split("drmm train ")[1]))
    train(dataclasses.replace(told, train_images=2 * (step + 1)))
    assert len(lines(tmp_path / "run")) == step + 1


def press_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, step: int, times: int, number: signal.Signals = signal.SIGINT
) -> None:
    def press(turn: int, model: DrmmForObjectDetection, outputs: Any) -> None:
        for _ in range(times if turn == step else 0):
            os.kill(os.getpid(), number)

    change_forward(monkeypatch, press)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_the_uninterrupted_run(scenes: Path, tmp_path: Path, monkeypatch, number) -> None:
    """Ctrl-C in the middle of a step: the step is finished, saved, and the run goes on as if nothing had been."""
    before = signal.getsignal(number)
    train(settings(scenes, tmp_path / "whole", save_every=2))
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 3, 1, number)
        with pytest.raises(KeyboardInterrupt):
            train(settings(scenes, tmp_path / "cut", save_every=2))
    assert signal.getsignal(number) is before
    assert len(lines(tmp_path / "cut")) == 3
    train(settings(scenes, tmp_path / "cut", save_every=2, resume=True))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_the_log_loses_no_step_before_an_interruption(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    train(settings(scenes, tmp_path / "whole", log_every=5, max_bad_steps=5))
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, step=3, times=1)
        poison(patch, {2})
        with pytest.raises(KeyboardInterrupt):
            train(settings(scenes, tmp_path / "cut", log_every=5, save_every=100))
    result = train(settings(scenes, tmp_path / "cut", log_every=5, save_every=100, resume=True))
    assert result.metrics["bad_steps"] == 1
    assert [line["step"] for line in lines(tmp_path / "cut")] == [3, 5, 8]
    seen = [sum(line["objects"] for line in lines(tmp_path / name)) for name in ("whole", "cut")]
    assert seen[0] == seen[1]


def test_ctrl_c_twice_stops_at_once(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    press_ctrl_c(monkeypatch, step=1, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(settings(scenes, tmp_path, save_every=2))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP])
def test_without_one_of_two_processes_the_other_stops(scenes: Path, tmp_path: Path, lost: signal.Signals) -> None:
    """One is killed, or hangs; the other one ends with a message, and the run can be resumed by one process."""
    output = tmp_path / "run"
    config = settings(scenes, output, train_images=4000, batch_size=1, timeout=20.0, save_every=2)
    processes = [start_command(config, **variables) for variables in two_ranks()]
    try:
        wait_for_steps(processes[0], output, 3)
        os.kill(processes[1].pid, lost)
        processes[0].join(200)
    finally:
        for process in processes:
            process.kill()
    errors = (tmp_path / "errors.txt").read_text()
    assert processes[0].exitcode == 2, errors[-3000:]
    assert "--timeout" in errors.strip().splitlines()[-1]
    steps = 4 + len(lines(output))
    again = settings(scenes, output, train_images=2 * steps, resume=True)
    assert train(again).metrics["train_steps"] == steps
