"""A split under shift: its images blurred, noisy, darker, brighter, flat or compressed, as data sets of their own."""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from drmm_hf.data import decode_image, load_detection_dataset
from drmm_hf.files import read_json, write_json

Change = Callable[[Image.Image, torch.Generator], Image.Image]


def _blurred(sigma: float) -> Change:
    return lambda image, generator: F.gaussian_blur(image, 4 * round(sigma) + 1, sigma)


def _noisy(deviation: float) -> Change:
    def changed(image: Image.Image, generator: torch.Generator) -> Image.Image:
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        noise = torch.randn(pixels.shape, generator=generator)
        return F.to_pil_image((pixels + deviation * noise).clamp(0, 1))

    return changed


def _compressed(quality: int) -> Change:
    def changed(image: Image.Image, generator: torch.Generator) -> Image.Image:
        stored = BytesIO()
        image.save(stored, "JPEG", quality=quality)
        return Image.open(stored)

    return changed


def _brighter(factor: float) -> Change:
    return lambda image, generator: F.adjust_brightness(image, factor)


def _contrasted(factor: float) -> Change:
    return lambda image, generator: F.adjust_contrast(image, factor)


SHIFTS: dict[str, Change] = {
    "blur 2": _blurred(2),
    "blur 4": _blurred(4),
    "noise 0.1": _noisy(0.1),
    "noise 0.2": _noisy(0.2),
    "JPEG 20": _compressed(20),
    "JPEG 8": _compressed(8),
    "brightness 0.5": _brighter(0.5),
    "brightness 1.5": _brighter(1.5),
    "contrast 0.5": _contrasted(0.5),
    "contrast 0.25": _contrasted(0.25),
}
"""Name -> change of an upright RGB image; sigma of the blur in pixels of the image, deviation of the noise of 0..1."""


def shifted_split(data: str, split: str, name: str, folder: Path) -> Path:
    """A COCO folder with the one split of `data`, changed as `SHIFTS[name]` says; made once, the same every time."""
    target = folder / name.replace(" ", "-")
    if target.exists():
        return target
    dataset = load_detection_dataset(data, split)
    partial = target.with_suffix(".part")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    (partial / "annotations").mkdir()
    content = read_json(dataset.annotations_path)
    places = {image["id"]: image for image in content["images"]}
    for number, row in enumerate(dataset.dataset):
        image = decode_image(row).convert("RGB")
        places[row["image_id"]]["file_name"] = f"{number:06d}.png"
        generator = torch.Generator().manual_seed(number)
        SHIFTS[name](image, generator).save(partial / "images" / f"{number:06d}.png", compress_level=1)
    write_json(partial / "annotations" / f"instances_{split}.json", content)
    partial.rename(target)
    return target
