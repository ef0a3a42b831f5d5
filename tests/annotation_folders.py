"""Tiny data sets of the same pictures and boxes, each written as one of the usual tools writes it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image

CLASSES = ("cat", "dog")
WIDTH, HEIGHT = 96, 64
Box = tuple[int, tuple[float, float, float, float]]
Picture = tuple[str, list[Box]]


def pictures(split: str, count: int) -> list[Picture]:
    """Names of pictures and their boxes: class, and [x, y, width, height] in pixels."""
    random = np.random.default_rng(sum(map(ord, split)))
    made: list[Picture] = []
    for number in range(count):
        corner, size = random.integers(0, (WIDTH // 2, HEIGHT // 2)), random.integers(12, 32, 2)
        box = (float(corner[0]), float(corner[1]), float(size[0]), float(size[1]))
        made.append((f"{split} {number}.jpg", [(number % 2, box), (1, (40.0, 20.0, 30.0, 24.0))]))
    return made


def draw(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(file, quality=90)


def draw_all(folder: Path, made: Sequence[Picture]) -> None:
    for name, _ in made:
        draw(folder / name, sum(map(ord, name)))


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def coco(made: Sequence[Picture], *, first_id: int = 1, name: Callable[[str], str] = str) -> dict[str, Any]:
    """The pictures as COCO instances; `name` says how a file name is written."""
    annotations = [
        {
            "id": image * 10 + number,
            "image_id": image,
            "category_id": label + first_id,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [],
        }
        for image, (_, boxes) in enumerate(made)
        for number, (label, box) in enumerate(boxes)
    ]
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": image, "file_name": name(file), "width": WIDTH, "height": HEIGHT}
            for image, (file, _) in enumerate(made)
        ],
        "categories": [{"id": label + first_id, "name": text} for label, text in enumerate(CLASSES)],
        "annotations": annotations,
    }


TRAIN, VAL = pictures("train", 6), pictures("val", 3)


def coco_folder(root: Path) -> None:
    for split, made in (("train", TRAIN), ("val", VAL)):
        draw_all(root / "images", made)
        write(root / "annotations" / f"instances_{split}.json", coco(made))


def roboflow_coco(root: Path) -> None:
    for split, made in (("train", TRAIN), ("valid", VAL)):
        draw_all(root / split, made)
        content = coco(made)
        for category in content["categories"]:
            category["supercategory"] = "animals-x1y2"
        content["categories"].insert(0, {"id": 0, "name": "animals-x1y2", "supercategory": "none"})
        write(root / split / "_annotations.coco.json", content)
    write(root / "README.roboflow.txt", "exported")


def cvat_coco(root: Path) -> None:
    draw_all(root / "images", TRAIN)
    content = coco(TRAIN)
    for record in content["annotations"]:
        record |= {"attributes": {"occluded": False}, "iscrowd": None}
    write(root / "annotations" / "instances_default.json", content)


def label_studio_coco(root: Path) -> None:
    draw_all(root / "images", TRAIN)
    write(root / "result.json", coco(TRAIN, first_id=0, name=lambda file: f"images\\{file}"))
    write(root / "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {}})


def via_coco(root: Path) -> None:
    """Images beside the file; no sizes of the images, ids as texts, and polygons instead of boxes."""
    draw_all(root, TRAIN)
    content = coco(TRAIN, name=lambda file: file.replace(" ", "%20"))
    for image in content["images"]:
        del image["width"], image["height"]
        image["id"] = str(image["id"])
    for record in content["annotations"]:
        x, y, w, h = record.pop("bbox")
        record |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "image_id": str(record["image_id"])}
    write(root / "via_export_coco.json", content)


def fiftyone_coco(root: Path) -> None:
    draw_all(root / "data", TRAIN)
    write(root / "labels.json", coco(TRAIN, first_id=0))


def labelme_coco(root: Path) -> None:
    """labelme's own converter: the pictures in a folder beside the file, and the background as a category."""
    draw_all(root / "JPEGImages", TRAIN)
    content = coco(TRAIN, name=lambda file: f"JPEGImages/{file}")
    content["categories"].insert(0, {"id": 0, "name": "_background_"})
    for record in (*content["images"], *content["categories"]):
        record |= {"url": None, "license": 0} if "file_name" in record else {"supercategory": None}
    write(root / "annotations.json", content)


def labelme2coco(root: Path) -> None:
    """The names are paths of the machine that it ran on."""
    for split, made in (("train", TRAIN), ("val", VAL)):
        draw_all(root / "photos", made)
        write(root / f"{split}.json", coco(made, name=lambda file: f"/home/me/pets/photos/{file}"))


