"""The check of the data before a training."""

import json
import re
import shutil

import PIL.Image
import pytest

import annotation_folders as tools
from drmm_hf.cli import main
from drmm_hf.data import load_detection_dataset
from drmm_hf.data.check import check_data, format_check

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture
def folder(tmp_path):
    tools.coco_folder(tmp_path / "set")
    return tmp_path / "set"


def _change(folder, change, split="train"):
    file = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _check(folder, **options):
    train = load_detection_dataset(folder, "train")
    val = load_detection_dataset(folder, "val", id2label=train.id2label)
    return check_data(train, val, **{"size": SIZE, "num_proposals": 16, **options})


def test_the_counts(folder):
    report = _check(folder)
    assert report["classes"] == {"cat": {"train": 3, "val": 2}, "dog": {"train": 9, "val": 4}}
    train = report["splits"]["train"]
    assert (train["images"], train["boxes"], train["most_objects"], train["opened_images"]) == (6, 12, 2, 6)
    sides = [min(box[2:]) for _, boxes in tools.TRAIN for _, box in boxes]
    assert report["scale"]["median_shorter_side"] == pytest.approx(sorted(sides)[5], abs=6)
    assert report["scale"]["boxes_below"] == 0
    assert (report["warnings"], report["problem"], report["duplicates"]) == ([], None, [])
    assert json.loads(json.dumps(report)) == report
    assert len(format_check(report).splitlines()) == 4


@pytest.mark.parametrize(
    "size",
    [{"shortest_edge": 32, "longest_edge": 96}, {"shortest_edge": 64, "longest_edge": 48}, {"height": 32, "width": 64}],
)
def test_sides_are_those_of_the_network_input(folder, size):
    """The pictures are 96x64, so that every size halves them at least in one direction."""
    full, half = _check(folder)["scale"], _check(folder, size=size)["scale"]
    assert half["median_shorter_side"] == pytest.approx(full["median_shorter_side"] / 2, abs=0.1)


def _all_crowd(content):
    for record in content["annotations"]:
        record["iscrowd"] = 1


def _tiny(content):
    for record in content["annotations"]:
        record["bbox"][2:] = [1.5, 30]


def _none(content):
    content["annotations"] = []


@pytest.mark.parametrize(("change", "named"), [(_all_crowd, "iscrowd"), (_tiny, "--image-size"), (_none, "no boxes")])
def test_what_cannot_train_is_one_line(folder, change, named, capsys):
    _change(folder, change)
    assert named in _check(folder)["problem"]
    assert main(["check-data", str(folder), "--image-size", "64"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert named in line


def _stick_out(content):
    for record in content["annotations"][:8]:
        record["bbox"] = [80, 48, 40, 40]


def _small(content):
    for record in content["annotations"]:
        record["bbox"][2:] = [5.0, 9.0]


def _half_crowd(content):
    for record in content["annotations"][:8]:
        record["iscrowd"] = 1


def _many_crowd(content):
    _all_crowd(content)
    content["annotations"] += [{**record, "id": 1000 + record["id"]} for record in content["annotations"]]


def _many(content):
    record = content["annotations"][0]
    content["annotations"] += [{**record, "id": 1000 + number} for number in range(30)]


def _another_class(content):
    content["categories"].append({"id": 9, "name": "yak"})


def _some_tiny(content):
    for record in content["annotations"][:3]:
        record["bbox"][2:] = [1.0, 1.0]


def _percent(content):
    content["annotations"] = [
        {**record, "id": number, "bbox": [value / 3 for value in record["bbox"]]}
        for number, record in enumerate(content["annotations"] * 2)
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_percent, "percent"),
        (_small, "shorter than 5 px.*--image-size 128"),
        *((_stick_out, "corners"), (_half_crowd, "8 of 12 boxes are `iscrowd`"), (_many, "32 objects.*16 proposals")),
        *((_another_class, "yak"), (_some_tiny, "3 of 12 boxes are shorter than 2 px")),
    ],
)
def test_what_is_doubtful_is_a_warning_with_the_number(folder, change, named):
    _change(folder, change)
    (warning,) = _check(folder)["warnings"]
    assert re.search(named, warning)


