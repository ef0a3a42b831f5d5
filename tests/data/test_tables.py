import io
import json
import logging
import math

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drmm_hf.data import coco_ground_truth, decode_image, load_detection_dataset, objects_dataset
from drmm_hf.evaluation import evaluate_coco

WIDTH, HEIGHT = 64, 48
NAMES = ["mask", "glove", "gown"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of `datasets`, so that nothing is left in the real one."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def png(seed=0, size=(WIDTH, HEIGHT)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def rows():
    """Three images as in cppe-5; the second has no boxes; the ids of images and boxes are not in order."""
    boxes = [[[1.0, 2.0, 10.0, 12.0], [5.0, 5.0, 30.0, 30.0]], [], [[0.5, 0.25, 20.0, 30.0]]]
    return {
        "image_id": [30, 7, 12],
        "image": [{"bytes": png(index), "path": f"{index}.png"} for index in range(3)],
        "width": [WIDTH] * 3,
        "height": [HEIGHT] * 3,
        "objects": [
            {"id": ids, "area": areas, "bbox": box, "category": category}
            for ids, areas, box, category in zip(
                [[5, 3], [], [4]], [[60, 900], [], [600]], boxes, [[2, 0], [], [1]], strict=True
            )
        ],
    }


def features(category=None):
    return datasets.Features(
        {
            "image_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "area": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(category or datasets.ClassLabel(names=NAMES)),
            },
        }
    )


def hub(data=None, category=None):
    return datasets.Dataset.from_dict(data or rows(), features=features(category))


def untyped(data, image_feature=True):
    """The types that `datasets` infers."""
    dataset = datasets.Dataset.from_dict(data)
    return dataset.cast_column("image", datasets.Image()) if image_feature else dataset


def assert_as_written(data, names=NAMES):
    assert len(data) == 3
    assert data.category_ids == [0, 1, 2]
    assert data.id2label == dict(enumerate(names))
    first, second, third = data.dataset
    assert [first["image_id"], second["image_id"], third["image_id"]] == [30, 7, 12]
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    assert first["objects"] == {
        "id": [5, 3],
        "bbox": [[1, 2, 10, 12], [5, 5, 30, 30]],
        "category": [2, 0],
        "area": [60, 900],
        "iscrowd": [0, 0],
    }
    assert second["objects"]["bbox"] == []
    assert third["objects"]["category"] == [1]
    original = np.asarray(PIL.Image.open(io.BytesIO(png(2))))
    np.testing.assert_array_equal(np.asarray(decode_image(third)), original)
    assert (data.report.images, data.report.boxes, data.report.boxless_images) == (3, 3, 1)
    results = [
        {"image_id": row["image_id"], "category_id": data.category_ids[label], "bbox": bbox, "score": 0.9}
        for row in data.dataset
        for bbox, label in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
    ]
    assert evaluate_coco(data.annotations_path, results)["AP"] == pytest.approx(1)


def test_rows_and_ground_truth_are_those_of_a_coco_folder(tmp_path, cache):
    data = objects_dataset(hub(), name="owner/set (train)")
    assert_as_written(data)
    truth = coco_ground_truth(data)
    assert truth["annotations"][2] == {
        **{"id": 4, "image_id": 12, "category_id": 1},
        **{"bbox": [0.5, 0.25, 20, 30], "area": 600, "iscrowd": 0},
    }
    assert data.annotations_path.parent == data.images_dir == cache / "drmm_hf"
    assert data.annotations_path.name.startswith("set-train-")
    assert json.loads(data.annotations_path.read_text()) == truth
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    (tmp_path / "coco" / "images").mkdir()
    for image in truth["images"]:
        (tmp_path / "coco" / "images" / image["file_name"]).touch()
    folder = load_detection_dataset(tmp_path / "coco")
    assert data.dataset.features == folder.dataset.features
    for row, other in zip(data.dataset, folder.dataset, strict=True):
        assert {**row, "image": None} == {**other, "image": None}


def test_ground_truth_is_written_once(cache):
    path = objects_dataset(hub()).annotations_path
    before = path.stat().st_mtime_ns
    assert objects_dataset(hub()).annotations_path == path
    assert path.stat().st_mtime_ns == before
    changed = rows()
    changed["objects"][2]["bbox"] = [[0.5, 0.25, 20.0, 31.0]]
    other = objects_dataset(hub(changed)).annotations_path
    assert other != path
    assert sorted((cache / "drmm_hf").iterdir()) == sorted([path, other])


def test_list_of_dicts():
    data, kind = rows(), features()
    data["objects"] = [
        [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)] for row in data["objects"]
    ]
    kind["objects"] = datasets.List({name: field.feature for name, field in kind["objects"].items()})
    assert_as_written(objects_dataset(datasets.Dataset.from_dict(data, features=kind)))


