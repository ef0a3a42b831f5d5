"""Training on shards that are read in order."""

import json
from pathlib import Path
from typing import Any

import pytest

from drmm_hf.training import TrainConfig, train
from training.runs import SMALL, fields, lines, run_two_processes

NAMES = ["disc", "ring", "rectangle", "rhombus", "triangle", "star", "cross"]
pytestmark = pytest.mark.usefixtures("quick_streams")


def streamed(data: Path, output: Path, **more: Any) -> dict[str, Any]:
    own = {"streaming": True, "shuffle_buffer": 4, "train_images": 24, "save_every": 7, "config": SMALL}
    return fields(data, output, **{**own, **more})


def test_a_resumed_training_is_the_uninterrupted_one(parquet: Path, tmp_path: Path) -> None:
    steady = {"schedule": "constant_with_warmup", "warmup_steps": 0}
    train(TrainConfig(**streamed(parquet, tmp_path / "whole", **steady)))
    train(TrainConfig(**streamed(parquet, tmp_path / "cut", train_images=14, **steady)))
    train(TrainConfig(**streamed(parquet, tmp_path / "cut", resume=True, **steady)))
    assert len(lines(tmp_path / "whole")) == 12
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_the_papers_augmentation_and_an_evaluation_on_tars(tars: Path, tmp_path: Path) -> None:
    options = {"augmentation": "multi_scale", "aspect_ratio_batches": True, "eval_split": "val", "classes": NAMES}
    result = train(TrainConfig(**streamed(tars, tmp_path, train_images=2, **options)))
    assert "AP" in result.metrics
    assert result.model.config.id2label[5] == "star"


def test_epochs_of_a_stream(parquet: Path, tmp_path: Path) -> None:
    length = {"train_images": None, "epochs": 0.5}
    with pytest.raises(ValueError, match="--epoch-images"):
        train(TrainConfig(**streamed(parquet, tmp_path, **length)))
    length |= {"epoch_images": 12, "schedule": "multi_step", "milestones": [0.2]}
    assert train(TrainConfig(**streamed(parquet, tmp_path, **length))).metrics["train_steps"] == 3


@pytest.mark.parametrize(("kind", "named"), [("scenes", "--streaming"), ("tars", "--classes")])
def test_what_cannot_be_streamed_is_refused(request, tmp_path: Path, kind: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        train(TrainConfig(**streamed(request.getfixturevalue(kind), tmp_path)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_of_one_shard_train_and_go_on(tmp_path: Path, tars: Path) -> None:
    steady = {"schedule": "constant_with_warmup", "warmup_steps": 0, "classes": NAMES, "batch_size": 1}
    whole = streamed(tars, tmp_path / "whole", eval_split="val", **steady)
    half = streamed(tars, tmp_path / "half", eval_split="val", **steady)
    run_two_processes([whole, {**half, "train_images": 12}, {**half, "resume": True}], tmp_path)
    assert lines(tmp_path / "half") == lines(tmp_path / "whole")
    assert json.loads((tmp_path / "half/metrics.json").read_text())["train_steps"] == 12
