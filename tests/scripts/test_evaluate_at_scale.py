"""scripts/evaluate.py and predict.py on much data: interrupted, killed, streamed, in several processes."""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from drmm_hf import DrmmForObjectDetection
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import predict_cli
from drmm_hf.evaluation.cli import main as evaluate
from drmm_hf.evaluation.predict_cli import main as predict
from drmm_hf.evaluation.spool import ResultsSpool
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from model_fixtures import small_config

ROOT = Path(__file__).parents[2]
NUM_IMAGES, BATCH = 11, 2
NAMES = ("image_id", "category_id", "bbox", "score", "objectness")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("data"), num_train=1, num_val=NUM_IMAGES, image_size=(64, 96))


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    dataset = load_detection_dataset(data, "val")
    labels = {"id2label": dataset.id2label, "label2id": dataset.label2id}
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    DrmmForObjectDetection(small_config(**labels)).save_pretrained(folder)
    DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def arguments(model: str, data: Path) -> list[str]:
    few = ["--batch-size", str(BATCH), "--top-k", "7", "--device", "cpu"]
    return ["--model", model, "--data", str(data), *few, "--with-parts"]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert evaluate([*arguments, "--output", str(folder)]) == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def same(folder: Path, whole: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "results.json"]
    for name in ("results.json", "metrics.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def agree(folder: Path, whole: Path) -> None:
    """As `same`, for what other processes wrote: every number to a few units of float32's last place."""
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "results.json"]
    for name in ("results.json", "metrics.json"):
        _agree(read(folder / name), read(whole / name), name)


