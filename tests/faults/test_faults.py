"""What a machine does to a command: a place that cannot be written to, a full disk, no memory, Ctrl-C, a dead worker.

Each ends in one line on stderr, without a traceback, and leaves no file that looks finished but is not.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from drmm_hf import DrmmConfig, DrmmForObjectDetection, DrmmImageProcessor
from drmm_hf.cli import main
from drmm_hf.conversion import released_state_dict
from drmm_hf.data import generate_scenes, load_detection_dataset
from model_fixtures import NAMES, small_config

NUM_IMAGES = 6
COMMANDS = ("evaluate", "predict", "analyze", "train", "export", "convert", "convert back")
# Not even root can make a folder there.
UNWRITABLE = Path("/sys/kernel")

Run = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return generate_scenes(folder, num_train=NUM_IMAGES, num_val=NUM_IMAGES, image_size=(64, 96))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(name, output, *more)`: the exit status of a command that succeeds if nothing interferes."""
    dataset = load_detection_dataset(data, "val")
    model, released = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("released") / "drmm.pth"
    labels = {"id2label": dataset.id2label, "label2id": dataset.label2id}
    DrmmForObjectDetection(small_config(**labels)).save_pretrained(model)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(model)
    config = DrmmConfig.from_preset("drmm-sparse-rcnn-tiny", id2label=NAMES, num_stages=2, num_proposals=10)
    content = {
        "meta": {"CLASSES": tuple(NAMES.values())},
        "state_dict": released_state_dict(DrmmForObjectDetection(config)),
    }
    torch.save(content, released)
    few = ["--device", "cpu", "--batch-size", "2", "--top-k", "5"]
    training = ["--train-images", "4", "--cpu", "--eval-split", "", "--config", "num_stages=1", "num_proposals=8"]
    arguments: dict[str, list[Any]] = {
        "evaluate": ["evaluate", "--model", model, *few, "--data", data, "--output"],
        "predict": ["predict", "--model", model, *few, data / "images", "--threshold", "0", "--output"],
        "analyze": ["analyze", "--checkpoint", model, "--data", data, *few, "--output_dir"],
        "train": ["train", "--data", data, *training, "--output"],
        "export": ["export", model, "--format", "torch_export", "--size", "64x96", "--batch", "1"],
        "convert": ["convert", "--preset", "drmm-sparse-rcnn-tiny", released],
        "convert back": ["convert", "--reverse", model],
    }

    def run(name: str, output: Path, *more: str) -> int:
        return main([*map(str, arguments[name]), str(output), *more])

    return run


def one_line(capsys: pytest.CaptureFixture, *named: str) -> None:
    """The last line on stderr is the only one that speaks of an error; it holds one of the words."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = printed.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert any(word in lines[-1] for word in named), lines[-1]


@pytest.mark.parametrize("place", ["file", "file/out", "read-only", "unwritable"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_where_nothing_can_be_written(run: Run, tmp_path: Path, capsys, name: str, place: str) -> None:
    if place == "unwritable":
        if not UNWRITABLE.is_dir():
            pytest.skip("needs Linux's /sys")
        output = UNWRITABLE / "drmm-hf-test"
    elif name == "convert back":
        pytest.skip("writes one file, which may be there")
    else:
        (tmp_path / "file").write_text("kept")
        output = tmp_path / place
    if place == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write to any folder")
        output.mkdir(mode=0o555)
    before = sorted(tmp_path.rglob("*"))
    assert run(name, output) == 2
    one_line(capsys, str(UNWRITABLE if place == "unwritable" else tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert place == "unwritable" or (tmp_path / "file").read_text() == "kept"


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file grows beyond this number of bytes, as on a full disk: the system refuses the write, in any library."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "limit", "last"),
    [
        ("evaluate", 500, "metrics.json"),
        ("evaluate", 2500, "metrics.json"),
        ("predict", 500, "predictions.json"),
        ("analyze", 1000, "report.html"),
        ("analyze", 20_000, "report.html"),
        ("convert", 10, "model.safetensors"),
        ("convert", 20_000, "model.safetensors"),
        ("convert back", 20_000, ""),
        ("train", 2000, "metrics.json"),
        pytest.param("export", 20_000, "export.json", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk(run: Run, tmp_path: Path, capsys, name: str, limit: int, last: str) -> None:
    output = tmp_path / ("cut.pth" if name == "convert back" else "cut")
    with file_limit(limit):
        assert run(name, output) == 2
    one_line(capsys, "File too large", "No space left")
    assert not last or not (output / last).exists()
    assert run(name, output) == 0
    assert (output / last).exists()


def test_an_earlier_result_survives_a_full_disk(run: Run, tmp_path: Path, capsys) -> None:
    assert run("evaluate", tmp_path) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with file_limit(1000):
        assert run("evaluate", tmp_path) == 2
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
@pytest.mark.parametrize("name", ["evaluate", "predict", "analyze"])
def test_no_memory_names_the_option(run: Run, tmp_path: Path, capsys, monkeypatch, name: str, error) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(DrmmForObjectDetection, "forward", full)
    assert run(name, tmp_path) == 2
    one_line(capsys, "--batch-size")


@pytest.mark.parametrize(("name", "last"), [("evaluate", "metrics.json"), ("predict", "predictions.json")])
def test_ctrl_c(run: Run, tmp_path: Path, capsys, monkeypatch, name: str, last: str) -> None:
    """The signal itself, in the second batch."""
    forward, batches = DrmmForObjectDetection.forward, []

    def press(self: DrmmForObjectDetection, *args: Any, **kwargs: Any) -> Any:
        batches.append(None)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DrmmForObjectDetection, "forward", press)
        assert run(name, tmp_path) == 128 + signal.SIGINT
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("interrupted")
    assert not (tmp_path / last).exists()
    assert run(name, tmp_path) == 0
