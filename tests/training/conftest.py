"""A small generated data set that the training tests share."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from drmm_hf.data import generate_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=12, num_val=4, image_size=(96, 128))


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate's settings are the process's: another test's must not be ours."""
    AcceleratorState._reset_state(reset_partial_state=True)
