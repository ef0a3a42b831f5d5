"""Training on a stream: who reads what, and that it goes on in the middle of an epoch."""

import io
import itertools
import json
import logging
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from drmm_hf.data import decode_image, load_detection_dataset
from drmm_hf.training import TrainConfig, train
from drmm_hf.training.checkpoints import Checkpoints
from drmm_hf.training.streamed_source import StreamedSource, stored_split
from training.run_two import run_two_processes

SMALL = {"num_stages": 1, "num_proposals": 16}
NAMES = ["disc", "ring", "rectangle", "rhombus", "triangle", "star", "cross"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` waits five seconds whenever a shuffled stream of parquet files ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()


def write_tar(path: Path, samples: dict[int, tuple[bytes, dict[str, Any]]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, (picture, record) in samples.items():
            for name, content in ((f"{key:06d}.png", picture), (f"{key:06d}.json", json.dumps(record).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def tars(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as two tars and one, without the names of the classes."""
    folder = tmp_path_factory.mktemp("tars")
    for split, count in (("train", 2), ("val", 1)):
        rows = load_detection_dataset(scenes, split).dataset
        for index in range(count):
            samples = {}
            for row in rows.shard(count, index):
                record = {"objects": {name: row["objects"][name] for name in ("bbox", "category")}}
                samples[row["image_id"]] = Path(row["image"]["path"]).read_bytes(), record
            write_tar(folder / f"{split}-{index:05d}.tar", samples)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of five wide and two tall images, of which one is broken and one has no box."""
    folder = tmp_path_factory.mktemp("mixed")
    for shard in range(2):
        samples = {}
        for key in range(7 * shard, 7 * shard + 7):
            stream = io.BytesIO()
            Image.new("RGB", (8, 16) if key % 7 in (2, 5) else (16, 8)).save(stream, "PNG")
            picture = stream.getvalue()[:40] if key == 3 else stream.getvalue()
            objects = {"bbox": [[1, 1, 4, 4]], "category": [0]} if key != 11 else {"bbox": [], "category": []}
            samples[key] = (
                picture,
                {"objects": objects, "width": 8, "height": 16}
                | ({} if key % 7 in (2, 5) else {"width": 16, "height": 8}),
            )
        write_tar(folder / f"train-{shard}.tar", samples)
    return folder


def identity(row: dict[str, Any]) -> dict[str, Any]:
    """A sample that tells its image and its draw."""
    decode_image(row)
    image = torch.full((3, row["height"], row["width"]), row["image_id"], dtype=torch.uint8)
    image[0, 0, 0] = torch.randint(256, ())
    return {"image": image, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def settings(data: Path, output: Path, **more: Any) -> TrainConfig:
    fields = {"data": str(data), "output": str(output), "train_images": 24, "batch_size": 2, "log_every": 1}
    fields |= {"cpu": True, "eval_split": "", "save_every": 3, "config": SMALL, "streaming": True}
    return TrainConfig(**{**fields, **more})


def source_of(data: Path, rank: int = 0, processes: int = 1, **more: Any) -> StreamedSource:
    accelerator: Any = SimpleNamespace(process_index=rank, num_processes=processes, is_main_process=rank == 0)
    return StreamedSource(settings(data, Path(), **{"classes": ["thing"], **more}), accelerator)


def seen(batches: Any, count: int) -> list[list[tuple[int, int]]]:
    """Image and draw of every sample of the next batches."""
    return [[(int(i[1, 0, 0]), int(i[0, 0, 0])) for i in batch["image"]] for batch in itertools.islice(batches, count)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("by_orientation", [False, True])
def test_it_goes_on_where_it_stopped(mixed: Path, workers: int, by_orientation: bool) -> None:
    """After any number of batches, those that follow are the same, image by image and draw by draw."""
    options = {"num_workers": workers, "aspect_ratio_batches": by_orientation, "max_bad_images": 99}
    expected = seen(source_of(mixed, **options).batches(identity), 20)
    assert len({image for batch in expected for image, _ in batch}) == 13
    for done in (1, 4, 9, 14) if not workers else (5, 12):
        source = source_of(mixed, **options)
        seen(source.batches(identity), done)
        position = json.loads(json.dumps(source.position()))
        later = source_of(mixed, **options).batches(identity, done, position)
        assert seen(later, 20 - done) == expected[done:], f"after {done}"


def test_batches_have_one_orientation(mixed: Path) -> None:
    batches = source_of(mixed, aspect_ratio_batches=True, batch_size=3).batches(identity)
    for batch in itertools.islice(batches, 12):
        masks = batch["pixel_mask"]
        wide = {bool(mask[0].sum() >= mask[:, 0].sum()) for mask in masks}
        assert len(wide) == 1


def test_images_without_boxes_are_left_out(mixed: Path) -> None:
    batches = source_of(mixed, skip_empty_images=True).batches(identity)
    images = {image for batch in seen(batches, 24) for image, _ in batch}
    assert images == set(range(14)) - {3, 11}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_have_every_image_once_an_epoch(tars: Path, processes: int, caplog) -> None:
    """Two shards for three processes: each takes every third image of both."""
    with caplog.at_level(logging.WARNING):
        sources = [source_of(tars, rank, processes, batch_size=1, classes=NAMES) for rank in range(processes)]
        epochs = [seen(source.batches(identity), 12 // processes) for source in sources]
    images = [image for part in epochs for batch in part for image, _ in batch]
    assert len(images) == len(set(images)) == 12
    assert ("cannot be dealt evenly to 3 processes" in caplog.text) == (processes == 3)


def test_workers_without_a_shard_are_left_out(tars: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        source = source_of(tars, num_workers=5, classes=NAMES)
    assert source.workers == 2
    assert "--num-workers 5, but only 2 shards for each process" in caplog.text


def test_with_other_readers_it_goes_on_at_the_beginning_of_the_epoch(mixed: Path, caplog) -> None:
    source = source_of(mixed, num_workers=2)
    seen(source.batches(identity), 9)  # 18 of 13 images an epoch
    later = source_of(mixed)
    with caplog.at_level(logging.WARNING):
        again = seen(later.batches(identity, 9, source.position()), 6)
    assert "of 1 processes with 2 readers each, this run has 1 with 1: it goes on at the beginning of epoch 2" in (
        caplog.text
    )
    assert len({image for batch in again for image, _ in batch}) == 12


def test_an_error_in_a_shard_ends_the_training(mixed: Path) -> None:
    with pytest.raises(ValueError, match=r"train-0\.tar: 000003\.png"):
        seen(source_of(mixed, max_bad_images=0, num_workers=1).batches(identity), 14)


def test_no_image_for_a_process_is_an_error(tmp_path: Path, mixed: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {0: (b"", {"objects": {"bbox": [[1, 1, 4, 4]], "category": [0]}})})
    with pytest.raises(ValueError, match=r"process 1, reader 0, finds no image to train on .* use fewer processes"):
        next(source_of(tmp_path, 1, 2).batches(identity))


def test_the_stored_split_is_that_of_the_table(scenes: Path, parquet: Path, tars: Path) -> None:
    expected = load_detection_dataset(scenes, "val")
    for folder in (parquet, tars):
        found = stored_split(str(folder), "val", expected.id2label)
        assert found.dataset["image_id"] == expected.dataset["image_id"]
        assert found.dataset["objects"] == expected.dataset["objects"] or folder == tars
        assert [o["bbox"] for o in found.dataset["objects"]] == [o["bbox"] for o in expected.dataset["objects"]]
        assert found.report.boxes == expected.report.boxes


def test_the_stored_split_is_made_anew_when_the_shards_change(tmp_path: Path, mixed: Path) -> None:
    shard = tmp_path / "val-0.tar"
    for count in (2, 3):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "PNG")
        record = {"objects": {"bbox": [[1, 1, 4, 4]], "category": [0]}}
        write_tar(shard, {key: (stream.getvalue(), record) for key in range(count)})
        assert len(stored_split(str(tmp_path), "val", {0: "thing"})) == count


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in records]


def test_a_resumed_training_is_the_uninterrupted_one(parquet: Path, tmp_path: Path, monkeypatch) -> None:
    train(settings(parquet, tmp_path / "whole"))
    original = Checkpoints.save

    def save(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(settings(parquet, tmp_path / "cut"))
    train(settings(parquet, tmp_path / "cut", resume=True))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert len(lines(tmp_path / "whole")) == 12


def test_the_papers_augmentation_and_an_evaluation_on_tars(tars: Path, tmp_path: Path) -> None:
    options = {"augmentation": "multi_scale", "aspect_ratio_batches": True, "eval_split": "val", "classes": NAMES}
    result = train(settings(tars, tmp_path, train_images=2, **options))
    assert "AP" in result.metrics
    assert result.model.config.id2label[5] == "star"


def test_epochs_of_a_stream(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing tells how many images .* give --epoch-images as well"):
        train(settings(parquet, tmp_path, train_images=None, epochs=0.5))
    options = {"epochs": 0.5, "epoch_images": 12, "schedule": "multi_step", "milestones": [0.2]}
    assert train(settings(parquet, tmp_path, train_images=None, **options)).metrics["train_steps"] == 3


def test_the_card_of_a_data_set_tells_the_length(parquet: Path, tmp_path: Path) -> None:
    for shard in parquet.iterdir():
        (tmp_path / shard.name).symlink_to(shard)
    assert source_of(tmp_path, classes=NAMES).epoch_images is None
    splits = "".join(f"  - name: {name}\n    num_examples: {count}\n" for name, count in (("train", 12), ("val", 4)))
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{splits}---\n")
    assert source_of(tmp_path, classes=NAMES).epoch_images == 12
    assert source_of(tmp_path, classes=NAMES, epoch_images=5).epoch_images == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"streaming": False, "epoch_images": 5}, "epoch_images is for a stream"),
        ({"shuffle_buffer": 0}, "shuffle_buffer=0 must be greater than 0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, tmp_path, **fields)


def test_what_cannot_be_streamed_is_refused(scenes: Path, tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in COCO format.*leave out --streaming"):
        train(settings(scenes, tmp_path))
    with pytest.raises(ValueError, match=r"does not tell the classes; give --classes, the names of labels"):
        train(settings(tars, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_of_one_shard_train_and_go_on(tmp_path: Path, tars: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000.tar", "val-00000.tar"):
        (tmp_path / "data" / name).symlink_to(tars / name)
    fields = settings(tmp_path / "data", tmp_path / "whole", classes=NAMES, eval_split="val", batch_size=1).to_dict()
    half = {"train_images": 12, "output": str(tmp_path / "half"), "schedule": "constant_with_warmup", "warmup_steps": 0}
    whole = {**fields, **half, "train_images": 24, "output": str(tmp_path / "whole")}
    run_two_processes(
        [whole, {**fields, **half}, {**whole, "output": str(tmp_path / "half"), "resume": True}], tmp_path
    )
    assert lines(tmp_path / "half") == lines(tmp_path / "whole")
    assert json.loads((tmp_path / "half/metrics.json").read_text())["train_steps"] == 12
