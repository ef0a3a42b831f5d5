"""predict.py on many images: memory does not grow with their number, and the progress is shown."""

import functools
import json
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf import DrmmImageProcessor
from drmm_hf.evaluation import predict_cli
from drmm_hf.evaluation.predict_cli import main as predict
from drmm_hf.evaluation.prefetch import prefetch
from model_fixtures import small_model

SIDE, TOP_K = 96, 5


class Memory:
    """Resident memory of this process in MiB, sampled while images are predicted."""

    def __init__(self, output: Path, every: float) -> None:
        self.output, self.every = output, every
        self.samples: list[tuple[int, float]] = []
        self.stop, self.thread = threading.Event(), threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self.stop.wait(self.every):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            done = sum(1 for _ in self.output.glob("*.png"))
            self.samples.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def median(self, first: int, last: int) -> float:
        """Of the samples taken when between `first` and `last` images were done."""
        return float(np.median([size for done, size in self.samples if first <= done < last]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}).save_pretrained(folder)
    return str(folder)


def make_images(folder: Path, number: int) -> Path:
    """Noise in large pixels, a JPEG each."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(number):
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / f"{index:05d}.jpg")
    return folder


def arguments(model: str, images: Path, output: Path) -> list[str]:
    few = ["--top-k", str(TOP_K), "--threshold", "0", "--batch-size", "16", "--device", "cpu"]
    return ["--model", model, str(images), "--output", str(output), *few, "--workers", "2"]


def check_output(output: Path, number: int) -> None:
    """Every image has its drawing and its detections, in order."""
    results = json.loads((output / "predictions.json").read_text())
    assert [row["image_id"] for row in results[::TOP_K]] == list(range(1, number + 1))
    assert len(results) == TOP_K * number
    assert len(list(output.glob("*.png"))) == number
    assert sorted(path.name for path in output.iterdir() if path.suffix != ".png") == ["predictions.json"]


def test_a_few_hundred_images(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 200
    # as shown after every batch, however fast they are
    monkeypatch.setattr(predict_cli, "tqdm", functools.partial(predict_cli.tqdm, mininterval=0, miniters=1))
    images = make_images(tmp_path / "images", number)
    assert predict(arguments(model, images, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert f"{TOP_K * number} detections in {number} of {number} images" in printed.out
    # how many are done, of how many, the time that is left, and how many a second
    assert re.search(r"detecting: +\d+%.* 16/200 \[[\d:]+<[\d:]+, +[\d.]+ ?(image/s|s/image)\]", printed.err)
    assert re.search(r"detecting: 100%.* 200/200 \[", printed.err)
    check_output(tmp_path / "out", number)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_queue_is_bounded(workers: int) -> None:
    """A slow reader is waited for: no more items are begun than workers, besides the one that is read."""
    begun: list[int] = []
    ahead = []
    for value in prefetch(lambda item: begun.append(item) or item, range(100), workers):
        time.sleep(0.002)
        ahead.append(len(begun) - 1 - value)
    assert max(ahead) <= workers
    assert sorted(begun) == list(range(100))


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads Linux's /proc")
def test_ten_thousand_images_in_steady_memory(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Between the second and the last thousand the memory grows by less than what 1,000 decoded images would take.

    The detections of the 8,000 images in between, kept as Python objects, would be several times as much.
    """
    number, growth = 10_000, 1000 * 3 * SIDE * SIDE / 2**20
    images = make_images(tmp_path / "images", number)
    output = tmp_path / "out"
    begun = time.perf_counter()
    with Memory(output, every=0.25) as memory:
        assert predict(arguments(model, images, output)) == 0
    seconds = time.perf_counter() - begun
    first, last = memory.median(1000, 2000), memory.median(number - 1000, number)
    with capsys.disabled():
        print(
            f"\n{number} images of {SIDE}x{SIDE} in {seconds:.0f} s, {number / seconds:.1f} a second, "
            f"{torch.get_num_threads()} threads; {first:.0f} MiB at 1,000..2,000 images, {last:.0f} MiB at the end"
        )
    assert last - first < growth
    check_output(output, number)
