import json
from collections import Counter

import numpy as np
import pytest

from drmm_hf.data import decode_image, generate_scenes, load_detection_dataset
from drmm_hf.data.scene_rendering import MAX_OBJECTS, MIN_VISIBLE, render_scene
from drmm_hf.data.scene_shapes import CATEGORIES, SUPERSAMPLING, outline, rasterize


def scene(index, mean_objects=4.2):
    rng = np.random.default_rng([5, index])
    return render_scene(rng, 240, 320, min_size=12, max_size=150, mean_objects=mean_objects)


@pytest.fixture(scope="module")
def scenes():
    """120 scenes of 240x320."""
    return [scene(i) for i in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_scenes(tmp_path_factory.mktemp("scenes"), num_train=30, num_val=10, seed=3)


def test_boxes_are_tight(scenes):
    objects = [item for scene in scenes for item in scene.objects]
    assert len(objects) > 200
    for item in objects:
        rows, columns = np.flatnonzero(item.mask.any(axis=1)), np.flatnonzero(item.mask.any(axis=0))
        drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(item.box, drawn, atol=1.0)
        assert 0 <= item.box[0] < item.box[2] <= 320
        assert 0 <= item.box[1] < item.box[3] <= 240


def test_objects_are_drawn_where_the_masks_are():
    """Drawing an object changes most pixels of its mask and none outside its box."""
    from drmm_hf.data import scene_rendering as rendering

    changed_inside = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        kept = rendering._drop_covered(rendering._place_objects(rng, 240, 320, 12, 150, 4.2), 240, 320)
        background = rendering._background(rng, 240, 320)
        canvas = background.copy()
        touched = np.zeros((240, 320), dtype=bool)
        for item, patch in kept:
            before = canvas.copy()
            rendering._paint(canvas, patch, rng)
            difference = np.abs(canvas - before).max(axis=2)
            changed_inside.append((difference[item.mask] > 8).mean())
            x1, y1, x2, y2 = item.box
            allowed = np.zeros_like(touched)
            allowed[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
            assert (difference[~allowed] == 0).all()
            touched |= allowed
        assert (canvas[~touched] == background[~touched]).all()
    assert np.mean(changed_inside) > 0.9


def test_hidden_objects_are_left_out(scenes):
    shares = []
    for scene in scenes:
        for index, item in enumerate(scene.objects):
            nearer = np.zeros_like(item.mask)
            for other in scene.objects[index + 1 :]:
                nearer |= other.mask
            share = (item.mask & ~nearer).sum() / item.mask.sum()
            assert share == pytest.approx(item.visible)
            shares.append(share)
    assert min(shares) >= MIN_VISIBLE
    assert 0.03 < np.mean(np.array(shares) < 0.9) < 0.5  # there is occlusion


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
    patch = rasterize(outline(name, np.random.default_rng(1)), size, (100.25, 70.75))
    height, width = patch.alpha.shape
    x1, y1, x2, y2 = patch.box((slice(0, height), slice(0, width)))
    assert max(x2 - x1, y2 - y1) == pytest.approx(size, abs=2 / SUPERSAMPLING)
    assert (x1 + x2) / 2 == pytest.approx(100.25, abs=1)
    assert (y1 + y2) / 2 == pytest.approx(70.75, abs=1)
    assert patch.left < x1 < x2 < patch.left + width
    assert patch.top < y1 < y2 < patch.top + height


def test_a_ring_has_a_hole_and_a_disc_has_none():
    for seed in range(5):
        for name, center in (("disc", 1.0), ("ring", 0.0)):
            patch = rasterize(outline(name, np.random.default_rng(seed)), 60.0, (50.0, 50.0))
            assert patch.alpha[50 - patch.top, 50 - patch.left] == center


def test_unknown_shape():
    with pytest.raises(ValueError, match="'blob' is no class"):
        outline("blob", np.random.default_rng(0))


def test_writes_a_coco_folder(folder):
    for split, count in (("train", 30), ("val", 10)):
        data = load_detection_dataset(folder, split)
        assert len(data) == count
        assert data.category_ids == [1, 3, 4, 7, 9, 12, 18]
        assert data.label2id == {name: label for label, name in enumerate(CATEGORIES)}
        assert data.report.changed_boxes == 0
        assert decode_image(data.dataset[0]).size == (320, 240)
    records = json.loads((folder / "annotations" / "instances_train.json").read_bytes())["annotations"]
    assert all(0 < record["area"] <= record["bbox"][2] * record["bbox"][3] for record in records)


def test_same_seed_same_bytes(folder, tmp_path):
    again = generate_scenes(tmp_path / "again", num_train=30, num_val=10, seed=3)
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.*"))
    assert len(files) == 42
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes()


def test_scenes_do_not_depend_on_the_number_of_images(folder, tmp_path):
    fewer = generate_scenes(tmp_path / "fewer", num_train=2, num_val=1, seed=3)
    other = generate_scenes(tmp_path / "other", num_train=2, num_val=1, seed=4)
    for name in ("scene_train_000001.jpg", "scene_val_000000.jpg"):
        content = (folder / "images" / name).read_bytes()
        assert (fewer / "images" / name).read_bytes() == content
        assert (other / "images" / name).read_bytes() != content
    first, second = (folder / "images" / f"scene_{split}_000000.jpg" for split in ("train", "val"))
    assert first.read_bytes() != second.read_bytes()


def test_size_and_format(tmp_path):
    root = generate_scenes(tmp_path, num_train=3, num_val=1, image_size=(96, 64), image_format="png")
    data = load_detection_dataset(root)
    assert decode_image(data.dataset[2]).size == (64, 96)
    assert data.dataset[2]["image"]["path"].endswith(".png")


def test_does_not_touch_what_is_there(tmp_path):
    root = generate_scenes(tmp_path, num_train=2, num_val=1)
    stamps = {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    generate_scenes(tmp_path, num_train=2, num_val=1)
    assert stamps == {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    with pytest.raises(FileExistsError, match=r"instances_train\.json: already exists.*overwrite=True"):
        generate_scenes(tmp_path, num_train=3, num_val=1)
    generate_scenes(tmp_path, num_train=3, num_val=1, overwrite=True)
    assert len(load_detection_dataset(root)) == 3
    (root / "annotations" / "instances_val.json").unlink()  # an interrupted run is simply repeated
    generate_scenes(tmp_path, num_train=3, num_val=1)
    assert len(load_detection_dataset(root, "val")) == 1
    (root / "annotations" / "instances_val.json").write_text('{"images": []}')
    with pytest.raises(FileExistsError, match=r"instances_val\.json"):
        generate_scenes(tmp_path, num_train=3, num_val=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_train": 0}, "num_train=0: must be an integer of at least 1"),
        ({"num_val": 1.5}, r"num_val=1\.5"),
        ({"seed": -1}, "seed=-1"),
        ({"image_size": (32, 320)}, r"image_size=\(32, 320\).*at least 64"),
        ({"max_object_size": 500}, r"max_object_size=500\.0.*<= 240"),
        ({"min_object_size": 1}, r"min_object_size=1\.0"),
        ({"mean_objects": 0.5}, r"mean_objects=0\.5: must be at least 1"),
        ({"image_format": "gif"}, "image_format='gif': must be 'jpg' or 'png'"),
    ],
)
def test_bad_arguments(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        generate_scenes(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_mean_number_of_objects_can_be_raised(scenes):
    few = np.mean([len(s.objects) for s in scenes[:60]])
    many = np.mean([len(scene(i, mean_objects=20.0).objects) for i in range(60)])
    assert few < 4.5
    assert many > 6