def _agree(found: Any, expected: Any, where: str) -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            _agree(found[key], value, f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            _agree(*pair, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True), where
    else:
        assert found == expected, where


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C in the middle of writing batch `batches`; the numbers of the batches that are written."""
    written: list[int] = []
    append = ResultsSpool.append

    def stopping(self: ResultsSpool, batch: int, results: list[Any], **facts: Any) -> None:
        if len(written) == batches:
            with (self.folder / "part-0.jsonl").open("a") as file:
                file.write('{"batch": 99, "count": 3, "bytes": 600}\n{"image_id": 3,')
            raise KeyboardInterrupt
        append(self, batch, results, **facts)
        written.append(batch)

    monkeypatch.setattr(ResultsSpool, "append", stopping)
    return written


def test_the_numbers_of_the_parts_are_written(whole: Path) -> None:
    results, metrics = read(whole / "results.json"), read(whole / "metrics.json")
    assert len(results) == 7 * NUM_IMAGES
    assert all(set(row) == set(NAMES) and row["score"] <= row["objectness"] for row in results)
    assert set(metrics["parts"]) == {"score", "class_probability", "objectness"}
    assert metrics["parts"]["score"]["ece"] == metrics["calibration"][0]["ece"]


def test_an_interrupted_evaluation_goes_on(
    arguments: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    output = [*arguments, "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert evaluate(output) == 130
    assert capsys.readouterr().err.splitlines()[-1] == ("interrupted; the same command with --resume goes on from here")
    assert evaluate([*output, "--top-k", "9", "--resume"]) == 2
    assert "field top_k is 7, now 9; leave out --resume" in capsys.readouterr().err
    written = stop_after(99, monkeypatch)
    assert evaluate([*output, "--resume"]) == 0
    assert written == [2, 3, 4, 5], "the first two batches are not predicted again"
    same(tmp_path / "out", whole)


def test_nothing_to_go_on_with_is_a_new_run(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    assert evaluate([*arguments, "--output", str(tmp_path), "--resume"]) == 0
    same(tmp_path, whole)


def test_settings_that_make_no_sense(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for more, message in (
        (["--resume"], "--resume: give the --output of the interrupted run"),
        (["--streaming", "--annotations", "x.json"], "leave out --annotations and --images"),
    ):
        assert evaluate([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    saved = ["--results", "x.json", "--annotations", "y.json", "--streaming"]
    assert evaluate(saved) == 2
    assert "--streaming: saved results need the ground truth as a file" in capsys.readouterr().err


def shards(data: Path, folder: Path, ids: list[int] | None = None) -> None:
    """The validation split as three parquet files, with image ids of its own unless given."""
    rows = load_detection_dataset(data, "val").dataset
    rows = rows.cast_column("image", datasets.Image())
    if ids is not None:
        rows = rows.remove_columns("image_id").add_column("image_id", ids)
    for index in range(3):
        part = rows.select(range(index * 4, min((index + 1) * 4, NUM_IMAGES)))
        part.to_parquet(folder / f"validation-{index:05d}-of-00003.parquet")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stream_gives_the_same_numbers(
    arguments: list[str], data: Path, whole: Path, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "shards").mkdir()
    shards(data, tmp_path / "shards")
    streamed = [*arguments, "--data", str(tmp_path / "shards"), "--streaming", "--workers", workers]
    assert evaluate([*streamed, "--output", str(tmp_path / "out")]) == 0
    results, expected = (read(folder / "results.json") for folder in (tmp_path / "out", whole))
    # labels of the stream are its category ids
    category_ids = load_detection_dataset(data, "val").category_ids
    assert [{**row, "category_id": category_ids[row["category_id"]]} for row in results] == expected
    metrics, before = (read(folder / "metrics.json") for folder in (tmp_path / "out", whole))
    for name in ("metrics", "calibration", "brier", "parts", "images", "detections"):
        assert metrics[name] == before[name]
    # and its ground truth is a file to evaluate with
    again = ["--results", str(tmp_path / "out/results.json"), "--output", str(tmp_path / "again")]
    assert evaluate([*again, "--annotations", str(tmp_path / "out/ground_truth.json")]) == 0
    assert read(tmp_path / "again/metrics.json")["metrics"] == before["metrics"]


def test_images_of_a_stream_without_ids_are_numbered(
    arguments: list[str], data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is interrupted."""
    (tmp_path / "shards").mkdir()
    shards(data, tmp_path / "shards", [5] * NUM_IMAGES)
    streamed = [*arguments, "--data", str(tmp_path / "shards"), "--streaming", "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert evaluate(streamed) == 130
    assert evaluate([*streamed, "--resume"]) == 0
    results = read(tmp_path / "out/results.json")
    assert [row["image_id"] for row in results[::7]] == list(range(NUM_IMAGES))
    assert [row["score"] for row in results] == [row["score"] for row in read(whole / "results.json")]
    assert read(tmp_path / "out/metrics.json")["metrics"] == read(whole / "metrics.json")["metrics"]


def test_an_interrupted_prediction_goes_on(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((data / "images").rglob("*.*"))[:7]:
        Image.open(path).save(images / f"{path.stem}.png")
    (images / "bad.png").write_bytes(b"no image")
    command = [str(images), "--model", model, "--threshold", "0", "--top-k", "3", "--batch-size", "2"]
    assert predict([*command, "--output", str(tmp_path / "whole")]) == 1
    skipped = capsys.readouterr().err.splitlines()[-1]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert predict([*command, "--output", str(out)]) == 130
    assert not (out / "predictions.json").exists()
    written = stop_after(99, monkeypatch)
    assert predict([*command, "--output", str(out), "--resume"]) == 1
    assert written == [2, 3]
    assert capsys.readouterr().err.splitlines()[-1] == skipped
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    (images / "new.png").write_bytes((images / "bad.png").read_bytes())
    ResultsSpool.begin(out / "predictions.partial", {"files": "of before"}, resume=False)
    assert predict([*command, "--output", str(out), "--resume"]) == 2
    assert "leave out --resume to begin anew" in capsys.readouterr().err


def environment() -> dict[str, str]:
    # As many threads as here: another number adds in another order.
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(torch.get_num_threads())}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "scripts/evaluate.py"), *arguments]
    done = subprocess.run(
        [*launch, *script, "--output", str(tmp_path)], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-9000:]
    agree(tmp_path, whole)
    wrong = [*launch, *script, "--output", str(tmp_path / "wrong"), "--split", "none"]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "instances_none.json" in lines[0]


# Kills itself in the middle of writing the third batch.
KILLED = """
import os, signal
from drmm_hf.evaluation.cli import main
from drmm_hf.evaluation.spool import ResultsSpool

append = ResultsSpool.append

def dying(self, batch, results, **facts):
    if batch == 2:
        with (self.folder / "part-0.jsonl").open("a") as file:
            file.write('{"batch": 2, "cou')
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, batch, results, **facts)

ResultsSpool.append = dying
main()
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, *arguments, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (tmp_path / "results.partial/part-0.jsonl").stat().st_size > 0
    assert evaluate([*arguments, "--output", str(tmp_path), "--resume"]) == 0
    agree(tmp_path, whole)


def test_few_images_are_held_at_once(model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: those of the batch at work, and of one more for each worker and the one handed over."""
    picture = next((data / "images").rglob("*.*"))
    (tmp_path / "images").mkdir()
    for index in range(40):
        (tmp_path / "images" / f"{index}{picture.suffix}").symlink_to(picture)
    held: list[weakref.ref] = []
    most = 0
    opened = predict_cli.open_upright

    def counting(path: Path) -> Image.Image:
        nonlocal most
        image = opened(path)
        held.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in held))
        return image

    monkeypatch.setattr(predict_cli, "open_upright", counting)
    command = [str(tmp_path / "images"), "--model", model, "--output", str(tmp_path / "out"), "--batch-size", "2"]
    assert predict([*command, "--workers", "2"]) == 0
    assert 2 < most <= 2 * (1 + 2 + 1)
