import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest

from drmm_hf.data import generate_scenes
from shards import write_parquet


@pytest.fixture
def real_data() -> Path:
    """Folder with the real `bccd/` and `coco/` data sets."""
    folder = os.environ.get("DRMM_TEST_DATA")
    if not folder:
        pytest.skip("set DRMM_TEST_DATA to a folder with bccd/ and coco/ to run this test")
    return Path(folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds whenever a shuffled stream of parquet files ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()


def coco_dict() -> dict[str, Any]:
    """Three images of 64x48, categories with gaps and out of order, a crowd box, an image without boxes."""
    return {
        "images": [
            {"id": 30, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 7, "file_name": "b.jpg", "width": 64, "height": 48},
            {"id": 12, "file_name": "c.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 12], "area": 60.5, "iscrowd": 0},
            {"id": 3, "image_id": 30, "category_id": 2, "bbox": [0.5, 0.25, 20.0, 30.0], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 2, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 4, "name": "owl"}],
    }


def write_coco(root: Path, data: Any, *, json_name: str = "instances_train", images: str = "images") -> Path:
    """Write a data set; every image named in `data` becomes a JPEG of its size."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{json_name}.json").write_text(json.dumps(data))
    for index, record in enumerate(data["images"]):
        file = root / images / record["file_name"]
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (record["height"] // 8, record["width"] // 8, 3))
        small = PIL.Image.fromarray(noise.astype(np.uint8))
        small.resize((record["width"], record["height"])).save(file, quality=95)
    return root


@pytest.fixture
def coco() -> dict[str, Any]:
    return coco_dict()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    return lambda data, **options: write_coco(tmp_path / "set", data, **options)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=12, num_val=4, image_size=(96, 128))


@pytest.fixture(scope="session")
def parquet_scenes(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(scenes, tmp_path_factory.mktemp("parquet"))
