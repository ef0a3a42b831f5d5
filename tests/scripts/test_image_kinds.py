"""Turned, 16-bit and fractional images train, evaluate and predict as plain files of the same pictures, to the bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from drmm_hf.cli import main
from drmm_hf.data import generate_scenes
from drmm_hf.training import TrainConfig, train
from model_fixtures import save_small
from training.runs import fields, lines


def turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.getexif()[0x0112] = 8  # turned back by what undoes 6
    ImageOps.exif_transpose(image).save(path, exif=exif)


def with_values(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: Image.fromarray(change(np.asarray(image))).save(path)


KINDS: dict[str, tuple[str, str, Callable[[Image.Image, Path], None]]] = {
    "turned": ("RGB", "png", turned),
    "uint16": ("L", "png", with_values(lambda values: values.astype(np.uint16) * 257)),
    "fractions": ("L", "tif", with_values(lambda values: (values / 255).astype(np.float32))),
}


def rewrite(source: Path, folder: Path, mode: str, suffix: str, save: Callable[[Image.Image, Path], None]) -> Path:
    """The data set with other image files; sizes are those that the pixels have in them."""
    for place in ("annotations", "images"):
        (folder / place).mkdir(parents=True)
    for file in (source / "annotations").iterdir():
        content = json.loads(file.read_bytes())
        for image in content["images"]:
            name = f"{Path(image['file_name']).stem}.{suffix}"
            save(Image.open(source / "images" / image["file_name"]).convert(mode), folder / "images" / name)
            image["width"], image["height"] = Image.open(folder / "images" / name).size
            image["file_name"] = name
        (folder / "annotations" / file.name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_as_plain_files(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mode, suffix, save = KINDS[kind]
    scenes = generate_scenes(tmp_path / "scenes", num_train=6, num_val=3, image_size=(64, 96), max_object_size=30)
    plain = rewrite(scenes, tmp_path / "plain", mode, "png", lambda image, path: image.save(path))
    other = rewrite(scenes, tmp_path / "other", mode, suffix, save)
    model, found = save_small(tmp_path / "model"), []
    for data in (plain, other):
        train(TrainConfig(**fields(data, tmp_path / f"{data.name}-run", train_images=4, eval_split="val")))
        drawn = tmp_path / f"{data.name}-drawn"
        few: list[Any] = ["--model", model, "--top-k", "5", "--device", "cpu", "--output", drawn]
        assert main(list(map(str, ["predict", data / "images", *few]))) == 0
        predictions = json.loads((drawn / "predictions.json").read_bytes())
        found.append([{**one, "file_name": ""} for one in predictions])
    assert lines(tmp_path / "other-run") == lines(tmp_path / "plain-run")
    assert found[0] == found[1]
    capsys.readouterr()


def test_a_frame_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned(Image.new("RGB", (80, 60)), tmp_path / "photo.png")
    for frame, size in (("upright", (80, 60)), ("stored", (60, 80))):
        arguments = [tmp_path / "photo.png", "--model", save_small(tmp_path / "model"), "--image-frame", frame]
        assert main(list(map(str, ["predict", *arguments, "--output", tmp_path / frame]))) == 0
        assert Image.open(tmp_path / frame / "photo.png").size == size
    capsys.readouterr()