def test_categories_without_a_class_label():
    data = rows()
    data["objects"][2]["category"] = [4]
    result = objects_dataset(untyped(data))
    assert result.id2label == {index: f"class_{index}" for index in range(5)}
    named = objects_dataset(untyped(data), id2label=dict(enumerate("abcde")))
    assert (named.id2label[4], named.category_ids) == ("e", [0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"row 0, objects\[0\]\.category"):
        objects_dataset(untyped(data), id2label={0: "a", 1: "b"})
    for row in data["objects"]:
        row["category"] = [["7", "glove", "gown", "", "mask"][label] for label in row["category"]]
    texts = objects_dataset(untyped(data))
    assert texts.id2label == {0: "7", 1: "gown", 2: "mask"}
    assert texts.dataset[0]["objects"]["category"] == [1, 0]


def test_labels_of_an_existing_model():
    model = {"0": "gown", "1": "shield", "2": "mask", "3": "glove"}  # string keys, as in a json config
    data = objects_dataset(hub(), id2label=model)
    assert data.id2label == {0: "gown", 1: "shield", 2: "mask", 3: "glove"}
    assert data.category_ids == [2, -1, 0, 1]
    assert data.dataset[0]["objects"]["category"] == [0, 2]
    assert [category["name"] for category in coco_ground_truth(data)["categories"]] == NAMES
    with pytest.raises(ValueError, match=r"^mine: .*gown"):
        objects_dataset(hub(), id2label={0: "mask", 1: "glove"}, name="mine")


def test_optional_columns_may_be_missing(caplog):
    data = rows()
    data["image"][1]["bytes"] = png(size=(20, 10))
    objects = [{"bbox": row["bbox"], "category": row["category"]} for row in data["objects"]]
    with caplog.at_level(logging.WARNING):
        result = objects_dataset(untyped({"image": data["image"], "objects": objects}))
    assert caplog.records == []
    first, second, third = result.dataset
    assert [first["image_id"], second["image_id"], third["image_id"]] == [0, 1, 2]
    assert (first["width"], first["height"], second["width"], second["height"]) == (WIDTH, HEIGHT, 20, 10)
    assert first["objects"]["area"] == [120, 900]
    assert [*first["objects"]["id"], *third["objects"]["id"]] == [0, 1, 2]


@pytest.mark.parametrize("image_ids", [[3, 3, 4], ["a", "b", "c"], [1, None, 2]])
def test_image_ids_that_are_no_ids(image_ids, caplog):
    data = {**rows(), "image_id": image_ids}
    with caplog.at_level(logging.WARNING):
        result = objects_dataset(untyped(data), name="mine")
    assert result.dataset["image_id"][:] == [0, 1, 2]
    (record,) = caplog.records
    assert "mine: image_id" in record.getMessage()


def test_values_whose_meaning_is_plain_are_taken():
    data = {**rows(), "image_id": ["000030", "000007", "000012"], "width": [None, WIDTH, WIDTH]}
    for row in data["objects"]:
        row["category"] = [float(label) for label in row["category"]]
        row["iscrowd"] = [False] * len(row["id"])
    data["objects"][1] = None
    data["objects"][0]["iscrowd"] = [False, None]
    assert_as_written(objects_dataset(untyped(data)), names=["class_0", "class_1", "class_2"])
    data["objects"][0]["iscrowd"] = [False, True]
    result = objects_dataset(untyped(data))
    assert result.dataset[0]["objects"]["iscrowd"] == [0, 1]
    assert [record["iscrowd"] for record in coco_ground_truth(result)["annotations"]] == [0, 1, 0]


def test_shuffled_and_formatted():
    shuffled = hub().select([2, 0, 1]).with_format("numpy")
    result = objects_dataset(shuffled)
    assert result.dataset["image_id"][:] == [12, 30, 7]
    assert result.dataset[0]["image"]["bytes"] == png(2)
    assert result.dataset[1]["objects"]["category"] == [2, 0]
    sliced = objects_dataset(hub().select(range(1, 3)))
    assert sliced.dataset[1]["objects"]["bbox"] == [[0.5, 0.25, 20, 30]]
    assert sliced.dataset[1]["image"]["bytes"] == png(2)


def _split_dict():
    return datasets.DatasetDict(train=hub(), validation=hub().select([2, 0]))


def _save(splits, folder):
    splits.save_to_disk(folder)


def _parquet(splits, folder):
    (folder / "data").mkdir(parents=True)
    for split, part in splits.items():
        part.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def _converted(splits, folder):
    """As the Hub converts a data set to parquet."""
    for split, part in splits.items():
        (folder / "default" / split).mkdir(parents=True)
        part.to_parquet(folder / "default" / split / "0000.parquet")


@pytest.mark.parametrize("write", [_save, _parquet, _converted])
def test_folders_of_datasets(tmp_path, write):
    write(_split_dict(), tmp_path / "set")
    assert_as_written(load_detection_dataset(tmp_path / "set"))
    for split in ("val", "validation"):
        assert load_detection_dataset(tmp_path / "set", split).dataset["image_id"][:] == [12, 30]
    with pytest.raises(ValueError, match="dev"):
        load_detection_dataset(tmp_path / "set", "dev")


def test_one_saved_split(tmp_path):
    hub().save_to_disk(tmp_path / "set")
    assert_as_written(load_detection_dataset(tmp_path / "set"))


def test_parquet_of_other_writers(tmp_path):
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(rows()), tmp_path / "set" / "train.parquet")
    assert_as_written(load_detection_dataset(tmp_path / "set"), names=["class_0", "class_1", "class_2"])


