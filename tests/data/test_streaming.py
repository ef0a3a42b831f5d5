import io
import itertools
import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from drmm_hf.data import PaperTransform, decode_image, objects_dataset
from drmm_hf.data.streaming import load_streaming_dataset
from drmm_hf.training.batches import collate
from drmm_hf.training.streamed_samples import StreamedSamples

WIDTH, HEIGHT = 64, 48
NAMES = ["mask", "glove", "gown"]
ID2LABEL = dict(enumerate(NAMES))
BOXES = [[1.0, 2.0, 10.0, 12.0], [50.0, 5.0, 30.0, 30.0], [5.0, 5.0, 0.0, 4.0], [70.0, 5.0, 3.0, 3.0]]
CATEGORIES = [2, 0, 1, 1]


def encoded(index, size=(WIDTH, HEIGHT), format="PNG"):
    pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format=format)
    return file.getvalue()


def row(index, **changes):
    """Box 1 sticks out of the image, 2 has no area, and 3 lies outside."""
    return {
        "image_id": index,
        "image": {"bytes": encoded(index), "path": f"{index}.png"},
        "width": WIDTH,
        "height": HEIGHT,
        "objects": {"bbox": BOXES, "category": CATEGORIES, "iscrowd": [0, 1, 0, 0]},
        **changes,
    }


