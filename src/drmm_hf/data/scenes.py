"""Generated scenes: a detection data set that needs no download, with structure that makes detectors err."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..files import to_json, write_text
from .scene_rendering import CATEGORIES, render_scene

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
    classes: Sequence[str] = tuple(CATEGORIES),
) -> Path:
    """Write a COCO-format folder: `annotations/instances_{train,val}.json` and `images/`.

    Seven classes with gaps in their category ids, two pairs of which look alike, 0 to 12 objects an image over clutter
    that is no class. Objects cover each other; boxes are those of the whole shape inside the image, covered parts
    included. Scene i of a split depends on `seed`, the sizes and i only: the same arguments give the same json bytes
    and, with the same versions of numpy and Pillow, the same pixels. A folder that already holds exactly this data set
    is left as it is.

    Args:
        output_dir: folder to write; made where it does not exist.
        num_train, num_val: images of each split, at least 1.
        image_size: `(height, width)` in pixels, each at least 64.
        seed: 0 or more.
        min_object_size, max_object_size: longer side of a box in pixels before clipping; the default maximum
            is 0.625 of the image's shorter side.
        mean_objects: mean number of objects of an image that has any, before it is cut at 12; at least 1.
        classes: those of the seven that are drawn.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: the folder holds another data set's annotation files.
    """
    shorter = min(image_size)
    sides = float(min_object_size), 0.625 * shorter if max_object_size is None else float(max_object_size)
    known = [name for name in CATEGORIES if name in classes]
    large = all(type(side) is int and side >= 64 for side in image_size)
    for name, value, good, wanted in (
        *((n, v, type(v) is int and v >= 1, "at least 1") for n, v in (("num_train", num_train), ("num_val", num_val))),
        ("seed", seed, type(seed) is int and seed >= 0, "an integer of at least 0"),
        ("image_size", image_size, large, "(height, width) in pixels, each at least 64"),
        ("min_object_size, max_object_size", sides, 4 <= sides[0] <= sides[1] <= shorter, f"in order, 4 to {shorter}"),
        ("mean_objects", mean_objects, 1.0 <= mean_objects < float("inf"), "at least 1"),
        ("classes", classes, len(known) == len(set(classes)) > 0, f"some of {', '.join(CATEGORIES)}"),
    ):
        if not good:
            raise ValueError(f"{name}={value!r}: must be {wanted}")
    parameters = {
        "version": _VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
        "min_object_size": sides[0],
        "max_object_size": sides[1],
        "mean_objects": float(mean_objects),
        "image_format": "jpg",
    }
    if len(known) < len(CATEGORIES):
        parameters["classes"] = known
    root = Path(output_dir).expanduser()
    targets = {split: root / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    existing = [path for path in targets.values() if path.exists()]
    for path in existing:
        if _parameters_of(path) != parameters:
            raise FileExistsError(f"{path}: is of other data; choose another output_dir, or remove the file")
    if len(existing) == len(targets):
        return root
    for path in existing:  # a json is only there while its images are: an interrupted run is no data set
        path.unlink()
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, (split, path) in enumerate(targets.items()):
        path.parent.mkdir(exist_ok=True)
        write_text(path, to_json(_write_images(root / "images", split, number, parameters)))
    return root


def _write_images(folder: Path, split: str, number: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Draw the scenes of a split; its COCO content."""
    height, width = parameters["image_size"]
    low, high, mean = (parameters[name] for name in ("min_object_size", "max_object_size", "mean_objects"))
    classes = parameters.get("classes", list(CATEGORIES))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(parameters[f"num_{split}"]):
        rng = np.random.default_rng([parameters["seed"], number, index])
        scene = render_scene(rng, height, width, min_size=low, max_size=high, mean_objects=mean, classes=classes)
        file_name = f"scene_{split}_{index:06d}.jpg"
        PIL.Image.fromarray(scene.image).save(folder / file_name, quality=92)
        # Image ids start at 1 and differ between the splits.
        images.append({"id": 1 + index + 1_000_000 * number, "file_name": file_name, "width": width, "height": height})
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            one = {"id": len(annotations) + 1, "image_id": images[-1]["id"], "category_id": CATEGORIES[item.name]}
            one |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": round(item.area, 2), "iscrowd": 0}
            annotations.append({**one, "visible": round(item.visible, 4)})
    return {
        "info": {"description": _DESCRIPTION, "parameters": parameters},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name, "supercategory": "shape"} for name, i in CATEGORIES.items() if name in classes
        ],
    }


def _parameters_of(path: Path) -> Any:
    """The settings that a generated json was made with; None for any other file."""
    try:
        info = json.loads(path.read_bytes())["info"]
        return info["parameters"] if info["description"] == _DESCRIPTION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
