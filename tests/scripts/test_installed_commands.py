"""The commands that an installation adds: one for each script."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NOT_INSTALLED = {"benchmark_data", "benchmark_evaluation"}  # they measure a checkout


def test_every_script_is_an_installed_command() -> None:
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} - NOT_INSTALLED
    assert {name.removeprefix("drmm-") for name in COMMANDS} == scripts


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_what_the_script_calls_and_tells_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, function = COMMANDS[command].split(":")
    main = getattr(importlib.import_module(module), function)
    script = (ROOT / "scripts" / f"{command.removeprefix('drmm-')}.py").read_text()
    package = re.search(r"from (drmm_hf[\w.]*) import main", script).group(1)
    assert importlib.import_module(package).main is main
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out
