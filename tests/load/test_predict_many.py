"""`drmm predict` on many images: each gets its detections, in order, and memory does not grow with their number."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drmm_hf import DrmmImageProcessor
from drmm_hf.cli import main
from model_fixtures import small_model

SIDE, TOP_K = 96, 5


def predict(folder: Path, number: int) -> None:
    """Make so many images, detect in them, and check what was written."""
    images, output = folder / "images", folder / "out"
    images.mkdir(parents=True)
    small_model().save_pretrained(folder / "model")
    DrmmImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    for index in range(number):
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(images / f"{index:05d}.jpg")
    few = ["--top-k", str(TOP_K), "--threshold", "0", "--batch-size", "16", "--device", "cpu", "--workers", "2"]
    assert main(["predict", "--model", str(folder / "model"), str(images), "--output", str(output), *few]) == 0
    results = json.loads((output / "predictions.json").read_text())
    assert [row["image_id"] for row in results[::TOP_K]] == list(range(1, number + 1))
    assert len(results) == TOP_K * number
    assert len(list(output.glob("*.png"))) == number
    assert sorted(path.name for path in output.iterdir() if path.suffix != ".png") == ["predictions.json"]


def test_a_hundred_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    predict(tmp_path, 100)
    printed = capsys.readouterr()
    assert f"{TOP_K * 100} detections in 100 of 100 images" in printed.out
    assert "100/100" in printed.err  # the progress


@pytest.mark.full
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """Four thousand images more cost less than a quarter of what they take decoded."""
    predict(tmp_path / "few", 500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, the highest so far
    predict(tmp_path / "many", 4500)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4000 * 3 * SIDE * SIDE / 1024 / 4
