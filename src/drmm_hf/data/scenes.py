"""Generated scenes: a detection data set that needs no download, with structure that makes detectors err."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..files import to_json, write_text
from .scene_rendering import CATEGORIES, Scene, render_scene
from .transforms import check_argument

_DESCRIPTION = "drmm-hf generated scenes"
_VERSION = 1  # raise it when the same seed no longer gives the same scenes


def generate_scenes(
    output_dir: str | PathLike[str],
    *,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: tuple[int, int] = (240, 320),
    seed: int = 0,
    min_object_size: float = 12.0,
    max_object_size: float | None = None,
    mean_objects: float = 4.2,
    image_format: str = "jpg",
    overwrite: bool = False,
) -> Path:
    """Write a COCO-format folder: `annotations/instances_{train,val}.json` and `images/`.

    Seven classes with gaps in their category ids, two pairs of which look alike (disc and ring, rectangle and
    rhombus), 0 to 12 objects an image (about 8% have none) of varied size, shape, rotation, color and
    texture, over clutter that is no class. Objects cover each other; boxes are those of the whole shape
    inside the image, covered parts included. An object of which less than 25% would be visible is neither
    drawn nor annotated.

    Scene i of a split depends on `seed`, the sizes and i only, not on the number of images. The same
    arguments give the same json bytes and, with the same versions of numpy and Pillow, the same pixels. A
    folder that already holds exactly this data set is left as it is.

    Args:
        output_dir: folder to write; made where it does not exist.
        num_train, num_val: images of each split, at least 1.
        image_size: `(height, width)` in pixels, each at least 64.
        seed: 0 or more.
        min_object_size, max_object_size: longer side of a box in pixels before clipping; the default maximum
            is 0.625 of the image's shorter side.
        mean_objects: mean number of objects of an image that has any, before it is cut at 12; at least 1.
        image_format: `"jpg"` (quality 92) or `"png"`.
        overwrite: replace annotation files that are already there and differ.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: the folder holds another data set's annotation files.
    """
    height, width = image_size
    maximum = 0.625 * min(height, width) if max_object_size is None else float(max_object_size)
    parameters = {
        "version": _VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": [height, width],
        "seed": seed,
        "min_object_size": float(min_object_size),
        "max_object_size": maximum,
        "mean_objects": float(mean_objects),
        "image_format": image_format,
    }
    _check_parameters(parameters)
    root = Path(output_dir).expanduser()
    targets = {split: root / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    existing = [path for path in targets.values() if path.exists()]
    others = [path for path in existing if _parameters_of(path) != parameters]
    if len(existing) == len(targets) and not others:
        return root
    if others and not overwrite:
        raise FileExistsError(f"{others[0]}: is of other data; choose another output_dir or pass overwrite=True")
    for folder in (root / "annotations", root / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in existing:  # a json is only there while its images are: an interrupted run is no data set
        path.unlink()
    for number, (split, path) in enumerate(targets.items()):
        _write_split(root, path, split, number, parameters)
    return root


def _write_split(root: Path, path: Path, split: str, number: int, parameters: dict[str, Any]) -> None:
    height, width = parameters["image_size"]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(parameters[f"num_{split}"]):
        rng = np.random.default_rng([parameters["seed"], number, index])
        low, high, mean = (parameters[name] for name in ("min_object_size", "max_object_size", "mean_objects"))
        scene = render_scene(rng, height, width, min_size=low, max_size=high, mean_objects=mean)
        file_name = f"scene_{split}_{index:06d}.{parameters['image_format']}"
        # Image ids start at 1 and differ between the splits.
        image_id = 1 + index + 1_000_000 * number
        PIL.Image.fromarray(scene.image).save(root / "images" / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        annotations += _annotate(scene, image_id, first_id=len(annotations) + 1)
    data = {
        "info": {"description": _DESCRIPTION, "parameters": parameters},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for name, i in CATEGORIES.items()],
    }
    write_text(path, to_json(data))


def _annotate(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": CATEGORIES[item.name],
            "bbox": [item.box[0], item.box[1], item.box[2] - item.box[0], item.box[3] - item.box[1]],
            "area": round(item.area, 2),
            "iscrowd": 0,
            "visible": round(item.visible, 4),
        }
        for offset, item in enumerate(scene.objects)
    ]


def _check_parameters(parameters: dict[str, Any]) -> None:
    for name, minimum in (("num_train", 1), ("num_val", 1), ("seed", 0)):
        value = parameters[name]
        check_argument(name, value, type(value) is int and value >= minimum, f"an integer of at least {minimum}")
    size = parameters["image_size"]
    large = all(type(side) is int and side >= 64 for side in size)
    check_argument("image_size", tuple(size), large, "(height, width) in pixels, each at least 64")
    sides = parameters["min_object_size"], parameters["max_object_size"]
    ordered = 4 <= sides[0] <= sides[1] <= min(size)
    check_argument("min_object_size, max_object_size", sides, ordered, f"in order, from 4 to {min(size)}")
    mean = parameters["mean_objects"]
    check_argument("mean_objects", mean, 1.0 <= mean < float("inf"), "at least 1")
    image_format = parameters["image_format"]
    check_argument("image_format", image_format, image_format in ("jpg", "png"), "'jpg' or 'png'")


def _parameters_of(path: Path) -> Any:
    """The settings that a generated json was made with; None for any other file."""
    try:
        info = json.loads(path.read_bytes())["info"]
        return info["parameters"] if info["description"] == _DESCRIPTION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
