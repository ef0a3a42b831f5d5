"""The command `drmm`, and that each script is the subcommand of its name."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import distributed

import drmm_hf
from drmm_hf.cli import COMMANDS, main, run_command

ROOT = Path(__file__).parents[2]


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"drmm": "drmm_hf.cli:main"}


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["drmm-hf", drmm_hf.__version__]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == drmm_hf.__version__


def test_every_command_has_a_script() -> None:
    for name in COMMANDS:
        assert f'main(["{name}", *sys.argv[1:]])' in (ROOT / "scripts" / f"{name.replace('-', '_')}.py").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_it_tells_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: drmm {command} ")
    assert "--debug" in printed
    with pytest.raises(SystemExit) as end:
        main([command, "--no-such-option"])
    assert end.value.code == 2


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n  {name} ") == 2 for name in COMMANDS)


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalate"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluate" in line


def test_mistakes_are_one_line_and_debug_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "none.jpg", "--model", "m", "--output", str(tmp_path)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "none.jpg" in line
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        main([*arguments, "--debug"])


TOO_MUCH = 2**58
"""More bytes than any address space has."""


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("options", [{"batch_size": 8}, {}])
@pytest.mark.parametrize(
    "run",
    [
        lambda _: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        lambda _: fail(RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory")),
        lambda _: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda _: np.empty(TOO_MUCH, dtype=np.uint8),
        lambda _: bytearray(TOO_MUCH),
    ],
)
def test_no_memory_of_any_kind_is_one_line(run, options, capsys) -> None:
    assert run_command(run, argparse.Namespace(debug=False, **options)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ("--batch-size" in line) == bool(options)
    with pytest.raises((MemoryError, RuntimeError)):
        run_command(run, argparse.Namespace(debug=True))


@pytest.mark.parametrize("message", ["mat1 and mat2 shapes", "memory format option is only for strided tensors"])
def test_another_error_keeps_its_traceback(message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_command(lambda _: fail(RuntimeError(message)), argparse.Namespace(debug=False))


@pytest.mark.parametrize("mistake", [None, ValueError, KeyboardInterrupt])
def test_no_command_ends_inside_a_process_group(mistake: type[BaseException] | None, tmp_path: Path) -> None:
    def run(arguments: argparse.Namespace) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        if mistake is not None:
            raise mistake

    assert run_command(run, argparse.Namespace()) == {None: 0, ValueError: 2, KeyboardInterrupt: 130}[mistake]
    assert not distributed.is_initialized()


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_error() -> None:
    code = "import sys; from drmm_hf.cli import main; sys.exit(main(['presets', 'drmm-sparse-rcnn-tiny']))"
    shell = f"'{sys.executable}' -c \"{code}\" | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
