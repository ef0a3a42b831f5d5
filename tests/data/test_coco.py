import json
import logging
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from drmm_hf.data import decode_image, load_detection_dataset


def test_columns_and_labels(coco, write):
    data = load_detection_dataset(write(coco))
    assert len(data) == 3
    assert data.id2label == {0: "cat", 1: "owl", 2: "dog"}
    assert data.label2id == {"cat": 0, "owl": 1, "dog": 2}
    assert data.category_ids == [2, 4, 9]
    first, second, third = data.dataset
    assert [first["image_id"], second["image_id"], third["image_id"]] == [30, 7, 12]
    assert (first["width"], first["height"]) == (64, 48)
    assert first["objects"] == {
        "id": [3],
        "bbox": [[0.5, 0.25, 20.0, 30.0]],
        "category": [0],
        "area": [600.0],
        "iscrowd": [0],
    }
    assert second["objects"]["id"] == [5, 4]
    assert second["objects"]["category"] == [2, 0]
    assert second["objects"]["area"] == [60.5, 900.0]
    assert second["objects"]["iscrowd"] == [0, 1]
    assert third["objects"]["bbox"] == []
    assert data.report.images == 3
    assert (data.report.boxes, data.report.crowd, data.report.boxless_images) == (3, 1, 1)


def test_stores_absolute_paths_and_writes_nothing(coco, write, monkeypatch, tmp_path):
    coco["images"][1]["file_name"] = "day/b.jpg"
    root = write(coco)
    before = sorted(root.rglob("*"))
    monkeypatch.chdir(root.parent)
    data = load_detection_dataset(root.name)
    monkeypatch.chdir(tmp_path.parent)
    assert sorted(root.rglob("*")) == before
    assert data.dataset.cache_files == []
    assert data.dataset[0]["image"] == {"bytes": None, "path": str(root / "images" / "a.jpg")}
    assert isinstance(data.dataset.features["objects"]["category"].feature, datasets.ClassLabel)
    assert [decode_image(row).size for row in data.dataset] == [(64, 48)] * 3


def test_groups_annotations_as_a_plain_loop_does(write):
    rng = np.random.default_rng(0)
    coco = {
        "images": [{"id": 100 - i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(20)],
        "categories": [{"id": i * 3, "name": str(i)} for i in range(5)],
        "annotations": [
            {
                "id": int(index),
                "image_id": int(100 - rng.integers(0, 20)),
                "category_id": int(3 * rng.integers(0, 5)),
                "bbox": rng.uniform(1, 20, 4).round(2).tolist(),
                "area": float(index),
                "iscrowd": int(rng.random() < 0.2),
            }
            for index in rng.permutation(200)
        ],
    }
    data = load_detection_dataset(write(coco))
    for row in data.dataset:
        own = [a for a in coco["annotations"] if a["image_id"] == row["image_id"]]
        objects = row["objects"]
        assert objects["id"] == [a["id"] for a in own]
        assert [data.category_ids[label] for label in objects["category"]] == [a["category_id"] for a in own]
        assert objects["area"] == [a["area"] for a in own]
        assert objects["iscrowd"] == [a["iscrowd"] for a in own]
        np.testing.assert_allclose(np.reshape(objects["bbox"], (-1, 4)), [a["bbox"] for a in own], atol=1e-5)


@pytest.mark.parametrize(
    ("json_name", "images"),
    [
        ("instances_train", "images"),
        ("instances_train", "images/train"),
        ("instances_train", "train"),
        ("instances_train2017", "images/train2017"),
        ("instances_train2017", "train2017"),
        ("instances_train2017", "images"),
    ],
)
def test_finds_the_usual_layouts(coco, write, json_name, images):
    root = write(coco, json_name=json_name, images=images)
    (root / "train").mkdir(exist_ok=True)  # of what has the first images, and not, say, the output of a training
    data = load_detection_dataset(root, "train")
    assert data.annotations_path == root / "annotations" / f"{json_name}.json"
    assert data.images_dir == root / images


def test_explicit_files(coco, write, tmp_path):
    root = write(coco, json_name="mine", images="pictures")
    data = load_detection_dataset(root, annotations="annotations/mine.json", images="pictures")
    assert data.images_dir == root / "pictures"
    data = load_detection_dataset(tmp_path, annotations=root / "annotations" / "mine.json", images=root / "pictures")
    assert len(data) == 3


def test_labels_of_an_existing_model(coco, write):
    model = {"0": "dog", "1": "bird", "2": "owl", "3": "cat"}  # string keys, as in a json config
    data = load_detection_dataset(write(coco), id2label=model)
    assert data.id2label == {0: "dog", 1: "bird", 2: "owl", 3: "cat"}
    assert data.category_ids == [9, -1, 4, 2]
    assert data.dataset[1]["objects"]["category"] == [0, 3]
    assert data.dataset.features["objects"]["category"].feature.names == ["dog", "bird", "owl", "cat"]


def test_a_model_may_leave_labels_without_a_name(coco, write):
    model = dict(enumerate(["N/A", "dog", "N/A", "owl", "cat", "N/A"]))
    data = load_detection_dataset(write(coco), id2label=model)
    assert data.category_ids == [-1, 9, -1, 4, 2, -1]
    assert data.dataset[1]["objects"]["category"] == [1, 4]


@pytest.mark.parametrize(
    "id2label",
    [{0: "cat", 1: "bird"}, {0: "cat", 2: "owl", 3: "dog"}, {"a": "cat"}, {0: "cat", 1: "cat"}],
)
def test_labels_that_do_not_fit(coco, write, id2label):
    with pytest.raises(ValueError, match="id2label"):
        load_detection_dataset(write(coco), id2label=id2label)


def test_dirty_boxes_are_repaired_counted_and_logged_once(coco, write, caplog):
    boxes = [
        [-5, -5, 15, 15],  # clipped
        [60, 40, 20, 20],  # clipped
        [0, 0, 64.02, 48],  # rounding: clipped, not reported
        [10, 10, 0, 5],  # no area
        [10, 10, 5, 1e-5],  # no area
        [70, 10, 5, 5],  # outside
        [-8, 0, 8, 8],  # outside, touches the edge
        [1e29, 0, 5, 5],  # outside
    ]
    coco["annotations"] += [
        {"id": 100 + i, "image_id": 12, "category_id": 4, "bbox": box} for i, box in enumerate(boxes)
    ]
    with caplog.at_level(logging.WARNING):
        data = load_detection_dataset(write(coco))
    assert data.dataset[2]["objects"]["id"] == [100, 101, 102]
    assert data.dataset[2]["objects"]["bbox"] == [[0, 0, 10, 10], [60, 40, 4, 8], [0, 0, 64, 48]]
    assert data.dataset[2]["objects"]["area"] == [100, 32, 64 * 48]
    report = data.report
    assert (report.clipped_boxes, report.dropped_zero_area, report.dropped_outside) == (2, 2, 3)
    assert (report.boxes, report.crowd, report.boxless_images, report.changed_boxes) == (6, 1, 0, 7)
    (record,) = caplog.records
    assert "instances_train.json" in record.getMessage()


@pytest.mark.parametrize(("kept", "boxless", "warnings"), [(slice(3), 1, 0), (slice(2, 3), 3, 0), (slice(0), 3, 1)])
def test_images_without_boxes_to_train_on_are_counted(coco, write, caplog, kept, boxless, warnings):
    coco["annotations"] = coco["annotations"][kept]
    with caplog.at_level(logging.WARNING):
        data = load_detection_dataset(write(coco))
    assert (data.report.boxless_images, len(data)) == (boxless, 3)
    assert len(caplog.records) == warnings


BAD_VALUES = {
    "annotations[1].bbox": [
        *([1, 2, math.nan, 4], [1, math.inf, 3, 4], [1, 2, -3, 4], [1, 2, 3], [1, 2, 3, 4, 5], [10**40, 0, 5, 5]),
        *(["1", 2, 3, 4], [None, 2, 3, 4], {"x": 1}, "box", None),
    ],
    "annotations[1].image_id": [99, "seven", 7.5, None],
    "annotations[1].category_id": [1, [2], None],
    "annotations[1].id": [5, 2**70, True, None],
    "annotations[1].area": [-1, "big", 1e40],
    "annotations[1].iscrowd": [2, "0", "false", 0.5, math.nan, [0]],
    "images[2].id": [30, "30", "c", None],
    "images[2].width": [-1, 64.5, "64", True, 2**31],
    "images[2].height": [-48],
    "images[2].file_name": ["", 3, "c\0.jpg", None],
    "categories[2].id": [9, "9", None],
    "categories[1].name": ["dog"],
    "categories[2].name": [3, None],
}


@pytest.mark.parametrize(
    ("place", "value"), [(place, value) for place, values in BAD_VALUES.items() for value in values]
)
def test_bad_values_name_file_field_and_record(coco, write, place, value):
    root = write(coco)
    section, index, field = re.fullmatch(r"(\w+)\[(\d)\]\.(\w+)", place).groups()
    coco[section][int(index)][field] = value
    if value is None:
        del coco[section][int(index)][field]
    file = root / "annotations" / "instances_train.json"
    file.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {place}")) as error:
        load_detection_dataset(root)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [(section, value) for section in ("images", "annotations", "categories") for value in (None, {}, "list", [3])]
    + [("images", []), ("categories", [])],
)
def test_bad_sections_are_named(coco, write, field, value):
    root = write(coco)
    coco[field] = value
    if value is None:
        del coco[field]
    (root / "annotations" / "instances_train.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=rf"instances_train\.json: .*{field}"):
        load_detection_dataset(root)


def test_values_whose_meaning_is_plain_are_taken(coco, write):
    """Whole numbers as floats, ids as digits, flags as truth values, and sizes that only the image files have."""
    root = write(coco)
    expected = load_detection_dataset(root).dataset[:]
    del coco["images"][2]["width"], coco["images"][2]["height"]
    coco["images"][1] |= {"width": 0, "height": 0}
    for image in coco["images"]:
        image |= {"id": str(image["id"]), **{side: float(image[side]) for side in ("width", "height") if side in image}}
    for record in coco["annotations"]:
        record |= {
            "id": float(record["id"]),
            "image_id": str(record["image_id"]),
            "category_id": float(record["category_id"]),
            "iscrowd": float(record.get("iscrowd", 0)),
        }
    coco["annotations"][1]["iscrowd"] = None
    coco["annotations"][2]["iscrowd"] = True
    coco["categories"][0]["id"] = "9"
    (root / "annotations" / "instances_train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(coco).encode())
    assert load_detection_dataset(root).dataset[:] == expected


def test_annotations_need_no_ids(coco, write):
    for record in coco["annotations"]:
        del record["id"]
    assert [row["objects"]["id"] for row in load_detection_dataset(write(coco)).dataset] == [[1], [0, 2], []]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"images": [\n{"id": 1, "file_na', b'{"images": [}, "annotations": []}', b"\xff\xfe\xff\xfe\x00"),
        *(b"[" * 200_000, b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', b"[1, 2]", b'"text"'),
    ],
)
def test_files_that_are_not_coco(coco, write, content):
    root = write(coco)
    file = root / "annotations" / "instances_train.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: ")):
        load_detection_dataset(root)


def test_missing_files_are_named(coco, write, tmp_path):
    root = write(coco)
    with pytest.raises(ValueError, match=r"'dev'.*'train'"):
        load_detection_dataset(root, "dev")
    with pytest.raises(FileNotFoundError, match=r"mine\.json"):
        load_detection_dataset(root, annotations="mine.json")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_detection_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file"):
        load_detection_dataset(root / "annotations" / "instances_train.json")
    with pytest.raises(ValueError, match="split"):
        load_detection_dataset(root, "../x")
    (root / "images" / "a.jpg").rename(root / "images" / "a.JPEG")
    (root / "images" / "c.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images .*a\.jpg.*c\.jpg"):
        load_detection_dataset(root)
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match="images"):
        load_detection_dataset(root)


