"""The hint on memory is for commands of all kinds, also those without a batch size, and for memory of all kinds."""

import argparse

import numpy as np
import pytest
import torch

from drmm_hf.evaluation.command_line import run_command
from drmm_hf.out_of_memory import is_out_of_memory

TOO_MUCH = 2**58
"""More bytes than any address space has."""


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def in_torch_on_windows() -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried")


def in_torch() -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def in_numpy() -> None:
    np.empty(TOO_MUCH, dtype=np.uint8)


def in_python() -> None:
    bytearray(TOO_MUCH)


@pytest.mark.parametrize("fail", [on_a_gpu, in_torch, in_torch_on_windows, in_numpy, in_python])
@pytest.mark.parametrize(
    ("options", "line"),
    [({"batch_size": 8}, "error: out of memory; lower --batch-size (now 8)\n"), ({}, "error: out of memory\n")],
)
def test_one_line(fail, options, line, capsys) -> None:
    assert run_command(lambda _: fail() or 0, argparse.Namespace(debug=False, **options)) == 2
    assert capsys.readouterr().err == line


def test_another_error_keeps_its_traceback() -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run_command(run, argparse.Namespace(debug=False))


def test_debug_shows_where_the_memory_went() -> None:
    with pytest.raises(MemoryError):
        run_command(lambda _: in_python() or 0, argparse.Namespace(debug=True))


def test_the_word_memory_alone_is_no_sign() -> None:
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("memory format option is only supported by strided tensors"))
