"""Folders as the usual tools write them: all are read as they are."""

import json
import logging
import re
import shutil
import unicodedata

import datasets
import numpy as np
import pytest

import annotation_folders as tools
from drmm_hf.data import decode_image, load_detection_dataset
from drmm_hf.evaluation import evaluate_coco


@pytest.fixture(params=tools.FOLDERS)
def folder(request, tmp_path):
    tools.FOLDERS[request.param](tmp_path / "set")
    return tmp_path / "set"


def _boxes(dataset):
    """Of each picture, by its name: name of the class, and box."""
    found = {}
    for row in dataset.dataset:
        objects = row["objects"]
        names = [dataset.id2label[label] for label in objects["category"]]
        found[row["image"]["path"].rpartition("/")[2]] = list(zip(names, objects["bbox"], strict=True))
    return found


def test_every_tool_s_folder_gives_the_same_boxes(folder):
    train = load_detection_dataset(folder, "train")
    val = load_detection_dataset(folder, "val", id2label=train.id2label, validation_share=0.15)
    assert train.id2label == {0: "cat", 1: "dog"}
    rest = _boxes(load_detection_dataset(folder, "train", validation_share=0.15))
    assert {**rest, **_boxes(val)}.keys() >= {name for name, _ in tools.TRAIN}
    assert not rest.keys() & _boxes(val).keys()
    for name, boxes in _boxes(train).items():
        expected = dict(tools.TRAIN)[name]
        assert [label for label, _ in boxes] == [tools.CLASSES[label] for label, _ in expected]
        np.testing.assert_allclose([box for _, box in boxes], [box for _, box in expected], atol=1e-3)
    assert len(train) == len(tools.TRAIN)
    for row in (*train.dataset, *val.dataset):
        assert decode_image(row).size == (row["width"], row["height"]) == (tools.WIDTH, tools.HEIGHT)
    results = [
        {"image_id": row["image_id"], "category_id": val.category_ids[label], "bbox": box, "score": 0.9}
        for row in val.dataset
        for label, box in zip(row["objects"]["category"], row["objects"]["bbox"], strict=True)
    ]
    assert evaluate_coco(val.annotations_path, results)["AP"] == pytest.approx(1)


def test_holding_out_draws_no_bar_and_leaves_those_of_others(tmp_path, capfd):
    tools.cvat_coco(tmp_path)
    datasets.enable_progress_bars()  # conftest.py turns them off for every test
    load_detection_dataset(tmp_path, "val", validation_share=0.5)
    assert "%|" not in capfd.readouterr().err
    assert not datasets.utils.are_progress_bars_disabled()


def test_a_share_is_held_out_where_there_is_no_validation_split(tmp_path, caplog):
    tools.cvat_coco(tmp_path)
    with caplog.at_level(logging.WARNING):
        parts = {split: load_detection_dataset(tmp_path, split, validation_share=0.15) for split in ("train", "val")}
        held_out = [parts["val"], load_detection_dataset(tmp_path, "validation", validation_share=0.15)]
    assert len(caplog.records) == 3
    assert sorted(id for part in parts.values() for id in part.dataset["image_id"]) == sorted(
        load_detection_dataset(tmp_path).dataset["image_id"]
    )
    with pytest.raises(ValueError, match="'val'"):
        load_detection_dataset(tmp_path, "val")
    ids = [list(part.dataset["image_id"]) for part in held_out]
    assert ids[0] == ids[1]
    assert len(load_detection_dataset(tmp_path, "val", validation_share=0.5)) == 3
    images = json.loads(held_out[0].annotations_path.read_text())["images"]
    assert [image["id"] for image in images] == ids[0]
    with pytest.raises(ValueError, match="'test'"):
        load_detection_dataset(tmp_path, "test")


def _rename(folder, change):
    """Change the names in the json, or those of the files."""
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = change(folder, image["file_name"])
    file.write_text(json.dumps(content))


