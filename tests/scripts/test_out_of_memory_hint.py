"""The hint on memory is for commands of all kinds, also those without a batch size."""

import argparse

import pytest
import torch

from drmm_hf.evaluation.command_line import run_command


@pytest.mark.parametrize(
    ("options", "line"),
    [({"batch_size": 8}, "error: out of memory; lower --batch-size (now 8)\n"), ({}, "error: out of memory\n")],
)
def test_one_line(options, line, capsys) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert run_command(run, argparse.Namespace(debug=False, **options)) == 2
    assert capsys.readouterr().err == line