@pytest.mark.parametrize("name", ["no-such-set-here", "nobody/no-such-set-here", "a/b/c", "./nowhere", "../nowhere"])
def test_names_of_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=name.split("/")[-1]) as error:
        load_detection_dataset(name)
    assert "\n" not in str(error.value)


def test_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", {"owner/set": _split_dict()}.__getitem__)
    assert_as_written(load_detection_dataset("owner/set"))
    assert len(load_detection_dataset("owner/set", "val")) == 2


def test_damaged_folders(tmp_path):
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="parquet: ") as error:
        load_detection_dataset(tmp_path / "parquet")
    assert "\n" not in str(error.value)
    hub().save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="saved: "):
        load_detection_dataset(tmp_path / "saved")


def _set(field, row, value):
    return lambda data: data["objects"][row].update({field: value})


def _all(field, value):
    return lambda data: [row.update({field: [value] * len(row["bbox"])}) for row in data["objects"]]


def _column(name, values):
    return lambda data: data.update({name: values})


def _relative(data):
    for row in data["objects"]:
        row["bbox"] = [[v / WIDTH for v in box] for box in row["bbox"]]


BAD_VALUES = [  # those of one field are tried in test_coco.py
    (lambda d: d.pop("image"), "image"),
    (lambda d: d.pop("objects"), "objects"),
    (_column("objects", [1, 2, 3]), "row 0, objects"),
    (_column("objects", [[], [], []]), "no boxes"),
    (lambda d: [row.pop("bbox") for row in d["objects"]], "bbox"),
    (lambda d: [row.pop("category") for row in d["objects"]], "category"),
    (_set("bbox", 2, [[1.0, 2.0, math.nan, 4.0]]), r"row 2, objects\[0\]\.bbox"),
    (_set("bbox", 0, [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, -4.0]]), r"row 0, objects\[1\]\.bbox"),
    (_set("bbox", 2, [None]), r"row 2, objects\[0\]\.bbox"),
    (_all("bbox", "1 2 3 4"), r"row 0, objects\[0\]\.bbox"),
    (_relative, "fractions"),
    (_set("category", 2, [-1]), r"row 2, objects\[0\]\.category"),
    (_set("category", 2, [10**9]), r"row 2, objects\[0\]\.category"),
    (_set("category", 2, [None]), r"row 2, objects\[0\]\.category"),
    (_set("category", 2, [1, 1]), "row 2, objects: `category`"),
    (_all("category", 0.5), r"row 0, objects\[0\]\.category"),
    (_all("category", " "), r"row 0, objects\[0\]\.category"),
    (_set("area", 2, [-1]), r"row 2, objects\[0\]\.area"),
    (_all("iscrowd", 2), r"row 0, objects\[0\]\.iscrowd"),
    (_column("width", [WIDTH, -1, WIDTH]), "row 1, width"),
]


@pytest.mark.parametrize(("change", "named"), BAD_VALUES)
def test_bad_values_are_named(change, named):
    data = rows()
    change(data)
    dataset = untyped(data, image_feature="image" in data)
    with pytest.raises(ValueError, match=f"^mine: .*{named}") as error:
        objects_dataset(dataset, name="mine")
    assert "\n" not in str(error.value)


def test_bad_images():
    data = rows()
    paths = datasets.Dataset.from_dict({**data, "image": ["a.png"] * 3})
    with pytest.raises(ValueError, match="image"):
        objects_dataset(paths)
    with pytest.raises(ValueError, match="image of row 1"):
        objects_dataset(hub({**data, "image": [data["image"][0], None, data["image"][2]]}))
    for bad, error in [
        ({"bytes": b"no image", "path": None}, ValueError),
        ({"bytes": None, "path": "/nowhere/a.png"}, FileNotFoundError),
    ]:
        changed = {**data, "image": [data["image"][0], bad, data["image"][2]], "width": [None] * 3}
        with pytest.raises(error, match="row 1: "):
            objects_dataset(hub(changed))


def test_other_than_one_split():
    for wrong in (_split_dict(), hub().select([])):
        with pytest.raises(ValueError, match="mine"):
            objects_dataset(wrong, name="mine")