def _decomposed(folder, name):
    (folder / "images" / name).rename(folder / "images" / unicodedata.normalize("NFD", f"é{name}"))
    return f"é{name}"


def _deeper(folder, name):
    (folder / "images" / "day").mkdir(exist_ok=True)
    (folder / "images" / name).rename(folder / "images" / "day" / name)
    (folder / "images" / "night").mkdir(exist_ok=True)
    (folder / "images" / "night" / name).write_bytes(b"another")
    return f"upload\\day\\{name}"


NAMES = {
    "percent": lambda _, name: name.replace(" ", "%20"),
    "backslash": lambda _, name: f".\\images\\{name}",
    "with the folder": lambda _, name: f"set/images/{name}",
    "upper case": lambda _, name: name.replace(".jpg", ".JPG"),
    "unicode": _decomposed,
    "one of two": _deeper,
    "uploaded": lambda _, name: f"/data/upload/1/{name}",
    "with the digits of an upload": lambda _, name: f"images/1a2b3c4d-{name}",
    "of another machine": lambda _, name: f"C:\\set\\images\\{name}",
    "from the annotations": lambda _, name: f"..\\images\\{name}",
}


@pytest.mark.parametrize("change", NAMES.values(), ids=NAMES)
def test_file_names_that_are_written_in_another_way(tmp_path, change):
    tools.coco_folder(tmp_path / "set")
    expected = _boxes(load_detection_dataset(tmp_path / "set"))
    _rename(tmp_path / "set", change)
    data = load_detection_dataset(tmp_path / "set")
    assert list(_boxes(data).values()) == list(expected.values())
    assert all(decode_image(row).width for row in data.dataset)


def test_a_name_that_fits_several_files_is_missing(tmp_path):
    tools.coco_folder(tmp_path / "set")
    _rename(tmp_path / "set", lambda folder, name: _deeper(folder, name).rpartition("\\")[2])
    with pytest.raises(FileNotFoundError, match=r"6 of 6 images.*images\[0\]\.file_name 'train 0.jpg'"):
        load_detection_dataset(tmp_path / "set")


def test_two_names_that_fit_the_same_file_are_missing(tmp_path):
    tools.coco_folder(tmp_path)
    first, second = (name for name, _ in tools.TRAIN[:2])
    _rename(tmp_path, lambda _, name: f"/upload/2/{first}" if name == second else f"/upload/1/{name}")
    with pytest.raises(FileNotFoundError, match="2 of 6 images"):
        load_detection_dataset(tmp_path)


def _cvat_subsets(folder):
    """CVAT writes the names of the subsets as they were typed."""
    for split, name in (("train", "Train"), ("val", "Validation")):
        (folder / "annotations" / f"instances_{split}.json").rename(folder / "annotations" / f"instances_{name}.json")
        made = tools.TRAIN if split == "train" else tools.VAL
        (folder / "images" / name).mkdir()
        for file, _ in made:
            (folder / "images" / file).rename(folder / "images" / name / file)


def _unpacked(folder):
    folder.rename(folder.parent / "inner")
    folder.mkdir()
    (folder.parent / "inner").rename(folder / "data set")
    (folder / "__MACOSX").mkdir()
    (folder / "data set" / "annotations" / "._instances_train.json").write_bytes(b"\0")


def _train_json(folder):
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").rename(folder / f"{split}_labels.json")
    (folder / "info.json").write_text('{"info": 1, "categories": []}')


def _with_captions(folder):
    shutil.copytree(folder / "annotations", folder / "kept")
    for file in (folder / "kept").iterdir():
        file.rename(folder / "annotations" / file.name.replace("instances", "captions"))
    (folder / "annotations" / "captions_train.json").write_text("{}")


def _per_split_with_annotations(folder):
    """As Supervisely's converter writes a project with a data set for each split."""
    for split, made in (("train", tools.TRAIN), ("val", tools.VAL)):
        (folder / split / "annotations").mkdir(parents=True)
        (folder / split / "images").mkdir()
        file = folder / "annotations" / f"instances_{split}.json"
        file.rename(folder / split / "annotations" / "instances.json")
        for name, _ in made:
            (folder / "images" / name).rename(folder / split / "images" / name)


