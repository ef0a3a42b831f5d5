"""One image file to pixels: which frame, which range, and what is said of bad files."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import ImageOps

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import decode_image, open_image
from drmm_hf.data.images import decode_image_at_least, read_header

ORIENTATIONS = range(1, 9)
FORMATS = ["jpg", "png", "tif", "webp"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A smooth 203x101 JPEG (odd sides)."""
    return save(ramp(203, 101), tmp_path / "photo.jpg")


def ramp(width: int, height: int) -> PIL.Image.Image:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return PIL.Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def save(image: PIL.Image.Image, path: Path, orientation: int = 1) -> Path:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_read_upright_unless_annotations_are_of_the_stored_pixels(tmp_path, kind, orientation) -> None:
    path = save(ramp(64, 32), tmp_path / f"photo.{kind}", orientation)
    expected = ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB")
    header = read_header({"image": path})
    assert (header.stored, header.upright) == ((32, 64), expected.size[::-1])
    assert header.turned == (orientation != 1)
    for source in (path, {"bytes": path.read_bytes(), "path": None}, PIL.Image.open(path)):
        upright = decode_image({"image": source, "width": 64, "height": 32})  # a tool that wrote the stored size
        np.testing.assert_array_equal(np.asarray(upright), np.asarray(expected))
        assert not upright.getexif(), "nothing can turn it again"
    sizes = {"width": expected.width, "height": expected.height}
    assert decode_image({"image": path, **sizes}).size == expected.size
    stored = np.asarray(decode_image({"image": path, "image_frame": "stored", "width": 64, "height": 32}), dtype=int)
    assert np.abs(stored - np.asarray(ramp(64, 32))).max() < 20
    if orientation >= 5:
        with pytest.raises(ValueError, match=r"photo\."):
            decode_image({"image": path, "image_frame": "stored", **sizes})
    with pytest.raises(ValueError, match=r"photo\."):
        decode_image({"image": path, "width": 64, "height": 33})


@pytest.mark.parametrize("content", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_do_no_harm(tmp_path, content) -> None:
    ramp(64, 32).save(tmp_path / "photo.jpg", exif=content)
    assert open_image(tmp_path / "photo.jpg").size == (64, 32)
    assert not read_header({"image": tmp_path / "photo.jpg"}).turned


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(64, 32), (203, 101)])
def test_reduced_decoding_of_turned_images(tmp_path, orientation, size) -> None:
    path = save(ramp(*size), tmp_path / "photo.jpg", orientation)
    decoded = decode_image_at_least({"image": path}, lambda whole: (whole[0] // 2, whole[1] // 2))
    whole = open_image(path)
    assert decoded.size == whole.size[::-1]
    assert decoded.scale == ((1.0, 1.0) if size == (203, 101) and orientation > 1 else pytest.approx((0.5, 0.5)))
    difference = np.asarray(decoded.image.resize(whole.size), dtype=int) - np.asarray(whole)
    assert np.abs(difference).mean() < 5


def write(path: Path, pixels: Any, mode: str | None = None) -> Path:
    image = PIL.Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("uint16.png", np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16), [0, 1, 156, 255]),
        ("uint16.tif", np.array([[0, 257, 40_000, 65_535]], dtype=np.uint16), [0, 1, 156, 255]),
        ("int32.tif", np.array([[0, 257, 40_000, 65_535]], dtype=np.int32), [0, 1, 156, 255]),
        ("bytes.tif", np.array([[0, 7, 200, 255]], dtype=np.int32), [0, 7, 200, 255]),
        ("shares.tif", np.array([[0.0, 0.1, 0.5, 1.0]], dtype=np.float32), [0, 26, 128, 255]),
        ("fractions.tif", np.array([[0.0, 1.5, 99.7, 255.0]], dtype=np.float32), [0, 2, 100, 255]),
        ("grey.png", np.array([[0, 7, 200, 255]], dtype=np.uint8), [0, 7, 200, 255]),
        ("bits.png", np.array([[False, True, True, False]]), [0, 255, 255, 0]),
    ],
)
def test_every_range_becomes_8_bits(tmp_path, name, pixels, expected) -> None:
    image = open_image(write(tmp_path / name, pixels))
    assert image.mode == "RGB"
    assert np.asarray(image).tolist() == [[[value] * 3 for value in expected]]


