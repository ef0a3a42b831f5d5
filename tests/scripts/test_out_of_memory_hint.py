"""No memory ends a command in one line, of whatever kind the memory is and whether or not there is a batch size."""

import argparse

import numpy as np
import pytest
import torch

from drmm_hf.cli import run_command

TOO_MUCH = 2**58
"""More bytes than any address space has."""


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def in_torch_on_windows() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried")


def in_torch() -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def in_numpy() -> None:
    np.empty(TOO_MUCH, dtype=np.uint8)


def in_python() -> None:
    bytearray(TOO_MUCH)


@pytest.mark.parametrize("fail", [on_a_gpu, in_torch, in_torch_on_windows, in_numpy, in_python])
@pytest.mark.parametrize("options", [{"batch_size": 8}, {}])
def test_one_line(fail, options, capsys) -> None:
    assert run_command(lambda _: fail(), argparse.Namespace(debug=False, **options)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ("--batch-size" in line) == bool(options)


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes", "memory format option is only for strided tensors"])
def test_another_error_keeps_its_traceback(message: str) -> None:
    def run(arguments: argparse.Namespace) -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        run_command(run, argparse.Namespace(debug=False))


def test_debug_shows_where_the_memory_went() -> None:
    with pytest.raises(MemoryError):
        run_command(lambda _: in_python(), argparse.Namespace(debug=True))