@pytest.mark.parametrize("change", [_none, _all_crowd])
def test_a_validation_split_that_measures_nothing_is_a_warning(folder, change):
    _change(folder, change, "val")
    report = _check(folder)
    assert report["problem"] is None
    assert [warning for warning in report["warnings"] if warning.startswith("val:") and "-1" in warning]


def test_crowd_alone_is_nowhere_in_its_images(folder):
    _change(folder, _many_crowd)
    assert not any("quarter" in warning for warning in _check(folder)["warnings"])


def test_the_same_file_in_both_splits(folder):
    shutil.copy(folder / "images" / tools.TRAIN[2][0], folder / "images" / tools.VAL[0][0])
    report = _check(folder)
    assert report["duplicates"] == [[str(folder / "images" / name[0]) for name in (tools.TRAIN[2], tools.VAL[0])]]
    assert "1 images are in both splits" in report["warnings"][0]
    tools.saved(folder.parent / "rows")
    assert _check(folder.parent / "rows")["duplicates"] == []


def test_the_same_file_twice_in_a_split(folder):
    train = [folder / "images" / name for name, _ in tools.TRAIN]
    for name in (train[4], folder / "images" / tools.VAL[0][0]):
        shutil.copy(train[2], name)
    report = _check(folder)
    assert report["repeated"] == {"train": [[str(train[2]), str(train[4])]], "val": []}
    assert report["duplicates"] == [[str(train[2]), str(folder / "images" / tools.VAL[0][0])]]
    assert sum(train[4].name in warning for warning in report["warnings"]) == 1
    alone = check_data(load_detection_dataset(folder), size=SIZE)
    assert alone["repeated"] == {"train": report["repeated"]["train"]}


def test_files_that_cannot_be_read(folder):
    file = folder / "images" / tools.TRAIN[1][0]
    file.write_bytes(file.read_bytes()[:200])
    report = _check(folder)
    assert tools.TRAIN[1][0] in report["splits"]["train"]["unreadable_images"][0]
    assert tools.TRAIN[1][0] in report["warnings"][0]


@pytest.mark.parametrize(("orientation", "misfits"), [(3, 0), (6, 6)])
def test_exif_orientations_and_the_frame_of_the_annotations(folder, orientation, misfits):
    """The pictures are wide: where they are to be turned, boxes on the right fit the stored pixels alone."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name, _ in tools.TRAIN:
        image = PIL.Image.open(folder / "images" / name)
        image.save(folder / "images" / name, exif=exif)
    _change(folder, lambda content: [one.update(bbox=[70, 5, 20, 20]) for one in content["annotations"]])
    report = _check(folder)
    assert report["splits"]["train"]["turned_images"] == 6
    assert report["splits"]["train"]["misfit_images"] == misfits
    assert report["splits"]["val"]["turned_images"] == 0
    assert any("EXIF" in warning for warning in report["warnings"]) == (misfits > 0)


def test_the_command_names_splits_that_it_does_not_look_at(tmp_path, capsys):
    tools.coco_folder(tmp_path)
    assert main(["check-data", str(tmp_path)]) == 0
    assert "test" not in capsys.readouterr().out.replace(str(tmp_path), "")
    shutil.copy(tmp_path / "annotations/instances_val.json", tmp_path / "annotations/instances_test.json")
    assert main(["check-data", str(tmp_path)]) == 0
    assert "test" in capsys.readouterr().out.replace(str(tmp_path), "")
    assert main(["check-data", str(tmp_path), "--eval-split", "test"]) == 0
    assert "val" in capsys.readouterr().out.splitlines()[-1]


def test_the_command(tmp_path, capsys):
    tools.label_studio_coco(tmp_path / "set")
    assert main(["check-data", str(tmp_path / "set"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Label Studio" in printed
    report = json.loads((tmp_path / "out" / "data_report.json").read_text())
    assert [part["images"] for part in report["splits"].values()] == [5, 1]
    for bad in ("nowhere", str(tmp_path / "out")):
        assert main(["check-data", bad]) == 2
        assert bad in capsys.readouterr().err
