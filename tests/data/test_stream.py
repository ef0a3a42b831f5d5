import io
import itertools

import datasets
import fsspec
import numpy as np
import PIL.Image
import pytest
from torch.utils.data import DataLoader

from drmm_hf.data import decode_image, load_streaming_dataset, objects_dataset
from drmm_hf.data.stream import StreamingDetectionDataset
from shards import write_tar

WIDTH, HEIGHT = 64, 48
NAMES = ["mask", "glove", "gown"]
ID2LABEL = dict(enumerate(NAMES))
BOXES = [[1.0, 2.0, 10.0, 12.0], [50.0, 5.0, 30.0, 30.0], [5.0, 5.0, 0.0, 4.0], [70.0, 5.0, 3.0, 3.0]]
CATEGORIES = [2, 0, 1, 1]


def encoded(index, format="PNG"):
    pixels = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
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
        for index, samples in enumerate(shards):
            files = {name: content for sample in samples for name, content in sample.items()}
            write_tar(tmp_path / f"tars/train-{index:05d}.tar", files)
        return tmp_path / "tars"

    return make


def tar_sample(index, **changes):
    record = {key: value for key, value in row(index).items() if key != "image"}
    return {f"{index:06d}.jpg": encoded(index, "JPEG"), f"{index:06d}.json": {**record, **changes}}


def shards_of(count, size=4):
    return [[row(10 * shard + index) for index in range(size)] for shard in range(count)]


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
def test_boxes_are_cleaned_and_crowd_is_kept(kind, parquet, tars):
    folder = parquet([row(3)]) if kind == "parquet" else tars([tar_sample(3)])
    (only,) = load_streaming_dataset(folder, "train", id2label=ID2LABEL)
    assert only["objects"]["bbox"] == [[1, 2, 10, 12], [50, 5, 14, 30]]
    assert (only["objects"]["category"], only["objects"]["iscrowd"]) == ([2, 0], [0, 1])


def test_an_imagefolder_that_is_not_on_the_disk(parquet):
    """Its rows have addresses of files, such as hf://..., in place of the bytes."""
    place = "memory://pictures/3.png"
    with fsspec.open(place, "wb") as file:
        file.write(encoded(3))
    rows = datasets.IterableDataset.from_generator(lambda: iter([row(3, image={"bytes": None, "path": place})]))
    (only,) = StreamingDetectionDataset(rows, ID2LABEL, "pictures")
    assert decode_image(only).tobytes() == PIL.Image.open(io.BytesIO(encoded(3))).tobytes()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_have_together_every_image_once(processes, parquet):
    data = load_streaming_dataset(parquet(*shards_of(2, size=6)))
    share = {"buffer_size": 4, "num_processes": processes}
    parts = [ids(data.epoch(0, seed=1, **share, process_index=rank)) for rank in range(processes)]
    assert sorted(itertools.chain(*parts)) == sorted([*range(6), *range(10, 16)])
    assert {len(part) for part in parts} == {12 // processes}
    own = [{image_id // 10 for image_id in part} for part in parts]
    assert own[0].isdisjoint(own[1]) == (processes == 2), "of as many shards as processes each reads its own"


@pytest.mark.parametrize("buffer_size", [1, 4, 1000])
def test_the_order_follows_seed_and_epoch(parquet, buffer_size):
    data = load_streaming_dataset(parquet(*shards_of(3)))
    first, again, other_epoch, other_seed = (
        ids(data.epoch(number, seed, buffer_size=buffer_size)) for number, seed in ((0, 1), (0, 1), (1, 1), (0, 2))
    )
    assert first == again
    assert first != other_epoch
    assert first != other_seed
    assert sorted(first) == sorted(other_epoch) == sorted(other_seed)


def test_the_end_of_an_epoch_waits_for_nothing(parquet, monkeypatch):
    data = load_streaming_dataset(parquet(*shards_of(2)))
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"sleeps {seconds} s"))
    assert len(ids(data.epoch(0, seed=1))) == 8


@pytest.mark.parametrize("empty", [0, 1])
@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_an_empty_shard_ends_nothing(empty, kind, parquet, tars):
    shards = [
        [(row if kind == "parquet" else tar_sample)(10 * shard + index) for index in range(3)] for shard in (0, 1)
    ]
    shards.insert(empty, [])
    data = load_streaming_dataset({"parquet": parquet, "tars": tars}[kind](*shards), id2label=ID2LABEL)
    assert sorted(ids(data.epoch(0, seed=1))) == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("shards", [1, 3])
def test_two_workers_read_every_image_once(shards, tars):
    keys = [[10 * shard + index for index in range(4)] for shard in range(shards)]
    data = load_streaming_dataset(tars(*[list(map(tar_sample, shard)) for shard in keys]), id2label=ID2LABEL)
    epoch = DataLoader(data, batch_size=3, num_workers=2, collate_fn=ids)
    assert sorted(itertools.chain(*epoch)) == list(itertools.chain(*keys))


def test_missing_sizes_and_lists_of_dicts(tars):
    record = {"objects": [{"bbox": BOXES[0], "category": "glove"}, {"bbox": BOXES[1], "category": "mask"}]}
    empty = {"objects": []}
    samples = [
        {"a/000005.photo.png": encoded(5), "a/000005.json": record, "a/000005.txt": b"passed over"},
        {"a/000006.json": empty, "a/000006.jpg": encoded(6, format="JPEG")},
    ]
    data = load_streaming_dataset(tars(samples), id2label=ID2LABEL)
    boxed, boxless = data
    assert (boxed["image_id"], boxed["width"], boxed["height"]) == (5, WIDTH, HEIGHT)
    assert boxed["objects"]["category"] == [1, 0]
    assert boxed["objects"]["area"] == [120, 14 * 30]
    assert boxless["objects"] == {"id": [], "bbox": [], "category": [], "area": [], "iscrowd": []}
    assert boxless["image_id"] == 6


def test_the_labels_of_a_given_model_are_used(parquet):
    folder = parquet([row(1)])
    data = load_streaming_dataset(folder, id2label={0: "gown", 1: "hat", 2: "mask", 3: "glove"})
    (only,) = data
    assert decode_image(only).size == (WIDTH, HEIGHT)
    assert only["objects"]["category"] == [0, 2]
    assert data.id2label[1] == "hat"
    with pytest.raises(ValueError, match="gown"):
        load_streaming_dataset(folder, id2label={0: "mask", 1: "glove"})


def test_classes_must_be_known(parquet):
    folder = parquet([row(1)], category=datasets.Value("int64"))
    with pytest.raises(ValueError, match=r"parquet \(train\): objects.category .*id2label"):
        load_streaming_dataset(folder)
    assert next(iter(load_streaming_dataset(folder, id2label=ID2LABEL)))["objects"]["category"] == [2, 0]
    with pytest.raises(ValueError, match=r"image 1, objects\[0\]\.category"):
        next(iter(load_streaming_dataset(folder, id2label={0: "mask", 1: "glove"})))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objects": {"bbox": [[1, 2, 3]], "category": [0]}}, r"image 1, objects\[0\]\.bbox"),
        ({"objects": {"bbox": [[1, 2, 3, 4]], "category": ["hat"]}}, "image 1: .*hat"),
        ({"objects": "none"}, "image 1, objects"),
        ({"width": 0}, "image 1, width"),
        ({"height": "48"}, "image 1, height"),
    ],
)
def test_bad_rows_are_one_error_that_names_the_image(changes, named, tars):
    data = load_streaming_dataset(tars([tar_sample(1, **changes)]), id2label=ID2LABEL)
    with pytest.raises(ValueError, match=r"tars \(train\).*" + named):
        next(iter(data))