def _with_a_backup(folder):
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").rename(folder / "annotations" / f"{split}.json")
    content = json.loads((folder / "annotations" / "train.json").read_text())
    content["annotations"] = []
    (folder / "annotations" / "all_train.json").write_text(json.dumps(content))


def _other_folders(folder):
    (folder / "annotations").rename(folder / "Annotations")
    (folder / "images").rename(folder / "photos")


def _capitals(folder):
    (folder / "images").rename(folder / "Images")
    (folder / "drawn").mkdir()
    shutil.copy(folder / "Images" / tools.TRAIN[0][0], folder / "drawn")


def _beside_an_archive(folder):
    folder.rename(folder.parent / "inner")
    folder.mkdir()
    (folder.parent / "inner").rename(folder / "train and val")
    (folder / "pets.zip").touch()


def _validation_of_a_year(folder):
    """The names of the files are the same in both splits' folders."""
    for split, name, made in (("train", "train2017", tools.TRAIN), ("val", "validation2017", tools.VAL)):
        (folder / "annotations" / f"instances_{split}.json").rename(folder / "annotations" / f"instances_{name}.json")
        for other in ("train2017", "validation2017"):
            tools.draw_all(folder / "images" / other, made)
    for file in (folder / "images").glob("*.jpg"):
        file.unlink()


COCO_VARIANTS = [
    *(_beside_an_archive, _validation_of_a_year),
    *(_cvat_subsets, _unpacked, _train_json, _with_captions, _other_folders, _capitals),
    *(_per_split_with_annotations, _with_a_backup),
]


@pytest.mark.parametrize("change", COCO_VARIANTS)
def test_variants_of_a_coco_folder(tmp_path, change):
    tools.coco_folder(tmp_path / "set")
    change(tmp_path / "set")
    assert _boxes(load_detection_dataset(tmp_path / "set", "train")).keys() == dict(tools.TRAIN).keys()
    assert _boxes(load_detection_dataset(tmp_path / "set", "valid")).keys() == dict(tools.VAL).keys()


def _listed(folder):
    lines = [f"/content/pets/images/train/{name}" for name, _ in tools.TRAIN]
    (folder / "train.txt").write_text("\n".join(lines))
    settings = "train: train.txt\nval: [images/val]\nnames: [cat, dog]\n"
    (folder / "data.yaml").write_text(settings)


def _label_studio(folder):
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')
    (folder / "images" / "train" / "._train 0.jpg").write_bytes(b"\0")


def _darknet(folder):
    """As CVAT writes "YOLO 1.1"."""
    for split, made, name in (("train", tools.TRAIN, "train"), ("val", tools.VAL, "valid")):
        for file in (folder / "labels" / split).iterdir():
            file.rename(folder / "images" / split / file.name)
        (folder / "images" / split).rename(folder / f"obj_{name}_data")
        (folder / f"{name}.txt").write_text("".join(f"data/obj_{name}_data/{file}\n" for file, _ in made))
    (folder / "data.yaml").unlink()
    (folder / "obj.names").write_text("cat\ndog\n")


def _no_names(folder):
    (folder / "data.yaml").write_text("nc: 2\n")


def _years(folder):
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (folder / kind / split).rename(folder / kind / f"{split}2017")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n", "utf-16")  # as some editors of Windows save it


def _beside_the_images(folder):
    _years(folder)
    for split in ("train", "val"):
        (folder / "images" / f"{split}2017").rename(folder / split)
        for file in (folder / "labels" / f"{split}2017").iterdir():
            file.rename(folder / split / file.name)


def _quoted_numbers(folder):
    (folder / "data.yaml").write_text('train: images/train\nval: images/val\ntest:\nnames: {"0": cat, "1": dog}\n')


