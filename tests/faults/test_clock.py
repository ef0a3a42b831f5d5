"""A clock that jumps, as when the time of the machine is set: rates, times and the order of checkpoints stay right."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import tqdm.std

from drmm_hf.training.checkpoints import Checkpoints


@pytest.fixture(params=[-3600.0, 3600.0], ids=["back", "forth"])
def jumping_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is an hour before, or after, the last; time.monotonic and time.perf_counter go on."""
    original, looks = time.time, [0]

    def jumping() -> float:
        looks[0] += 1
        return original() + request.param * looks[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(tqdm.std, "time", jumping)


@pytest.mark.parametrize(("name", "last"), [("evaluate", "metrics.json"), ("predict", "predictions.json")])
@pytest.mark.usefixtures("jumping_clock")
def test_detections_do_not_depend_on_the_clock(commands, tmp_path: Path, capsys, monkeypatch, name, last) -> None:
    assert commands[name].run(tmp_path / "jumped") == 0
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.undo()
    assert commands[name].run(tmp_path / "steady") == 0
    assert (tmp_path / "jumped" / last).read_bytes() == (tmp_path / "steady" / last).read_bytes()


@pytest.mark.usefixtures("jumping_clock")
def test_rates_and_times_of_a_training(commands, tmp_path: Path) -> None:
    assert commands["train"].run(tmp_path, "--log-every", "1") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(0 < line["images_per_second"] < 3600 for line in lines)
    assert 0 < json.loads((tmp_path / "metrics.json").read_text())["train_seconds"] < 3600


def test_the_last_checkpoint_is_that_of_the_last_step(commands, tmp_path: Path) -> None:
    """Not that of the latest date."""
    assert commands["train"].run(tmp_path, "--train-images", "8", "--save-every", "1", "--save-total-limit", "3") == 0
    checkpoints = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 3
    for age, folder in enumerate(checkpoints):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (1e9 - age * 1e6,) * 2)
    found: Any = Checkpoints(tmp_path / "checkpoints", 3).last()
    assert found[0] == checkpoints[-1]
    assert found[1]["step"] == 4
