"""Generated scenes that the training tests share, as a folder in COCO format and as shards."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate.state import AcceleratorState

from drmm_hf.data import generate_scenes, load_detection_dataset
from shards import write_parquet, write_tar


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=12, num_val=4, image_size=(96, 128))


@pytest.fixture(scope="session")
def parquet(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(scenes, tmp_path_factory.mktemp("parquet"))


@pytest.fixture(scope="session")
def tars(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one tar for each split, without the names of the classes."""
    folder = tmp_path_factory.mktemp("tars")
    for split in ("train", "val"):
        files: dict[str, Any] = {}
        for row in load_detection_dataset(scenes, split).dataset:
            files[f"{row['image_id']:06d}.png"] = Path(row["image"]["path"]).read_bytes()
            record = {"objects": {name: row["objects"][name] for name in ("bbox", "category")}}
            files[f"{row['image_id']:06d}.json"] = record
        write_tar(folder / f"{split}-00000.tar", files)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate's settings are the process's: another test's must not be ours."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def quick_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds whenever a shuffled stream of parquet files ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()
