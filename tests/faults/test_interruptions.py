"""Evaluation and prediction that lose their memory, a process, or get Ctrl-C."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from drmm_hf import DrmmForObjectDetection
from drmm_hf.evaluation.batches import _Prepare
from drmm_hf.evaluation.spool import ResultsSpool

BOTH = pytest.mark.parametrize("name", ["evaluate", "predict"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
@pytest.mark.parametrize("name", ["evaluate", "predict", "analyze"])
def test_no_memory_names_the_option(commands, tmp_path: Path, capsys, monkeypatch, name: str, error) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(DrmmForObjectDetection, "forward", full)
    assert commands[name].run(tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: out of memory; lower --batch-size (now 2)"


@BOTH
def test_ctrl_c_keeps_what_is_there(commands, tmp_path: Path, capsys, monkeypatch, name: str) -> None:
    """The signal itself, while threads read ahead."""
    append = ResultsSpool.append

    def press(self: ResultsSpool, batch: int, *results: Any, **content: Any) -> None:
        append(self, batch, *results, **content)
        if batch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsSpool, "append", press)
        assert commands[name].run(tmp_path) == 128 + signal.SIGINT
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1] == "interrupted; the same command with --resume goes on from here"
    assert len(list(tmp_path.glob("*.partial/part-0.jsonl"))) == 1
    assert commands[name].run(tmp_path, "--resume") == 0
    assert not list(tmp_path.glob("*.partial"))


def test_a_worker_that_dies_is_one_line(commands, tmp_path: Path, capsys, monkeypatch) -> None:
    main, original = os.getpid(), _Prepare.__call__

    def die(self: _Prepare, rows: Any) -> Any:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, rows)

    monkeypatch.setattr(_Prepare, "__call__", die)
    assert commands["evaluate"].run(tmp_path, "--workers", "1") == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "lower --workers" in error.splitlines()[-1]
