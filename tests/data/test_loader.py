"""Batches of a training: who gets which images, how they are augmented, and that a run goes on where it stopped."""

import json
import logging
import os
import shutil
import signal
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import TrainTransform, decode_image, load_detection_dataset
from drmm_hf.training import TrainConfig
from drmm_hf.training.batches import TableData, training_order
from drmm_hf.training.stream_batches import StreamData
from model_fixtures import save_small
from shards import BOX, png, samples, write_tar

SIZE = {"shortest_edge": 96, "longest_edge": 128}
NAMES = ["disc", "ring", "rectangle", "rhombus", "triangle", "star", "cross"]


def open_table(path: Path, rank: int = 0, processes: int = 1, **options: Any) -> TableData:
    return TableData(TrainConfig(data=str(path), train_images=1, **options), processes, rank)


def open_stream(path: Path, rank: int = 0, processes: int = 1, **options: Any) -> StreamData:
    config = TrainConfig(data=str(path), train_images=1, streaming=True, **{"classes": ["thing"], **options})
    return StreamData(config, processes, rank)


def still(size: tuple[int, int]) -> TrainTransform:
    """The transform without any chance in it."""
    return TrainTransform(size, horizontal_flip=0.0, scale_range=(1.0, 1.0), translate=0.0, color_jitter=0.0)