def _capital_folders(folder):
    for name in ("images", "labels"):
        (folder / name / "train").rename(folder / name / "Train")
        (folder / name).rename(folder / name.capitalize())


def _capital_in_splits(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
        for name in ("images", "labels"):
            (folder / name / split).rename(folder / split / name.capitalize())


def _of_another_machine(folder):
    """The names of the folders tell nothing."""
    for name in ("images", "labels"):
        (folder / name / "train").rename(folder / name / "one")
        (folder / name / "val").rename(folder / name / "two")
    settings = "path: /content/sets/pets\ntrain: images/one\nval: C:\\sets\\pets\\images\\two\nnames: [cat, dog]\n"
    (folder / "data.yaml").write_text(settings)


def _into(folder, name):
    """The data set is in a folder of this one, as an archive that was unpacked beside itself."""
    inner = folder / name
    inner.mkdir()
    for file in list(folder.iterdir()):
        if file != inner:
            file.rename(inner / file.name)
    (folder / "pets.zip").touch()
    (folder / "notes.txt").touch()


def _beside_its_archive(folder):
    _into(folder, "pets")


def _called_after_a_split(folder):
    _into(folder, "my training data")


def _one_of_several(folder):
    _into(folder, "training pets")
    (folder / "other").mkdir()
    shutil.copy(folder / "training pets" / "data.yaml", folder)


def _words_below_the_split(folder):
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    for name in ("images", "labels"):
        (folder / name / "val").rename(folder / name / "from train")
        (folder / name / "val").mkdir()
        (folder / name / "from train").rename(folder / name / "val" / "from train")


def _pictures_beside_the_data_set(folder):
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    (folder / "train2017").symlink_to("images/train")
    tools.draw(folder / "runs" / "train" / "results.png", 1)
    tools.draw(folder / "val" / "drawn" / "a.jpg", 1)
    tools.draw(folder / "labels" / "train" / "train 0.png", 1)  # a mask


def _links_that_lead_back(folder):
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    (folder / "loop").symlink_to(".")
    (folder / "images" / "train" / "up").symlink_to("..")
    (folder / "one").mkdir()
    (folder / "one" / "two").symlink_to("../images")
    (folder / "images" / "one").symlink_to("../one")


def _listed_in_another_form(folder):
    _listed(folder)
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        place = folder / kind / "train"
        (place / f"train 0.{suffix}").rename(place / unicodedata.normalize("NFD", f"é.{suffix}"))
    file = folder / "train.txt"
    file.write_text(file.read_text().replace("train 0", "é"), "utf-8")


YOLO_VARIANTS = [
    *(_beside_its_archive, _called_after_a_split, _one_of_several, _words_below_the_split),
    *(_pictures_beside_the_data_set, _links_that_lead_back),
    *(_listed, _label_studio, _darknet, _no_names, _years, _beside_the_images, _quoted_numbers),
    *(_capital_folders, _capital_in_splits, _of_another_machine),
]


@pytest.mark.parametrize("change", YOLO_VARIANTS)
def test_variants_of_a_yolo_folder(tmp_path, change):
    tools.ultralytics_yolo(tmp_path)
    change(tmp_path)
    train, val = (load_detection_dataset(tmp_path, split) for split in ("train", "val"))
    assert (_boxes(train).keys(), _boxes(val).keys()) == (dict(tools.TRAIN).keys(), dict(tools.VAL).keys())
    assert list(train.id2label.values()) == (["class_0", "class_1"] if change is _no_names else ["cat", "dog"])


def test_a_list_may_name_files_in_another_unicode_form_or_that_differ_in_case_alone(tmp_path):
    tools.ultralytics_yolo(tmp_path)
    _listed_in_another_form(tmp_path)
    assert load_detection_dataset(tmp_path).report.boxes == 12
    shutil.copy(tmp_path / "images" / "train" / "train 1.jpg", tmp_path / "images" / "train" / "TRAIN 1.jpg")
    with (tmp_path / "train.txt").open("a") as file:
        file.write("\n./images/train/TRAIN 1.jpg\n")
    assert len(_boxes(load_detection_dataset(tmp_path))) == 7


@pytest.mark.parametrize("ending", [".jfif", ".AVIF"])
def test_yolo_images_of_other_endings(tmp_path, ending):
    tools.ultralytics_yolo(tmp_path)
    for file in list((tmp_path / "images").rglob("*.jpg")):
        file.rename(file.with_suffix(ending))
    assert load_detection_dataset(tmp_path).report.boxes == 12


def test_one_folder_of_images_may_be_both_splits(tmp_path):
    tools.ultralytics_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("path: ../pets\ntrain: images\nval: images/\nnames: [cat, dog]\n")
    assert [len(load_detection_dataset(tmp_path, split)) for split in ("train", "val")] == [9, 9]


def test_a_split_may_be_several_folders_and_a_list_names_what_is_there(tmp_path):
    tools.ultralytics_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: [images/val, images/train]\nval: images/val\nnames: [cat, dog]\n")
    assert _boxes(load_detection_dataset(tmp_path)).keys() == dict(tools.TRAIN).keys() | dict(tools.VAL).keys()
    (tmp_path / "train.txt").write_text("images/train/nothing.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat, dog]\n")
    with pytest.raises(FileNotFoundError, match=r"train\.txt: images/train/nothing\.jpg"):
        load_detection_dataset(tmp_path)


def _beside(folder):
    """As LabelImg writes it, without lists of splits."""
    for file in (folder / "Annotations").iterdir():
        file.rename(folder / "JPEGImages" / file.name)
    (folder / "JPEGImages").rename(folder / "images")
    shutil.rmtree(folder / "ImageSets")


def _per_split(folder):
    for split, made in (("train", tools.TRAIN), ("valid", tools.VAL)):
        (folder / split).mkdir()
        for name, _ in made:
            (folder / "JPEGImages" / name).rename(folder / split / name)
            xml = name.replace(".jpg", ".xml")
            (folder / "Annotations" / xml).rename(folder / split / xml)
    shutil.rmtree(folder / "ImageSets")


def _unknown_sizes(folder):
    for file in (folder / "Annotations").iterdir():
        file.write_text(file.read_text().replace(f"<width>{tools.WIDTH}", "<width>0"))


def _lists_with_endings(folder):
    for split in ("train", "val"):
        file = folder / "ImageSets" / "Main" / f"{split}.txt"
        (folder / "ImageSets" / f"{split}.txt").write_text(file.read_text().replace("\n", ".jpg\n"))
        file.unlink()


def _images_per_split(folder):
    for split, made in (("train", tools.TRAIN), ("val", tools.VAL)):
        (folder / "images" / split).mkdir(parents=True)
        for name, _ in made:
            (folder / "JPEGImages" / name).rename(folder / "images" / split / name)
    shutil.rmtree(folder / "ImageSets")


def _in_labels(folder):
    (folder / "Annotations").rename(folder / "labels")
    (folder / "JPEGImages").rename(folder / "images")


def _in_xmls(folder):
    (folder / "Annotations").rename(folder / "xmls")
    (folder / "annotations").mkdir()
    (folder / "xmls").rename(folder / "annotations" / "xmls")


def _folder_per_split(folder):
    for split, made in (("train", tools.TRAIN), ("val", tools.VAL)):
        for kind in ("images", "annotations"):
            (folder / split / kind).mkdir(parents=True)
        for name, _ in made:
            (folder / "JPEGImages" / name).rename(folder / split / "images" / name)
            xml = name.replace(".jpg", ".xml")
            (folder / "Annotations" / xml).rename(folder / split / "annotations" / xml)
    shutil.rmtree(folder / "ImageSets")


def _capital_voc(folder):
    (folder / "Annotations").rename(folder / "ANNOTATIONS")
    (folder / "JPEGImages").rename(folder / "Images")
    (folder / "ImageSets").rename(folder / "imagesets")


def _lists_in_both_places(folder):
    for file in list((folder / "ImageSets" / "Main").iterdir()):
        shutil.copy(file, folder / "ImageSets")


def _other_xml_files(folder):
    shutil.rmtree(folder / "ImageSets")
    shutil.copytree(folder / "Annotations", folder / "Annotations before")
    (folder / "project.xml").write_text("<project/>")


def _other_xml_files_beside(folder):
    _other_xml_files(folder)
    shutil.rmtree(folder / "Annotations before")
    for file in [*(folder / "JPEGImages").iterdir(), *(folder / "Annotations").iterdir()]:
        file.rename(folder / file.name)
    for name in ("JPEGImages", "Annotations"):
        (folder / name).rmdir()


def _masks(folder):
    """Of the same names as the images, whose folders alone tell the splits."""
    _images_per_split(folder)
    for name, _ in (*tools.TRAIN, *tools.VAL):
        tools.draw(folder / "masks" / name.replace(".jpg", ".png"), 1)


@pytest.mark.parametrize(
    ("change", "images"),
    [
        *((_lists_in_both_places, 6), (_other_xml_files, 9), (_other_xml_files_beside, 9), (_masks, 6)),
        *((_beside, 9), (_per_split, 6), (_unknown_sizes, 6), (_lists_with_endings, 6)),
        *((_in_labels, 6), (_images_per_split, 6), (_in_xmls, 6), (_folder_per_split, 6), (_capital_voc, 6)),
    ],
)
def test_variants_of_a_pascal_voc_folder(tmp_path, change, images):
    tools.pascal_voc(tmp_path)
    change(tmp_path)
    train = load_detection_dataset(tmp_path)
    assert len(train) == images == len({row["image"]["path"] for row in train.dataset})
    val = load_detection_dataset(tmp_path, "val", validation_share=0.15)
    assert dict(tools.TRAIN).keys() <= _boxes(train).keys() | _boxes(val).keys()
    assert train.dataset[0]["width"] == tools.WIDTH


def test_lists_of_a_folder_for_each_year(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        tools.pascal_voc(tmp_path / year)
    for file in (tmp_path / "VOC2012").rglob("*.*"):
        if file.suffix == ".txt":
            file.write_text("".join(f"2012 {line}\n" for line in file.read_text().splitlines()))
        else:
            file.rename(file.with_name(f"2012 {file.name}"))
    assert len(load_detection_dataset(tmp_path)) == 2 * len(tools.TRAIN)


def test_damaged_files_of_a_yolo_folder(tmp_path, caplog):
    tools.ultralytics_yolo(tmp_path)
    image = tmp_path / "images" / "train" / tools.TRAIN[0][0]
    image.write_bytes(b"no image")
    assert len(load_detection_dataset(tmp_path)) == len(tools.TRAIN) - 1
    assert image.name in caplog.text
    for file, content in (
        ("labels/train/train 1.txt", b"\xff\xfe0 1"),
        ("data.yaml", b"names: [cat\n"),
        ("data.yaml", b"names: {cat: 1}"),
        ("data.yaml", b"names: \xff\xfe"),
    ):
        before = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / file))):
            load_detection_dataset(tmp_path)
        (tmp_path / file).write_bytes(before)


