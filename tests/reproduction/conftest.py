"""A small generated data set, and one finished table that the tests look at."""

from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from drmm_hf.data import generate_scenes
from reproduce import main

# After --: as little as a training can be.
QUICK = ("--", "--batch-size", "2", "--cpu", "--config", "num_stages=2", "num_proposals=16", "hidden_size=32")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=4, num_val=4, image_size=(96, 128))


@pytest.fixture(scope="session")
def words(scenes: Path) -> Callable[..., list[str]]:
    """The command line of a table with the shortest trainings."""

    def command(output: Path, *more: str, table: str = "table3", images: str = "2") -> list[str]:
        return [table, "--data", str(scenes), "--output", str(output), "--train-images", images, *more, *QUICK]

    return command


@pytest.fixture(scope="session")
def table3(words: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a whole `reproduce.py table3` with two images for each training."""
    output = tmp_path_factory.mktemp("table3")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(words(output)) == 0
    return output


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate's settings are the process's: another test's must not be ours."""
    AcceleratorState._reset_state(reset_partial_state=True)