def tell(row: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """A sample that tells its draw."""
    decode_image(row)
    image = torch.randint(2**20, (1, row["height"], row["width"]), generator=generator)
    sample = {"image": image, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "dropped_boxes": 0}
    return {**sample, "image_id": row["image_id"]}


def seen(batches: Any, count: int) -> list[list[tuple[int, int]]]:
    """Image and draw of every sample of the next batches."""
    return [
        [(a["image_id"], int(i[0, 0, 0])) for a, i in zip(batch["annotations"], batch["images"], strict=True)]
        for batch in islice(batches, count)
    ]


def images_of(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [image for batch in batches for image, _ in batch]


@pytest.fixture(scope="session")
def tar_scenes(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as two tars and one, without the names of the classes."""
    folder = tmp_path_factory.mktemp("tars")
    for split, count in (("train", 2), ("val", 1)):
        rows = load_detection_dataset(scenes, split).dataset
        for index in range(count):
            files: dict[str, Any] = {}
            for row in rows.shard(count, index):
                record = {"objects": {name: row["objects"][name] for name in ("bbox", "category")}}
                files[f"{row['image_id']}.png"] = Path(row["image"]["path"]).read_bytes()
                files[f"{row['image_id']}.json"] = record
            write_tar(folder / f"{split}-{index:05d}.tar", files)
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of five wide and two tall images, of which one is broken and one has no box."""
    folder = tmp_path_factory.mktemp("mixed")
    for shard in range(2):
        files: dict[str, Any] = {}
        for key in range(7 * shard, 7 * shard + 7):
            width, height = (8, 16) if key % 7 in (2, 5) else (16, 8)
            files[f"{key:06d}.png"] = png(width, height)[: 40 if key == 3 else None]
            objects = BOX if key != 11 else {"bbox": [], "category": []}
            files[f"{key:06d}.json"] = {"objects": objects, "width": width, "height": height}
        write_tar(folder / f"train-{shard}.tar", files)
    return folder


def test_a_batch_is_what_the_processor_makes_of_the_files(scenes: Path) -> None:
    """Without augmentation, training shows the model what inference shows it: pixels, mask and labels."""
    by_id = {row["image_id"]: row for row in load_detection_dataset(scenes, "train").dataset}
    batch = next(open_table(scenes, batch_size=3).batches(still((96, 128))))
    processor = DrmmImageProcessor(size=SIZE)
    got = processor(batch["images"], annotations=batch["annotations"], do_resize=False, return_tensors="pt")
    own = [by_id[annotation["image_id"]] for annotation in batch["annotations"]]
    annotations = []
    for row in own:
        pairs = zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
        records = [{"bbox": box, "category_id": label} for box, label in pairs]
        annotations.append({"image_id": row["image_id"], "annotations": records})
    images = [Image.open(row["image"]["path"]) for row in own]
    expected = processor(images, annotations=annotations, return_tensors="pt")
    torch.testing.assert_close(got["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)
    assert torch.equal(got["pixel_mask"], expected["pixel_mask"])
    for ours, theirs in zip(got["labels"], expected["labels"], strict=True):
        assert torch.equal(ours["class_labels"], theirs["class_labels"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-6, rtol=0)


# The order of a table


def order_of(num_images: int, count: int, batch_size: int, **options: Any) -> list[list[int]]:
    """Image indices of the first batches."""
    batches = training_order(np.zeros(num_images, dtype=int), batch_size, options.pop("seed", 0), **options)
    return [[index for _, index in batch] for batch in islice(batches, count)]


def test_the_remainder_is_left_out_but_differs_by_epoch() -> None:
    batches = order_of(11, 6, 4)
    epochs = [set(chain(*batches[start : start + 2])) for start in (0, 2, 4)]
    assert [len(images) for images in epochs] == [8, 8, 8]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("num_processes", "batch_size", "accumulation"), [(2, 1, 1), (1, 1, 2), (4, 1, 1), (2, 1, 2)])
def test_a_step_has_the_same_images_however_it_is_divided(num_processes, batch_size, accumulation) -> None:
    whole = order_of(13, 9, num_processes * batch_size * accumulation, seed=5)
    options = {"seed": 5, "num_processes": num_processes, "accumulation": accumulation}
    parts = [order_of(13, 9 * accumulation, batch_size, process_index=rank, **options) for rank in range(num_processes)]
    for step, images in enumerate(whole):
        turns = [part[step * accumulation : (step + 1) * accumulation] for part in parts]
        assert sorted(chain(*chain(*turns))) == sorted(images)


def test_fewer_images_than_processes_are_repeated() -> None:
    for rank in range(4):
        assert [len(batch) for batch in order_of(3, 3, 2, num_processes=4, process_index=rank)] == [2, 2, 2]
    assert order_of(1, 2, 8) == [[0] * 8] * 2
    assert {(len(batch), len({*batch})) for batch in order_of(2, 4, 3)} == {(3, 2)}


def test_batches_of_one_group() -> None:
    groups = np.array([0, 1, 1, 0, 1, 1, 1, 0, 1])
    for batch in islice(training_order(groups, 2, 0), 16):
        assert len({groups[index] for _, index in batch}) == 1
        assert len(batch) == len(set(batch)) == 2
    epoch = list(islice(training_order(groups, 2, 0), 4))  # three pairs of six wide images, one pair of three tall ones
    assert len(set(chain(*epoch))) == 8
    small = training_order(np.array([0, 0, 1, 0, 0]), 2, 0)
    assert {index for _, index in chain(*islice(small, 3))} == {0, 1, 2, 3, 4}, "a group smaller than a batch is there"


# Tables


@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_goes_on_at_any_step(scenes: Path, workers: int) -> None:
    expected = seen(open_table(scenes, seed=1).batches(tell), 14)
    assert len(set(images_of(expected[:6]))) == 12
    assert len({draw for batch in expected for _, draw in batch}) == 28, "an image is augmented anew in every epoch"
    for step in (0, 1, 5, 9):
        later = open_table(scenes, seed=1, num_workers=workers).batches(tell, step)
        assert seen(later, 5) == expected[step : step + 5]
    assert seen(open_table(scenes, seed=2).batches(tell), 6) != expected[:6]


def test_processes_share_the_steps_of_one(scenes: Path) -> None:
    """With the same images, and the same draws, whoever makes them."""
    whole = seen(open_table(scenes, batch_size=4).batches(tell), 7)
    parts = [seen(open_table(scenes, rank, 2).batches(tell), 7) for rank in range(2)]
    turns = seen(open_table(scenes, gradient_accumulation=2).batches(tell), 14)
    for step, images in enumerate(whole):
        assert sorted(parts[0][step] + parts[1][step]) == sorted(images)
        assert sorted(turns[2 * step] + turns[2 * step + 1]) == sorted(images)


def test_the_callers_random_numbers_go_on_as_before(scenes: Path) -> None:
    before = torch.get_rng_state()
    next(open_table(scenes).batches(TrainTransform((96, 128))))
    assert torch.equal(torch.get_rng_state(), before)


def test_unreadable_images_of_a_table_are_replaced_and_named(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    pictures = sorted((tmp_path / "data" / "images").glob("*train*"))
    pictures[3].write_bytes(pictures[3].read_bytes()[:300])
    batches = list(islice(open_table(tmp_path / "data").batches(still((96, 128))), 6))
    assert [pictures[3].name in message for batch in batches for message in batch["skipped"]] == [True]
    images = [annotation["image_id"] for batch in batches for annotation in batch["annotations"]]
    assert sorted(images) == sorted([*range(1, 4), *range(5, 13), 5]), "by the next one"
    for workers in (0, 1):
        with pytest.raises(ValueError, match=pictures[3].name):
            seen(open_table(tmp_path / "data", max_bad_images=0, num_workers=workers).batches(tell), 6)
    for picture in pictures:
        picture.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train_\d+\.jpg"):
        next(open_table(tmp_path / "data").batches(tell))


def die(row: Any, generator: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_error(scenes: Path) -> None:
    with pytest.raises(OSError, match="worker"):
        next(open_table(scenes, num_workers=1).batches(die))


@pytest.fixture
def without_val(scenes: Path, tmp_path: Path) -> Path:
    """The scenes with the splits train and test."""
    shutil.copytree(scenes, tmp_path / "data")
    annotations = tmp_path / "data/annotations"
    (annotations / "instances_val.json").rename(annotations / "instances_test.json")
    return tmp_path / "data"


@pytest.mark.parametrize("evaluated", ["val", "test"])
def test_what_is_held_out_is_not_trained_on_whichever_split_is_evaluated(without_val: Path, evaluated: str) -> None:
    trained = set(open_table(without_val, eval_split=evaluated).rows["image_id"])
    held_out = set(load_detection_dataset(without_val, "val", validation_share=0.15).dataset["image_id"])
    assert held_out
    assert not trained & held_out
    everything = set(open_table(without_val, eval_split="").rows["image_id"])
    assert everything == trained | held_out


def test_images_that_are_elsewhere_are_those_of_what_is_held_out_too(without_val: Path, tmp_path: Path) -> None:
    images = (without_val / "images").rename(tmp_path / "elsewhere")
    table = open_table(without_val, images=str(images))
    assert len(table.evaluation_dataset()) + len(table.rows) == len(
        open_table(without_val, eval_split="", images=str(images)).rows
    )


def test_classes_that_a_checkpoint_knows_keep_its_labels(scenes: Path, tmp_path: Path) -> None:
    names = dict(enumerate(reversed(NAMES)))
    model = save_small(tmp_path / "model", id2label=names, label2id={name: label for label, name in names.items()})
    assert open_table(scenes, model=model).id2label == names
    assert open_table(scenes, model=model, classes=NAMES).id2label == dict(enumerate(NAMES))
    assert open_table(scenes).id2label == dict(enumerate(NAMES))


# Streams


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("by_orientation", [False, True])
@pytest.mark.parametrize("buffer", [3, 1000])
def test_a_stream_goes_on_where_it_stopped(mixed: Path, workers: int, by_orientation: bool, buffer: int) -> None:
    """Within an epoch and around its end, what follows is the same, image by image and draw by draw."""
    options: dict[str, Any] = {"num_workers": workers, "aspect_ratio_batches": by_orientation, "shuffle_buffer": buffer}
    expected = seen(open_stream(mixed, **options).batches(tell), 20)
    assert len(set(images_of(expected))) == 13
    for done in (1, 6, 7, 8, 14) if not workers else (5, 12):
        source = open_stream(mixed, **options)
        seen(source.batches(tell), done)
        position = json.loads(json.dumps(source.position()))
        source = open_stream(mixed, **options)
        later = source.batches(tell, done, position)
        assert seen(later, 20 - done) == expected[done:], f"after {done}"
        again = open_stream(mixed, **options).batches(tell, 20, json.loads(json.dumps(source.position())))
        assert seen(again, 1) == seen(later, 1), "a run that was resumed can be resumed"


def test_what_a_stream_has_seen_is_not_decoded_again(mixed: Path) -> None:
    source, decoded = open_stream(mixed), []
    seen(source.batches(tell), 4)

    def note(row: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        decoded.append(row["image_id"])
        return tell(row, generator)

    seen(open_stream(mixed).batches(note, 4, source.position()), 1)
    assert len(decoded) <= 3


def test_batches_have_one_orientation(mixed: Path) -> None:
    for batch in islice(open_stream(mixed, aspect_ratio_batches=True, batch_size=3).batches(tell), 12):
        assert len({image.shape[-1] >= image.shape[-2] for image in batch["images"]}) == 1


def test_images_without_boxes_are_left_out(mixed: Path) -> None:
    batches = open_stream(mixed, skip_empty_images=True).batches(tell)
    assert set(images_of(seen(batches, 24))) == set(range(14)) - {3, 11}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_have_every_image_of_a_stream_once_an_epoch(tar_scenes: Path, processes: int, caplog) -> None:
    """Two shards for three processes: each takes every third image of both."""
    options = {"batch_size": 1, "classes": NAMES}
    with caplog.at_level(logging.WARNING):
        sources = [open_stream(tar_scenes, rank, processes, **options) for rank in range(processes)]
        images = [image for s in sources for image in images_of(seen(s.batches(tell), 12 // processes))]
    assert len(images) == len(set(images)) == 12
    assert ("3 processes" in caplog.text) == (processes == 3)


def test_without_image_ids_a_rerun_is_the_same_and_draws_differ(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", samples(["photo-a", "photo-b", "photo-c"]))
    batches = seen(open_stream(tmp_path).batches(tell), 6)
    assert batches == seen(open_stream(tmp_path).batches(tell), 6)
    assert set(images_of(batches)) == {-1}
    assert len({draw for batch in batches for _, draw in batch}) == 12


def test_workers_without_a_shard_are_left_out(tar_scenes: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        source = open_stream(tar_scenes, num_workers=5, classes=NAMES)
    assert "--num-workers 5" in caplog.text
    assert len(set(images_of(seen(source.batches(tell), 6)))) == 12


def test_with_other_readers_it_goes_on_at_the_beginning_of_the_epoch(mixed: Path, caplog) -> None:
    source = open_stream(mixed, num_workers=2)
    seen(source.batches(tell), 9)  # 18 of 13 images an epoch
    with caplog.at_level(logging.WARNING):
        again = seen(open_stream(mixed).batches(tell, 9, source.position()), 6)
    assert "epoch 2" in caplog.text
    assert len(set(images_of(again))) == 12


def test_unreadable_images_of_a_stream_are_replaced_and_named(mixed: Path, tmp_path: Path) -> None:
    messages = [m for batch in islice(open_stream(mixed).batches(tell), 7) for m in batch["skipped"]]
    assert messages
    assert all("train-0.tar: 000003.png" in message for message in messages)
    with pytest.raises(ValueError, match=r"train-0\.tar: 000003\.png"):
        seen(open_stream(mixed, max_bad_images=0, num_workers=1).batches(tell), 14)
    write_tar(tmp_path / "train-0.tar", {"000000.png": b"", "000000.json": {"objects": BOX}})
    with pytest.raises(ValueError, match=r"train-0\.tar: 000000\.png"):
        next(open_stream(tmp_path).batches(tell))
    with pytest.raises(ValueError, match="process 1"):  # which has no row
        next(open_stream(tmp_path, 1, 2).batches(tell))


def test_the_stored_split_is_that_of_the_table(
    scenes: Path, parquet_scenes: Path, tar_scenes: Path, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    expected = load_detection_dataset(scenes, "val")
    for folder in (parquet_scenes, tar_scenes):
        found = open_stream(folder, classes=NAMES).evaluation_dataset()
        assert found.dataset["image_id"][:] == expected.dataset["image_id"][:]
        assert [o["bbox"] for o in found.dataset["objects"]] == [o["bbox"] for o in expected.dataset["objects"]]
        assert found.report == expected.report
    for count in (2, 3):
        for split in ("train", "val"):
            write_tar(tmp_path / f"other/{split}-0.tar", samples(range(count)))
        assert len(open_stream(tmp_path / "other").evaluation_dataset()) == count, "made anew when the shards change"


def test_a_stored_split_without_image_ids_is_numbered_without_a_warning(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "val"):
        write_tar(tmp_path / f"set/{split}-0.tar", samples(["a", "b"]))
    with caplog.at_level(logging.WARNING):
        assert open_stream(tmp_path / "set").evaluation_dataset().dataset["image_id"][:] == [0, 1]
    assert not caplog.records


def test_the_card_of_a_data_set_tells_the_length(parquet_scenes: Path, tmp_path: Path) -> None:
    for shard in parquet_scenes.iterdir():
        (tmp_path / shard.name).symlink_to(shard)
    assert open_stream(tmp_path, classes=NAMES).epoch_images is None
    splits = "".join(f"  - name: {name}\n    num_examples: {count}\n" for name, count in (("train", 12), ("val", 4)))
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{splits}---\n")
    assert open_stream(tmp_path, classes=NAMES).epoch_images == 12
    assert open_stream(tmp_path, classes=NAMES, epoch_images=5).epoch_images == 5
