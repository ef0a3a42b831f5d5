"""A small generated data set that the training tests share."""

from pathlib import Path

import pytest

from drmm_hf.data import generate_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=12, num_val=4, image_size=(96, 128))