def test_explicit_files_win(tmp_path):
    tools.roboflow_coco(tmp_path / "set")
    data = load_detection_dataset(
        tmp_path / "set", annotations="valid/_annotations.coco.json", images=tmp_path / "set" / "valid"
    )
    assert _boxes(data).keys() == dict(tools.VAL).keys()


def test_what_is_none_of_these_says_what_was_looked_for(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match=r"COCO.*YOLO.*Pascal VOC.*pictures/.*--annotations"):
        load_detection_dataset(tmp_path)


def test_files_that_may_all_be_the_annotations(tmp_path):
    tools.fiftyone_coco(tmp_path)
    shutil.copy(tmp_path / "labels.json", tmp_path / "copy.json")
    with pytest.raises(ValueError, match=r"copy\.json, labels\.json"):
        load_detection_dataset(tmp_path)


def test_several_files_of_one_split_are_refused(tmp_path):
    tools.coco_folder(tmp_path)
    for name in ("new_train.json", "old_train.json"):
        shutil.copy(tmp_path / "annotations" / "instances_train.json", tmp_path / "annotations" / name)
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").unlink()
    with pytest.raises(ValueError, match=r"'train': new_train\.json, old_train\.json"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("name", ["set.zip", "annotations/instances_train.json", "data.yaml"])
def test_a_file_in_place_of_the_folder_says_what_to_give(tmp_path, name):
    tools.coco_folder(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"is a file; (un|give)"):
        load_detection_dataset(tmp_path / name)


def _roots(content):
    content["categories"].insert(0, {"id": 0, "name": "pets"})
    for category in content["categories"][1:]:
        category["supercategory"] = "pets"


def _twice(content):
    content["categories"].append({"id": 9, "name": "dog"})


@pytest.mark.parametrize("change", [_roots, _twice])
def test_categories_that_are_no_classes_are_left_out(tmp_path, caplog, change):
    tools.coco_folder(tmp_path)
    for split in ("train", "val"):
        file = tmp_path / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        data = load_detection_dataset(tmp_path)
    assert data.id2label == {0: "cat", 1: "dog"}
    assert len(caplog.records) == 1
    assert {name for name in evaluate_coco(data.annotations_path, [], per_class=True) if "/" in name} == {
        *("AP/cat", "AR/cat", "AP/dog", "AR/dog")
    }


def test_a_class_that_the_model_does_not_have_may_be_there_without_boxes(tmp_path):
    tools.coco_folder(tmp_path)
    file = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "yak"})
    file.write_text(json.dumps(content))
    assert load_detection_dataset(tmp_path, "val", id2label={0: "cat", 1: "dog"}).category_ids == [1, 2]