@pytest.mark.parametrize("value", [-1.0, 255.5, np.nan, np.inf])
def test_values_out_of_range_are_refused(tmp_path, value) -> None:
    path = write(tmp_path / "deep.tif", np.array([[0.5, value]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"deep\.tif"):
        open_image(path)
    if np.isfinite(value):
        path = write(tmp_path / "deep.tif", np.array([[0, int(value * 300)]], dtype=np.int32))
        with pytest.raises(ValueError, match=r"deep\.tif"):
            open_image(path)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "LAB", "I;16"])
def test_training_and_the_processor_see_the_same_pixels(tmp_path, mode) -> None:
    """Transparent pixels over white, among other things."""
    image = ramp(24, 16).convert("L") if mode == "I;16" else ramp(24, 16)
    image = image.convert(mode)
    if mode == "LA":
        image.putalpha(ramp(24, 16).getchannel("R"))
    if mode == "RGBA":
        image.putalpha(ramp(24, 16).getchannel("R"))
    path = tmp_path / f"image.{'png' if mode in ('L', 'LA', 'P', '1', 'RGBA', 'I;16') else 'tif'}"
    if mode == "P":
        image.save(path, transparency=3)
    else:
        image.save(path)
    seen = DrmmImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_pad=False)(PIL.Image.open(path))
    ours = np.asarray(open_image(path)).transpose(2, 0, 1).astype(int)
    assert np.abs(np.asarray(seen["pixel_values"][0]) - ours).max() <= 1


@pytest.mark.parametrize("keep", [0.5, 0.02, 0.0])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_named(photo, tmp_path, keep, suffix) -> None:
    path = tmp_path / f"cut.{suffix}"
    PIL.Image.open(photo).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
        open_image(path)
    example = {"image": {"path": str(path), "bytes": None}, "image_id": 1}
    with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
        decode_image_at_least(example, lambda size: (20, 20))


def test_missing_and_foreign_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.jpg"):
        open_image(tmp_path / "text.jpg")


def test_sources(photo) -> None:
    expected = np.asarray(open_image(photo))
    content = photo.read_bytes()
    for image in (str(photo), photo, {"path": str(photo), "bytes": None}, PIL.Image.open(io.BytesIO(content))):
        np.testing.assert_array_equal(np.asarray(decode_image({"image": image})), expected)
    with pytest.raises(ValueError, match="image 7"):
        decode_image({"image": None, "image_id": 7})
    with pytest.raises(ValueError, match="image 8"):
        decode_image({"image": {"path": None, "bytes": content[:300]}, "image_id": 8})


@pytest.mark.parametrize(
    ("needed", "scale"),
    [((101, 203), 1.0), ((51, 102), 1.0), ((50, 101), 0.5), ((25, 50), 0.25), ((1, 1), 0.125)],
)
def test_reduced_decoding(photo, needed, scale) -> None:
    decoded = decode_image_at_least({"image": str(photo)}, lambda size: needed)
    assert decoded.size == (101, 203)
    assert decoded.scale == pytest.approx((scale, scale))
    assert decoded.image.width >= needed[1]
    assert decoded.image.height >= needed[0]
    # The left edge of the picture stays where it is: the ramp has the same slope in stored pixels.
    red = np.asarray(decoded.image)[..., 0].mean(axis=0)
    positions = (np.arange(len(red)) + 0.5) / decoded.scale[0]
    inside = positions < 200
    np.testing.assert_allclose(red[inside], (positions[inside] - 0.5) * 255 / 202, atol=4)


def test_files_without_reduced_decoding(tmp_path) -> None:
    PIL.Image.new("RGB", (80, 40)).save(tmp_path / "plain.png")
    decoded = decode_image_at_least({"image": tmp_path / "plain.png"}, lambda size: (5, 5))
    assert (decoded.image.size, decoded.scale) == ((80, 40), (1.0, 1.0))
