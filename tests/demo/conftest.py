"""A checkpoint to show, and its report."""

from pathlib import Path

import pytest

from drmm_hf import DrmmImageProcessor
from drmm_hf.data.scene_shapes import CATEGORIES
from model_fixtures import small_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the generated scenes' classes with random weights."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    names = dict(enumerate(CATEGORIES))
    small_model(id2label=names, label2id={name: label for label, name in names.items()}).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder
