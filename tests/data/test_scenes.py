import json
from collections import Counter

import numpy as np
import pytest

from drmm_hf.data import decode_image, generate_scenes, load_detection_dataset
from drmm_hf.data.scene_rendering import (
    CATEGORIES,
    MAX_OBJECTS,
    MIN_VISIBLE,
    SUPERSAMPLING,
    outline,
    rasterize,
    render_scene,
)


def scene(index, mean_objects=4.2):
    rng = np.random.default_rng([5, index])
    return render_scene(rng, 240, 320, min_size=12, max_size=150, mean_objects=mean_objects)


@pytest.fixture(scope="module")
def scenes():
    """120 scenes of 240x320."""
    return [scene(i) for i in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    options = {"num_train": 12, "num_val": 4, "image_size": (96, 128)}
    return generate_scenes(tmp_path_factory.mktemp("scenes"), seed=3, **options)


def test_hidden_objects_are_left_out(scenes):
    items = [item for scene in scenes for item in scene.objects]
    assert len(items) > 200
    shares = np.array([item.visible for item in items])
    assert shares.min() >= MIN_VISIBLE
    assert shares.max() == 1
    assert all(scene.objects[-1].visible == 1 for scene in scenes if scene.objects), "nothing is nearer than the last"
    assert 0.03 < np.mean(shares < 0.9) < 0.5  # there is occlusion
    for item in items:
        assert 0 <= item.box[0] < item.box[2] <= 320
        assert 0 <= item.box[1] < item.box[3] <= 240


def test_variety(scenes):
    counts = [len(scene.objects) for scene in scenes]
    assert max(counts) <= MAX_OBJECTS
    assert max(counts) >= 8
    assert 2.5 < np.mean(counts) < 5
    assert 2 <= counts.count(0) <= 20
    names = Counter(item.name for scene in scenes for item in scene.objects)
    assert set(names) == set(CATEGORIES)
    sides = np.array([max(b[2] - b[0], b[3] - b[1]) for s in scenes for b in (item.box for item in s.objects)])
    assert sides.min() < 16
    assert sides.max() > 110
    assert sides.max() <= 151


@pytest.mark.parametrize("name", list(CATEGORIES))
@pytest.mark.parametrize("size", [12.0, 40.3, 150.0])
def test_shapes_have_the_asked_size_and_place(name, size):
    shape = rasterize(outline(name, np.random.default_rng(1)), size, (160.25, 110.75), 240, 320)
    x1, y1, x2, y2 = shape.box
    assert max(x2 - x1, y2 - y1) == pytest.approx(size, abs=2 / SUPERSAMPLING)
    assert (x1 + x2) / 2 == pytest.approx(160.25, abs=1)
    assert (y1 + y2) / 2 == pytest.approx(110.75, abs=1)
    assert_tight(shape)


def assert_tight(shape):
    touched = np.zeros((240, 320), dtype=bool)
    touched[shape.place] = shape.alpha > 0
    rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
    np.testing.assert_allclose(shape.box, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), atol=0.5)


@pytest.mark.parametrize("center", [(5.0, 3.0), (316.5, 238.0)])
def test_what_is_outside_of_the_image_is_cut_off(center):
    shape = rasterize(outline("disc", np.random.default_rng(1)), 60.0, center, 240, 320)
    assert_tight(shape)
    assert shape.box[:2] == (0, 0) if center[0] < 160 else shape.box[2:] == (320, 240)


def test_a_ring_has_a_hole_and_a_disc_has_none():
    for seed in range(5):
        for name, center in (("disc", 1.0), ("ring", 0.0)):
            shape = rasterize(outline(name, np.random.default_rng(seed)), 60.0, (50.0, 50.0), 240, 320)
            assert shape.alpha[50 - shape.place[0].start, 50 - shape.place[1].start] == center


def test_writes_a_coco_folder(folder):
    for split, count in (("train", 12), ("val", 4)):
        data = load_detection_dataset(folder, split)
        assert len(data) == count
        assert data.category_ids == [1, 3, 4, 7, 9, 12, 18]
        assert data.label2id == {name: label for label, name in enumerate(CATEGORIES)}
        assert data.report.changed_boxes == 0
        assert decode_image(data.dataset[0]).size == (128, 96)
    records = json.loads((folder / "annotations" / "instances_train.json").read_bytes())["annotations"]
    assert all(0 < record["area"] <= record["bbox"][2] * record["bbox"][3] for record in records)


def test_some_of_the_classes(tmp_path):
    options = {"num_train": 12, "num_val": 1, "image_size": (96, 128), "classes": ["star", "ring"]}
    data = load_detection_dataset(generate_scenes(tmp_path, **options), "train")
    assert list(data.label2id) == ["ring", "star"]
    assert data.category_ids == [3, 12]
    assert {label for row in data.dataset for label in row["objects"]["category"]} == {0, 1}
    with pytest.raises(FileExistsError):
        generate_scenes(tmp_path, **{**options, "classes": ["star"]})


def test_scenes_are_of_the_seed_and_not_of_their_number(folder, tmp_path):
    options = {"num_train": 12, "num_val": 2, "image_size": (96, 128)}
    again, other = (generate_scenes(tmp_path / str(seed), seed=seed, **options) for seed in (3, 4))
    pictures = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert len(set(pictures.values())) == len(pictures) == 16
    for path in (again / "images").iterdir():
        assert path.read_bytes() == pictures[path.name]
        assert path.read_bytes() != (other / "images" / path.name).read_bytes()
    train = ["annotations", "instances_train.json"]
    first, second = (json.loads(root.joinpath(*train).read_bytes()) for root in (folder, again))
    assert first["annotations"] == second["annotations"]


def test_does_not_touch_what_is_there(tmp_path):
    root = generate_scenes(tmp_path, num_train=2, num_val=1)
    stamps = {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    generate_scenes(tmp_path, num_train=2, num_val=1)
    assert stamps == {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    with pytest.raises(FileExistsError, match=r"instances_train\.json"):
        generate_scenes(tmp_path, num_train=3, num_val=1)
    (root / "annotations" / "instances_val.json").unlink()  # an interrupted run is simply repeated
    generate_scenes(tmp_path, num_train=2, num_val=1)
    assert len(load_detection_dataset(root, "val")) == 1
    (root / "annotations" / "instances_val.json").write_text('{"images": []}')
    with pytest.raises(FileExistsError, match=r"instances_val\.json"):
        generate_scenes(tmp_path, num_train=2, num_val=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_train", 0), ("num_val", 1.5), ("seed", -1), ("image_size", (32, 320)), ("max_object_size", 500)),
        *(("min_object_size", 1), ("mean_objects", 0.5), ("classes", ["cell"]), ("classes", [])),
    ],
)
def test_bad_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        generate_scenes(tmp_path / "new", **{name: value})
    assert not (tmp_path / "new").exists()


def test_the_scenes_of_a_seed_stay_the_same():
    """Published numbers are of trainings on them."""
    scene = render_scene(np.random.default_rng([0, 0, 0]), 240, 320, min_size=12, max_size=150, mean_objects=4.2)
    assert [item.name for item in scene.objects] == ["disc", "cross", "rhombus", "rhombus"]
    assert [item.box for item in scene.objects] == [
        (253.5, 212.5, 267.0, 225.5),
        (0.0, 167.0, 75.5, 240.0),
        (123.5, 0.0, 148.5, 20.5),
        (300.0, 214.5, 320.0, 240.0),
    ]
    assert scene.image.mean() == pytest.approx(97.94, abs=0.1)


def test_the_mean_number_of_objects_can_be_raised(scenes):
    few = np.mean([len(s.objects) for s in scenes[:60]])
    many = np.mean([len(scene(i, mean_objects=20.0).objects) for i in range(60)])
    assert few < 4.5
    assert many > 6