def _every_box(folder, change):
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for record in content["annotations"]:
            record["bbox"] = change(record["bbox"])
        file.write_text(json.dumps(content))


def test_fractions_and_corners_are_refused(tmp_path):
    tools.coco_folder(tmp_path / "fractions")
    size = (tools.WIDTH, tools.HEIGHT) * 2
    _every_box(tmp_path / "fractions", lambda box: [v / s for v, s in zip(box, size, strict=True)])
    with pytest.raises(ValueError, match="fractions"):
        load_detection_dataset(tmp_path / "fractions")
    tools.coco_folder(tmp_path / "corners")
    _every_box(tmp_path / "corners", lambda box: [50, 30, 50 + box[2], 30 + box[3]])
    with pytest.raises(ValueError, match="corners"):
        load_detection_dataset(tmp_path / "corners")


YOLO_LABELS = {
    "1 0.5 0.5 0.5 0.25": [24, 24, 48, 16],
    "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75": [24, 16, 48, 32],  # a polygon
    "1.0 0.5 0.5 0.5 0.25 0.9": [24, 24, 48, 16],  # with a confidence
}


@pytest.mark.parametrize(("line", "box"), YOLO_LABELS.items())
def test_yolo_labels(tmp_path, line, box):
    tools.ultralytics_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "train 0.txt").write_text(f"\n{line}\n")
    (tmp_path / "labels" / "train" / "train 1.txt").unlink()
    data = load_detection_dataset(tmp_path)
    assert data.dataset[0]["objects"]["bbox"] == [pytest.approx(box)]
    assert data.dataset[1]["objects"]["bbox"] == []


