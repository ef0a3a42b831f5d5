"""Two processes against one with the same images per step: the same training and the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from drmm_hf.data import generate_scenes
from drmm_hf.training import TrainConfig, train
from training.runs import SMALL, fields, lines, run_two_processes, spoil

# statistics of BatchNorm are those of a process unless they are fixed (SyncBN is for accelerators only)
FIXED = {**SMALL, "backbone_norm": "eval"}
CASES: dict[str, dict[str, Any]] = {
    "mean": {"config": FIXED},
    "sum": {"config": {**FIXED, "loss_reduction": "sum"}},
    "baseline": {"preset": "sparse-rcnn-tiny", "config": FIXED},
    "accumulated": {"config": FIXED, "gradient_accumulation": 2, "train_images": 24},
}
# a rate that does not depend on the length of the training
STEADY = {"schedule": "constant_with_warmup", "warmup_steps": 0, "config": FIXED}


@pytest.fixture(scope="module")
def odd_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training images: six steps of two, and one image left; 11 validation images: batches of 4, 4 and 3."""
    return generate_scenes(tmp_path_factory.mktemp("odd"), num_train=13, num_val=11, image_size=(96, 128))


def measured(data: Path, output: Path, batch_size: int, **more: Any) -> dict[str, Any]:
    # a small rate: two processes add up in another order, and Adam makes a whole step of a rounding error near zero
    own = {"batch_size": batch_size, "train_images": 40, "learning_rate": 1e-5, "eval_split": "val"}
    return fields(data, output, **{**own, "eval_batch_size": 4, **more})


@pytest.fixture(scope="module")
def two_processes(odd_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of all cases, trained by two processes with half the batch each."""
    folder = tmp_path_factory.mktemp("two")
    configs = [measured(odd_scenes, folder / name, 1, **case) for name, case in CASES.items()]
    few = {"config": FIXED, "train_images": 4, "save_every": 1}
    configs.append(measured(generate_scenes(folder / "few", num_train=1, num_val=1), folder / "fewer", 1, **few))
    configs.append(measured(odd_scenes, folder / "stopped", 1, **STEADY, train_images=20, save_every=5))
    broken = spoil(odd_scenes, folder / "broken", 2)
    configs.append(measured(folder / "broken", folder / "unreadable", 1, config=FIXED, train_images=12, eval_split=""))
    run_two_processes(configs, folder)
    (folder / "broken.json").write_text(json.dumps(broken))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(odd_scenes: Path, two_processes: Path, tmp_path: Path, name: str) -> None:
    train(TrainConfig(**measured(odd_scenes, tmp_path, 2, **CASES[name])))
    one, two = lines(tmp_path), lines(two_processes / name)
    assert len(one) == len(two) == (6 if name == "accumulated" else 20)
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), f"step {a['step']}"
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    single, double = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, two_processes / name))
    for metric in ("AP", "AP50", "AR100", "train_images", "train_steps"):
        assert single[metric] == double[metric], metric
    results = [json.loads((folder / "results.json").read_text()) for folder in (tmp_path, two_processes / name)]
    assert len({r["image_id"] for r in results[0]}) == 11
    images = [[r["image_id"] for r in part] for part in results]
    assert images[0] == images[1], "every image once, in the order of the data set"


def test_fewer_images_than_processes(two_processes: Path) -> None:
    """One training image is shown to both processes; one of them has no image to evaluate."""
    metrics = json.loads((two_processes / "fewer/metrics.json").read_text())
    assert metrics["train_steps"] == 2
    assert "AP" in metrics
    images = {r["image_id"] for r in json.loads((two_processes / "fewer/results.json").read_text())}
    assert len(images) == 1


def test_unreadable_images_of_all_processes_are_reported(two_processes: Path) -> None:
    """Each is read by one of the two."""
    messages = json.loads((two_processes / "unreadable/metrics.json").read_text())["unreadable_images"]
    broken = json.loads((two_processes / "broken.json").read_text())
    assert len(messages) == 2
    assert all(any(name in message for message in messages) for name in broken)


def test_one_process_goes_on_where_two_stopped(odd_scenes: Path, two_processes: Path, tmp_path: Path) -> None:
    train(TrainConfig(**measured(odd_scenes, tmp_path, 2, **STEADY)))
    rest = measured(odd_scenes, two_processes / "stopped", 2, resume=True, **STEADY)
    assert train(TrainConfig(**rest)).metrics["train_steps"] == 20
    got, expected = lines(two_processes / "stopped"), lines(tmp_path)
    assert [line["step"] for line in got] == list(range(1, 21))
    # Two processes add up in another order, and twenty steps magnify that; other images would show in the first digits.
    for a, b in zip(got, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