@pytest.mark.parametrize(("box", "named"), [([0.1, 0.2, 0.5, 0.5], "fractions"), ([40, 30, 60, 45], "corners")])
def test_fractions_and_corners_are_refused(parquet, box, named):
    folder = parquet([row(index, objects={"bbox": [box], "category": [0], "iscrowd": [0]}) for index in range(3)])
    with pytest.raises(ValueError, match=rf"parquet \(train\): .*{named}"):
        list(load_streaming_dataset(folder))


def test_a_stream_without_the_columns_is_refused(parquet):
    folder = parquet([row(1)], objects="annotations")
    with pytest.raises(ValueError, match=r"parquet \(train\): .*objects"):
        load_streaming_dataset(folder)
    with pytest.raises(ValueError, match="test"):
        load_streaming_dataset(folder, "test")


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        ({"1.json": {"objects": []}}, "train-00000.tar: 1 "),
        ({"1.jpg": b"", "2.txt": b""}, "train-00000.tar: 1 "),
        ({"1.jpg": b"", "1.json": b"{"}, "train-00000.tar: 1.json"),
        ({"1.jpg": b"", "1.json": []}, "train-00000.tar: 1.json"),
        ({"1.jpg": b"", "1.json": {}}, "objects"),
        ({"1.txt": b""}, "no rows"),
    ],
)
def test_incomplete_samples_are_refused(sample, named, tars):
    with pytest.raises(ValueError, match=named):
        load_streaming_dataset(tars([sample]), id2label=ID2LABEL)


def test_a_cut_off_shard_is_refused(parquet, tars):
    for folder in (parquet(*shards_of(2)), tars([tar_sample(1)], [tar_sample(2)])):
        file = sorted(folder.iterdir())[1]
        file.write_bytes(file.read_bytes()[:700])
        data = load_streaming_dataset(folder, id2label=ID2LABEL)
        with pytest.raises(ValueError, match=r"(parquet \(train\)|train-00001.tar): "):
            list(data)


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        load_streaming_dataset("nobody/nothing")
    for name in ("coco/annotations", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("coco", "empty"):
        with pytest.raises(ValueError, match=name):
            load_streaming_dataset(tmp_path / name)
