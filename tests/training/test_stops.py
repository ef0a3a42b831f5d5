"""A training that is stopped from outside says what happened and how to go on: memory, Ctrl-C, a lost process."""

import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drmm_hf import DrmmForObjectDetection
from drmm_hf.training import TrainConfig, TrainingStopped, parse_config, train

ROOT = Path(__file__).parents[2]
SMALL = {"num_stages": 1, "num_proposals": 16}
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
)


def settings(scenes: Path, output: Path, **more: Any) -> TrainConfig:
    fields = {"data": str(scenes), "output": str(output), "train_images": 12, "batch_size": 2, "log_every": 1}
    return TrainConfig(**{**fields, "cpu": True, "eval_split": "", "save_every": 2, "config": SMALL, **more})


def failing_forward(monkeypatch: pytest.MonkeyPatch, error: Exception, when: Callable[[DrmmForObjectDetection], bool]):
    original = DrmmForObjectDetection.forward

    def forward(self: DrmmForObjectDetection, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DrmmForObjectDetection, "forward", forward)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError(CPU_ALLOCATOR), MemoryError()],
)
def test_no_memory_in_a_step_names_the_sizes(scenes: Path, tmp_path: Path, monkeypatch, error: Exception) -> None:
    calls: list[int] = []
    failing_forward(monkeypatch, error, lambda model: bool(calls.append(0)) or len(calls) == 3)
    message = (
        r"Out of memory on a batch of 2 images of \d+x\d+ pixels with up to \d+ objects, with 16 proposals in 1 "
        r"stages: lower --batch-size and raise --gradient-accumulation as much, or add --gradient-checkpointing, .*"
        r"then go on with --resume"
    )
    with pytest.raises(TrainingStopped, match=message):
        train(settings(scenes, tmp_path))
    monkeypatch.undo()
    assert train(settings(scenes, tmp_path, resume=True)).metrics["train_steps"] == 6


def test_no_memory_in_an_evaluation_names_its_batch_size(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    failing_forward(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), lambda model: not model.training)
    with pytest.raises(TrainingStopped, match=r"while evaluating: lower --eval-batch-size \(now 8\)"):
        train(settings(scenes, tmp_path, eval_split="val", eval_every=1))


def test_another_error_stays_what_it_is(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    failing_forward(monkeypatch, RuntimeError("shapes do not match"), lambda model: True)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(settings(scenes, tmp_path))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_model_in_pieces_is_refused(scenes: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=rf"(?i){name} is chosen in Accelerate's configuration.*leave it out"):
        train(settings(scenes, tmp_path))


def options(config: TrainConfig) -> list[str]:
    """The settings as a recipe file and the option that reads it."""
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(json.dumps({k: v for k, v in config.to_dict().items() if k not in ("resume", "debug")}))
    return ["--recipe", str(path)]


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(ROOT / "scripts/train.py"), *arguments]
    # a group of its own: Ctrl-C in a terminal goes to all processes of the group
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def wait_for_steps(process: subprocess.Popen[str], output: Path, steps: int) -> None:
    log, deadline = output / "metrics.jsonl", time.monotonic() + 300
    while not log.is_file() or len(log.read_text().splitlines()) < steps:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path / "run", train_images=2000, save_every=900, num_workers=1)
    process = start(options(config))
    wait_for_steps(process, tmp_path / "run", 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    checkpoint = next((tmp_path / "run/checkpoints").iterdir())
    step = int(checkpoint.name.removeprefix("step-"))
    assert last.startswith(f"interrupted after step {step}; go on with: train.py ")
    assert step == len(losses(tmp_path / "run")) < 900
    told = parse_config(shlex.split(last.split("train.py ")[1]))
    train(dataclasses.replace(told, train_images=2 * (step + 1)))
    assert len(losses(tmp_path / "run")) == step + 1


def test_ctrl_c_leaves_the_uninterrupted_run(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    """Ctrl-C in the middle of a step: the step is finished, saved, and the run goes on as if nothing had been."""
    train(settings(scenes, tmp_path / "whole"))
    calls: list[int] = []

    def press(model: DrmmForObjectDetection) -> bool:
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    with monkeypatch.context() as patch:
        failing_forward(patch, ValueError(), press)
        with pytest.raises(KeyboardInterrupt, match="after step 3"):
            train(settings(scenes, tmp_path / "cut"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(settings(scenes, tmp_path / "cut", resume=True))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_ctrl_c_twice_stops_at_once(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    def press(model: DrmmForObjectDetection) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return False

    failing_forward(monkeypatch, ValueError(), press)
    with pytest.raises(KeyboardInterrupt):
        train(settings(scenes, tmp_path))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [signal.SIGKILL, signal.SIGSTOP])
def test_without_one_of_two_processes_the_other_stops(scenes: Path, tmp_path: Path, lost: signal.Signals) -> None:
    """One is killed, or hangs; the other one ends with a message, and the run can be resumed by one process."""
    output = tmp_path / "run"
    config = settings(scenes, output, train_images=4000, batch_size=1, timeout=20.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    layout = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(options(config), RANK=str(rank), LOCAL_RANK=str(rank), **layout) for rank in range(2)]
    try:
        wait_for_steps(processes[0], output, 3)
        processes[1].send_signal(lost)
        _, errors = processes[0].communicate(timeout=200)
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 2, errors[-3000:]
    message = "error: Another process of this training was lost, or did not answer within --timeout 20 seconds"
    assert message in errors.strip().splitlines()[-1]
    steps = 4 + len(losses(output))
    again = settings(scenes, output, train_images=2 * steps, resume=True)
    assert train(again).metrics["train_steps"] == steps