def features(category=None):
    return datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(category or datasets.ClassLabel(names=NAMES)),
                "iscrowd": datasets.List(datasets.Value("int8")),
            },
        }
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """`datasets` waits five seconds whenever a shuffled stream of parquet files ends."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()


@pytest.fixture
def parquet(tmp_path):
    """Makes a folder of parquet shards, one for each list of rows."""

    def make(*shards, category=None, **renamed):
        folder = tmp_path / "parquet"
        folder.mkdir()
        for index, rows in enumerate(shards):
            columns = {key: [row[key] for row in rows] for key in features()}
            shard = datasets.Dataset.from_dict(columns, features=features(category)).rename_columns(renamed)
            # datasets 4.5 would divide by the number of rows to choose a batch size.
            shard.to_parquet(folder / f"train-{index:05d}-of-{len(shards):05d}.parquet", batch_size=100)
        return folder

    return make


@pytest.fixture
def tars(tmp_path):
    """Makes a folder of tars, one for each list of samples, which are dicts of file names and contents."""

    def make(*shards):
        folder = tmp_path / "tars"
        folder.mkdir()
        for index, samples in enumerate(shards):
            with tarfile.open(folder / f"train-{index:05d}.tar", "w") as archive:
                for name, content in itertools.chain.from_iterable(sample.items() for sample in samples):
                    content = content if isinstance(content, bytes) else json.dumps(content).encode()
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return folder

    return make


def tar_sample(index, format="jpg", **changes):
    record = {key: value for key, value in row(index).items() if key != "image"}
    picture = encoded(index, format="JPEG" if format == "jpg" else format)
    return {f"{index:06d}.{format}": picture, f"{index:06d}.json": {**record, **changes}}


def shards_of(count, size=4):
    return [[row(10 * shard + index) for index in range(size)] for shard in range(count)]


def sketch(row):
    """A transform that keeps the id and a number of the augmentation."""
    pixel = decode_image(row).getpixel((0, 0))
    return {
        "image_id": row["image_id"],
        "draw": torch.rand(1).item(),
        "pixel": pixel,
        "labels": row["objects"]["category"],
    }


def streaming_samples(dataset, transform, seed, rank, world_size, batch_size, *, buffer_size=1000, **options):
    part = dataset.shuffle(seed, buffer_size).split_by_node(rank, world_size)
    return StreamedSamples(part, transform, seed, batch_size, rank, **options)


def first(dataset, count, rank=0, world_size=1, **options):
    samples = streaming_samples(dataset, sketch, 5, rank, world_size, 2, **options)
    return list(itertools.islice(iter(samples), count))


def ids(samples):
    return [sample["image_id"] for sample in samples]


def test_rows_are_those_of_the_data_set_that_is_not_streamed(parquet):
    folder = parquet([row(3)], [row(4, objects={"bbox": [], "category": [], "iscrowd": []})])
    streamed = load_streaming_dataset(folder, "train")
    whole = objects_dataset(datasets.load_dataset(str(folder), split="train")).dataset
    assert (streamed.num_shards, streamed.id2label, streamed.label2id["gown"]) == (2, ID2LABEL, 2)
    for ours, theirs in zip(streamed, whole, strict=True):
        theirs["objects"].pop("id")
        ours["objects"].pop("id")
        assert ours == theirs
    assert ours["objects"]["bbox"] == []


@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_boxes_without_area_are_dropped_and_crowd_is_left_to_the_transform(kind, parquet, tars):
    folder = parquet([row(3)]) if kind == "parquet" else tars([tar_sample(3)])
    data = load_streaming_dataset(folder, "train", id2label=ID2LABEL)
    (only,) = data
    assert only["objects"]["bbox"] == [[1, 2, 10, 12], [50, 5, 14, 30]]
    assert (only["objects"]["category"], only["objects"]["iscrowd"]) == ([2, 0], [0, 1])
    sample = next(iter(streaming_samples(data, PaperTransform(multi_scale=False), 0, 0, 1, 1)))
    assert sample["labels"].tolist() == [2]
    assert (sample["image_id"], sample["skipped"]) == (3, [])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_have_together_every_image_once_an_epoch(world_size, parquet):
    data = load_streaming_dataset(parquet(*shards_of(2, size=6)))
    parts = [ids(first(data, 2 * 12 // world_size, rank, world_size, buffer_size=4)) for rank in range(world_size)]
    for epoch in range(2):
        size = 12 // world_size
        seen = list(itertools.chain.from_iterable(part[epoch * size : (epoch + 1) * size] for part in parts))
        assert sorted(seen) == sorted([*range(6), *range(10, 16)])


def test_a_process_reads_only_its_own_shards(parquet):
    data = load_streaming_dataset(parquet(*shards_of(4)))
    shards = [{image_id // 10 for image_id in ids(first(data, 8, rank, 2))} for rank in range(2)]
    assert shards[0] | shards[1] == {0, 1, 2, 3}
    assert not shards[0] & shards[1]


def test_the_order_and_the_draws_depend_on_the_epoch_and_the_seed_alone(parquet):
    data = load_streaming_dataset(parquet(*shards_of(3)))
    samples = first(data, 24)
    assert first(data, 24) == samples
    assert ids(samples[:12]) != ids(samples[12:])
    assert first(data, 12, first_epoch=1) == samples[12:]
    draws = {(sample["image_id"], sample["draw"]) for sample in samples}
    assert len(draws) == 24
    other = list(itertools.islice(iter(streaming_samples(data, sketch, 6, 0, 1, 2)), 12))
    assert ids(other) != ids(samples[:12])


def test_without_image_ids_a_rerun_is_the_same_and_draws_differ(tars):
    samples = [
        {f"photo-{index}.jpg": encoded(index, format="JPEG"), f"photo-{index}.json": {"objects": row(0)["objects"]}}
        for index in range(3)
    ]
    data = load_streaming_dataset(tars(samples), id2label=ID2LABEL)
    seen = first(data, 6)
    assert seen == first(data, 6)
    assert ids(seen) == [-1] * 6
    assert len({sample["draw"] for sample in seen}) == 6


def test_shuffled_rows_of_the_data_set_follow_set_epoch(parquet):
    data = load_streaming_dataset(parquet(*shards_of(3))).shuffle(seed=1)
    before = ids(data)
    assert ids(data) == before
    data.set_epoch(1)
    assert ids(data) != before
    assert sorted(ids(data)) == sorted(before)


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_an_empty_shard_ends_nothing(empty, kind, parquet, tars):
    shards = [
        [(row if kind == "parquet" else tar_sample)(10 * shard + index) for index in range(3)] for shard in (0, 1)
    ]
    shards.insert(empty, [])
    data = load_streaming_dataset({"parquet": parquet, "tars": tars}[kind](*shards), id2label=ID2LABEL)
    assert sorted(ids(first(data, 6))) == [0, 1, 2, 10, 11, 12]
    # One of three processes has nothing to read in some epochs.
    assert len(first(data, 7, rank=2, world_size=3)) == 7


def test_more_processes_than_images_are_refused(parquet):
    data = load_streaming_dataset(parquet([row(1)]))
    assert ids(first(data, 2, rank=0, world_size=2)) == [1, 1]
    (error,) = first(data, 1, rank=1, world_size=2)
    assert isinstance(error, ValueError)
    assert "process 1, reader 0, finds no image to train on" in str(error)


@pytest.mark.parametrize("shards", [1, 3])
def test_two_workers_read_every_image_once(shards, tars):
    data = load_streaming_dataset(
        tars(*[[tar_sample(10 * shard + index) for index in range(4)] for shard in range(shards)]), id2label=ID2LABEL
    )
    epoch = DataLoader(data.shuffle(seed=1), batch_size=3, num_workers=2, collate_fn=ids)
    assert sorted(itertools.chain.from_iterable(epoch)) == [
        10 * shard + index for shard in range(shards) for index in range(4)
    ]
    if shards == 1:
        return  # a worker without a shard is an error of the samples: the training starts no such worker
    endless = DataLoader(streaming_samples(data, sketch, 5, 0, 1, 2), batch_size=2, num_workers=2, collate_fn=list)
    batches = [list(itertools.islice(endless, 5 * shards)) for _ in range(2)]
    assert batches[0] == batches[1]
    assert len({sample["draw"] for batch in batches[0] for sample in batch}) == 10 * shards


def test_collated_batches_of_two_processes(parquet):
    data = load_streaming_dataset(parquet(*shards_of(2)))
    samples = streaming_samples(data, PaperTransform(shortest_edges=(32,), multi_scale=False), 0, 1, 2, 2)
    batch = next(iter(DataLoader(samples, batch_size=2, collate_fn=collate)))
    assert batch["image"].shape == (2, 3, 32, 64)
    assert [labels["class_labels"].tolist() for labels in batch["labels"]] == [[2], [2]]


@pytest.mark.parametrize("sizes", ["given", "read"])
def test_an_unreadable_image_is_replaced_and_named(sizes, tars):
    broken = tar_sample(7) | {"000007.jpg": b"no image"}
    if sizes == "read":
        for field in ("width", "height"):
            del broken["000007.json"][field]
    data = load_streaming_dataset(tars([tar_sample(1), broken, tar_sample(2, "png")]), id2label=ID2LABEL)
    samples = first(data, 4)
    assert sorted(ids(samples)) == [1, 1, 2, 2]
    messages = [message for sample in samples for message in sample["skipped"]]
    assert messages
    assert all("train-00000.tar: 000007.jpg: the image cannot be decoded" in message for message in messages)
    strict = first(data, 3, strict=True)
    assert "000007.jpg" in str(next(item for item in strict if isinstance(item, ValueError)))


def test_many_unreadable_images_in_a_row_are_an_error(parquet):
    data = load_streaming_dataset(parquet([row(1, image={"bytes": b"no image", "path": None})]))
    (error,) = first(data, 1)
    assert "10 images in a row cannot be read" in str(error)
    assert "parquet (train), image 1: the image cannot be decoded" in str(error)


def test_samples_of_one_orientation_come_in_runs(parquet):
    tall = [
        row(20 + index, width=HEIGHT, height=WIDTH, image={"bytes": encoded(index, (HEIGHT, WIDTH)), "path": None})
        for index in range(5)
    ]
    data = load_streaming_dataset(parquet([row(index) for index in range(5)] + tall))
    seen = ids(first(data, 40, by_orientation=True))
    assert all(a // 20 == b // 20 for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert set(Counter(seen).values()) <= {3, 4, 5}


def test_missing_sizes_other_names_and_lists_of_dicts(tars):
    record = {"things": [{"box": BOXES[0], "kind": "glove"}, {"box": BOXES[1], "kind": "mask"}]}
    empty = {"things": []}
    samples = [
        {"a/000005.photo.png": encoded(5), "a/000005.json": record, "a/000005.txt": b"passed over"},
        {"a/000006.json": empty, "a/000006.jpg": encoded(6, format="JPEG")},
    ]
    names = {"objects": "things", "bbox": "box", "category": "kind"}
    data = load_streaming_dataset(tars(samples), id2label=ID2LABEL, columns=names)
    boxed, boxless = data
    assert (boxed["image_id"], boxed["width"], boxed["height"]) == (5, WIDTH, HEIGHT)
    assert boxed["objects"]["category"] == [1, 0]
    assert boxed["objects"]["area"] == [120, 14 * 30]
    assert boxless["objects"] == {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
    assert ids(first(data, 2, buffer_size=1)) != [-1, -1]


def test_the_labels_of_a_given_model_are_used(parquet):
    data = load_streaming_dataset(parquet([row(1)]), id2label={0: "gown", 1: "hat", 2: "mask", 3: "glove"})
    assert next(iter(data))["objects"]["category"] == [0, 2]
    assert data.id2label[1] == "hat"


def test_renamed_columns_of_parquet_shards(parquet):
    data = load_streaming_dataset(parquet([row(1)], image="photo"), columns={"image": "photo"})
    assert decode_image(next(iter(data))).size == (WIDTH, HEIGHT)


def test_classes_must_be_known(parquet):
    folder = parquet([row(1)], category=datasets.Value("int64"))
    with pytest.raises(ValueError, match=r"parquet \(train\): objects.category is no ClassLabel.*give `id2label`"):
        load_streaming_dataset(folder)
    assert next(iter(load_streaming_dataset(folder, id2label=ID2LABEL)))["objects"]["category"] == [2, 0]
    with pytest.raises(ValueError, match=r"objects.category of image 1 \(box 0\) is 2; it must be a label below 2"):
        next(iter(load_streaming_dataset(folder, id2label={0: "mask", 1: "glove"})))


def test_classes_of_the_data_must_be_in_id2label(parquet):
    with pytest.raises(ValueError, match=r"the classes \['gown'\] are not in id2label"):
        load_streaming_dataset(parquet([row(1)]), id2label={0: "mask", 1: "glove"})


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3]], "category": [0]}, r"objects.bbox of image 1 \(box 0\) is \[1, 2, 3\]; it must be four"),
        ({"bbox": [[1, 2, -3, 4]], "category": [0]}, ".*width and height not negative"),
        ({"bbox": BOXES, "category": [0]}, "objects.category of image 1 has 1 entries, but objects.bbox has 4"),
        ({"bbox": [[1, 2, 3, 4]]}, r"`objects` has no \['category'\].*`load_streaming_dataset` \(image 1\)"),
        ({"bbox": [[1, 2, 3, 4]], "category": ["hat"]}, r"categories \['hat'\] are not in id2label.*\(image 1\)"),
        ({"bbox": [[1, "2", 3, 4]], "category": [0]}, r"`objects` is not a dict of lists.*\(image 1\)"),
        ("none", r"`objects` is string; it must be a dict of lists or a list of dicts \(image 1\)"),
    ],
)
def test_bad_objects_are_one_error_that_names_the_image(objects, message, tars):
    data = load_streaming_dataset(tars([tar_sample(1, objects=objects)]), id2label=ID2LABEL)
    with pytest.raises(ValueError, match=r"tars \(train\): " + message):
        next(iter(data))
    assert all(isinstance(item, ValueError) for item in first(data, 3))


def test_relative_boxes_are_refused(parquet):
    objects = {"bbox": [[0.1, 0.1, 0.5, 0.5]], "category": [0], "iscrowd": [0]}
    data = load_streaming_dataset(parquet([row(1, objects=objects), row(2, objects=objects)]))
    with pytest.raises(ValueError, match="they seem relative to the image"):
        list(data)


def test_bad_sizes_are_refused(tars):
    data = load_streaming_dataset(tars([tar_sample(1, width=0)]), id2label=ID2LABEL)
    with pytest.raises(ValueError, match="width of image 1 is 0; it must be a positive number of pixels"):
        next(iter(data))


def test_a_stream_without_the_columns_is_refused(parquet):
    folder = parquet([row(1)], objects="annotations")
    with pytest.raises(
        ValueError, match=r"parquet \(train\): has no column \['objects'\], only .*`columns=` to `load_s"
    ):
        load_streaming_dataset(folder)
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_streaming_dataset(folder, "test")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"1.json": {"objects": []}}, r"train-00000.tar: 1 has no image \(jpg"),
        ({"1.jpg": b"", "2.txt": b""}, "train-00000.tar: 1 has no json"),
        ({"1.jpg": b"", "1.json": b"{"}, "train-00000.tar: 1.json: is not valid JSON"),
        ({"1.jpg": b"", "1.json": []}, "train-00000.tar: 1.json: holds a list"),
        ({"1.jpg": b"", "1.json": {}}, r"has no column \['objects'\]"),
        ({"1.txt": b""}, "has no rows"),
    ],
)
def test_incomplete_samples_are_refused(sample, message, tars):
    with pytest.raises(ValueError, match=message):
        load_streaming_dataset(tars([sample]), id2label=ID2LABEL)


def test_a_cut_off_shard_is_refused(parquet, tars):
    for folder in (parquet(*shards_of(2)), tars([tar_sample(1)], [tar_sample(2)])):
        file = sorted(folder.iterdir())[1]
        file.write_bytes(file.read_bytes()[:700])
        data = load_streaming_dataset(folder, id2label=ID2LABEL)
        with pytest.raises(ValueError, match=r"(parquet \(train\)|train-00001.tar): .*again"):
            list(data)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data set on the Hub that can be reached"):
        load_streaming_dataset("nobody/nothing")
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    with pytest.raises(ValueError, match="read it with `load_detection_dataset`"):
        load_streaming_dataset(tmp_path / "coco")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no data to stream"):
        load_streaming_dataset(tmp_path / "empty")
