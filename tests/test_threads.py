"""Importing the package makes torch's threads sleep where they wait, if it is not too late and nobody has chosen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"


@pytest.mark.parametrize(
    ("before", "given", "expected"),
    [("", None, "passive"), ("", "active", "active"), ("import torch;", None, "None")],
)
def test_waiting_threads_sleep(tmp_path: Path, before: str, given: str | None, expected: str) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('in place of seconds of imports')")
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    chosen = {} if given is None else {"OMP_WAIT_POLICY": given}
    environment = {**plain, **chosen, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(SOURCES)))}
    code = f"import os; {before}\ntry: import drmm_hf\nexcept ImportError as error: print(error)\n"
    code += "print(os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    message, policy = run.stdout.splitlines()
    assert policy == expected
    assert "in place of seconds of imports" in message, "and what is wrong with torchvision is one line with the fix"
    assert "pip install --force-reinstall torch torchvision" in message