def supervisely_coco(root: Path) -> None:
    draw_all(root / "ds 1" / "images", TRAIN)
    write(root / "ds 1" / "annotations" / "instances.json", coco(TRAIN))


def _yolo_lines(boxes: Sequence[Box]) -> str:
    lines = [
        f"{label} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}"
        for label, (x, y, w, h) in boxes
    ]
    return "\n".join(lines) + "\n"


def ultralytics_yolo(root: Path) -> None:
    for split, made in (("train", TRAIN), ("val", VAL)):
        draw_all(root / "images" / split, made)
        for name, boxes in made:
            write((root / "labels" / split / name).with_suffix(".txt"), _yolo_lines(boxes))
    names = "\n".join(f"  {label}: {name}" for label, name in enumerate(CLASSES))
    write(root / "data.yaml", f"path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n{names}\n")


def roboflow_yolo(root: Path) -> None:
    for split, made in (("train", TRAIN), ("valid", VAL)):
        draw_all(root / split / "images", made)
        for name, boxes in made:
            write((root / split / "labels" / name).with_suffix(".txt"), _yolo_lines(boxes))
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cat', 'dog']\n")


def cvat_yolo(root: Path) -> None:
    """CVAT's YOLO 1.1: lists of the pictures, whose text files are beside them."""
    for split, made in (("train", TRAIN), ("valid", VAL)):
        folder = f"obj_{split.capitalize()}_data"
        draw_all(root / folder, made)
        for name, boxes in made:
            write((root / folder / name).with_suffix(".txt"), _yolo_lines(boxes))
        write(root / f"{split.capitalize()}.txt", "".join(f"data/{folder}/{name}\n" for name, _ in made))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/Train.txt\nnames = data/obj.names\nbackup = backup/\n")


def cvat_ultralytics(root: Path) -> None:
    for split, made in (("Train", TRAIN), ("Validation", VAL)):
        draw_all(root / "images" / split, made)
        for name, boxes in made:
            write((root / "labels" / split / name).with_suffix(".txt"), _yolo_lines(boxes))
        write(root / f"{split}.txt", "".join(f"data/images/{split}/{name}\n" for name, _ in made))
    write(root / "data.yaml", "Train: Train.txt\nValidation: Validation.txt\nnames:\n  0: cat\n  1: dog\npath: .\n")


def pascal_voc(root: Path) -> None:
    draw_all(root / "JPEGImages", [*TRAIN, *VAL])
    for name, boxes in (*TRAIN, *VAL):
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{x:g}</xmin><ymin>{y:g}</ymin>"
            f"<xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
            for label, (x, y, w, h) in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        text = f"<annotation><filename>before {name}</filename>{size}{objects}</annotation>"
        write((root / "Annotations" / name).with_suffix(".xml"), text)
    for split, made in (("train", TRAIN), ("val", VAL)):
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{Path(name).stem}\n" for name, _ in made))


def labelimg_voc(root: Path) -> None:
    """One folder of pictures and xml files; the paths are those of the machine that they were drawn on."""
    pascal_voc(root)
    for file in (root / "Annotations").iterdir():
        text = file.read_text("utf-8").replace("<filename>", "<folder>x</folder><path>C:\\x\\a.jpg</path><filename>")
        name = file.with_suffix(".jpg").name
        if name.startswith("train"):
            (root / "JPEGImages" / name).rename(root / name)
            write(root / file.name, text)
    for folder in ("Annotations", "JPEGImages", "ImageSets"):
        shutil.rmtree(root / folder)


def imagefolder(root: Path) -> None:
    for split, made in (("train", TRAIN), ("validation", VAL)):
        draw_all(root / split, made)
        lines = [
            {
                "file_name": name,
                "objects": {
                    "bbox": [list(box) for _, box in boxes],
                    "categories": [CLASSES[label] for label, _ in boxes],
                },
            }
            for name, boxes in made
        ]
        write(root / split / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def saved(root: Path) -> None:
    """What `save_to_disk` writes of an imagefolder."""
    imagefolder(root.with_name("before"))
    datasets.load_dataset(str(root.with_name("before"))).save_to_disk(root)


FOLDERS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        *(coco_folder, roboflow_coco, cvat_coco, label_studio_coco, via_coco, fiftyone_coco),
        *(labelme_coco, labelme2coco, supervisely_coco, ultralytics_yolo, roboflow_yolo, cvat_yolo, cvat_ultralytics),
        *(pascal_voc, labelimg_voc, imagefolder, saved),
    )
}