def test_yolo_labels_in_another_unicode_form(tmp_path):
    tools.roboflow_yolo(tmp_path)
    for kind, form in (("images", "NFC"), ("labels", "NFD")):
        for file in list((tmp_path / "train" / kind).iterdir()):
            file.rename(file.with_name(unicodedata.normalize(form, f"é{file.name}")))
    assert load_detection_dataset(tmp_path).report.boxes == 12


@pytest.mark.parametrize(
    "line",
    [
        "1 0.5 0.5 0.5",
        "x 0.5 0.5 0.5 0.5",
        "7 0.5 0.5 0.5 0.5",
        "1 48 32 20 20",
        "-1 0 0 1 1",
        "0.5 0.5 0.5 0.5 0.5",
        "0 0.5 0.5 -0.1 0.5",
        "\x00 nan",
        "0 inf 0 1 1",
    ],
)
def test_bad_yolo_labels_name_file_and_line(tmp_path, line):
    tools.roboflow_yolo(tmp_path)
    (tmp_path / "train" / "labels" / "train 0.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(ValueError, match=r"train 0\.txt, line 2"):
        load_detection_dataset(tmp_path)


def test_classes_that_count_from_one_are_told(tmp_path):
    tools.ultralytics_yolo(tmp_path)
    for file in (tmp_path / "labels" / "train").iterdir():
        lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{int(label) + 1} {box}\n" for label, box in lines))
    with pytest.raises(ValueError, match=r"train 0\.txt, line 2: class 2 .*from 1"):
        load_detection_dataset(tmp_path)
    (tmp_path / "labels" / "train" / "train 1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"class 2 is not in `names`, which has \[0, 1\]$"):
        load_detection_dataset(tmp_path)


def test_names_of_classes_are_read_as_they_are_written(tmp_path):
    tools.ultralytics_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [no, 010]\n")
    assert load_detection_dataset(tmp_path).id2label == {0: "no", 1: "010"}
    (tmp_path / "data.yaml").write_text("names: cat, dog\n")
    with pytest.raises(ValueError, match=r"data\.yaml: `names`"):
        load_detection_dataset(tmp_path)


def test_names_of_classes_without_label_files_are_no_yolo_folder(tmp_path):
    tools.pascal_voc(tmp_path)
    _beside(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_detection_dataset(tmp_path).kind.startswith("Pascal VOC")
    for file in (tmp_path / "images").glob("*.xml"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/\*\.txt.*classes\.txt"):
        load_detection_dataset(tmp_path)


def test_labels_without_their_images_are_counted(tmp_path, caplog):
    tools.ultralytics_yolo(tmp_path)
    for name in ("train 0.jpg", "train 3.jpg"):
        (tmp_path / "images" / "train" / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert len(load_detection_dataset(tmp_path)) == 4
    assert "2 label files have no image" in caplog.text


def test_text_of_another_encoding_names_the_file(tmp_path):
    tools.roboflow_yolo(tmp_path)
    (tmp_path / "train" / "labels" / "train 0.txt").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match=r"train 0\.txt.*UTF-8"):
        load_detection_dataset(tmp_path)


def test_xml_files_without_any_object_are_refused(tmp_path):
    tools.pascal_voc(tmp_path)
    for file in (tmp_path / "Annotations").iterdir():
        file.write_text("<annotation/>")
    with pytest.raises(ValueError, match="9 xml files"):
        load_detection_dataset(tmp_path)


def _one_object(corners):
    names = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, corners, strict=True))
    return f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"


@pytest.mark.parametrize(
    "content",
    [
        _one_object((30, 30, 20, 40)),
        _one_object(("nan", 30, 40, 40)),
        "<annotation",
        "<annotation><object><name>cat</name></object></annotation>",
        "<annotation><object><bndbox/></object></annotation>",
        "<annotation><object><name>cat</name><bndbox><xmin>a</xmin></bndbox></object></annotation>",
        "<annotation><object><name>cat</name><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>2</xmax><ymax>4</ymax></bndbox>"
        "</object></annotation>",
        '<?xml version="1.0" encoding="nothing"?><annotation/>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
    ],
)
def test_bad_xml_names_the_file(tmp_path, content):
    tools.pascal_voc(tmp_path)
    (tmp_path / "Annotations" / "train 0.xml").write_text(content)
    with pytest.raises(ValueError, match=r"train 0\.xml"):
        load_detection_dataset(tmp_path)