@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)])
def test_real_bccd(real_data: Path, split, images, boxes):
    data = load_detection_dataset(real_data / "bccd", split)
    assert (len(data), data.report.boxes, data.report.changed_boxes) == (images, boxes, 0)
    assert data.id2label == {0: "RBC", 1: "WBC", 2: "Platelets"}
    assert decode_image(data.dataset[0]).size == (640, 480)


@pytest.mark.parametrize(
    ("split", "images", "boxes", "crowd", "boxless"), [("train", 92, 829, 9, 1), ("val", 66, 560, 8, 2)]
)
def test_real_coco(real_data: Path, split, images, boxes, crowd, boxless):
    data = load_detection_dataset(real_data / "coco", split)
    report = data.report
    assert (len(data), report.boxes, report.crowd, report.boxless_images) == (images, boxes, crowd, boxless)
    assert len(data.id2label) == 80
    assert (data.category_ids[0], data.category_ids[-1]) == (1, 90)
    assert (data.id2label[11], data.category_ids[11]) == ("stop sign", 13)
    for row in data.dataset:
        assert decode_image(row).size == (row["width"], row["height"])


def test_real_coco_agrees_with_pycocotools(real_data: Path):
    coco_api = pytest.importorskip("pycocotools.coco")
    data = load_detection_dataset(real_data / "coco", "val")
    reference = coco_api.COCO(str(data.annotations_path))
    for row in data.dataset:
        records = reference.loadAnns(row["objects"]["id"])
        assert sorted(row["objects"]["id"]) == sorted(reference.getAnnIds(imgIds=[row["image_id"]]))
        for record, box, label in zip(records, row["objects"]["bbox"], row["objects"]["category"], strict=True):
            assert record["category_id"] == data.category_ids[label]
            assert record["bbox"] == pytest.approx(box, abs=0.02)
