"""`check_torchvision` in a fresh interpreter, where a fake package on the path fails as the real one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import drmm_hf

PACKAGE = Path(next(iter(drmm_hf.__path__)))
# The file is run alone, because importing drmm_hf itself may already call the check.
PROGRAM = f"""
import runpy
runpy.run_path({str(PACKAGE / "_environment.py")!r})["check_torchvision"]()
print("imported")
"""


def run_with(folder: Path, **packages: str) -> subprocess.CompletedProcess[str]:
    """Run the check with packages of the given source code first on the path."""
    for name, source in packages.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("broken", ["torchvision", "timm"])
@pytest.mark.parametrize(
    "failure", ["RuntimeError('operator torchvision::nms does not exist')", "OSError('_ZN5torch')"]
)
def test_a_broken_package_gives_one_error_that_names_it(tmp_path: Path, broken: str, failure: str) -> None:
    sources = {"torchvision": "", "timm": "import torchvision", broken: f"raise {failure}"}
    result = run_with(tmp_path, **sources)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError")
    assert f"import {broken}" in message
    assert "pip install" in message
    assert result.stderr.count("Traceback") == 1


def test_working_packages_pass(tmp_path: Path) -> None:
    result = run_with(tmp_path, torchvision="", timm="import torchvision")
    assert (result.returncode, result.stdout.strip()) == (0, "imported"), result.stderr
