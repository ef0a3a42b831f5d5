"""A small generated data set that the training tests share."""

from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState

from drmm_hf.data import generate_scenes, load_detection_dataset


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=12, num_val=4, image_size=(96, 128))


@pytest.fixture(scope="session")
def parquet(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as parquet files: four of three training images, one of four to evaluate."""
    folder = tmp_path_factory.mktemp("parquet")
    for split, count in (("train", 4), ("val", 1)):
        rows = load_detection_dataset(scenes, split).dataset
        for index in range(count):
            shard = rows.shard(count, index).cast_column("image", datasets.Image())
            shard.to_parquet(folder / f"{split}-{index:05d}-of-{count:05d}.parquet", batch_size=100)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate's settings are the process's: another test's must not be ours."""
    AcceleratorState._reset_state(reset_partial_state=True)
