import io

import numpy as np
import PIL.Image
import pytest

from drmm_hf.data import decode_image, open_image
from drmm_hf.data.images import decode_image_at_least


@pytest.fixture
def photo(tmp_path):
    """A smooth 203x101 JPEG (odd sides)."""
    across, down = np.meshgrid(np.linspace(0, 255, 203), np.linspace(0, 255, 101))
    pixels = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    path = tmp_path / "photo.jpg"
    PIL.Image.fromarray(pixels).save(path, quality=95)
    return path


def test_exif_orientation_is_not_applied_and_not_kept(photo):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.open(photo).save(photo, exif=exif)
    assert PIL.Image.open(photo).getexif()[0x0112] == 6
    image = decode_image({"image": photo, "height": 101, "width": 203})
    assert image.size == (203, 101)
    assert len(image.getexif()) == 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_everything_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    PIL.Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.asarray(image).min() == 255


def test_more_than_8_bits_is_refused(tmp_path):
    path = tmp_path / "deep.png"
    PIL.Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"deep\.png"):
        open_image(path)


@pytest.mark.parametrize("keep", [0.5, 0.02, 0.0])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_named(photo, tmp_path, keep, suffix):
    path = tmp_path / f"cut.{suffix}"
    PIL.Image.open(photo).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
        open_image(path)
    example = {"image": {"path": str(path), "bytes": None}, "image_id": 1}
    with pytest.raises(ValueError, match=rf"cut\.{suffix}"):
        decode_image_at_least(example, lambda size: (20, 20))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.jpg"):
        open_image(tmp_path / "text.jpg")


def test_size_must_be_the_annotated_one(photo):
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        decode_image({"image": photo, "height": 101, "width": 200})
    with pytest.raises(ValueError, match=r"photo\.jpg.*EXIF"):
        decode_image({"image": {"path": str(photo), "bytes": None}, "width": 101, "height": 203})


def test_sources(photo):
    expected = np.asarray(open_image(photo))
    content = photo.read_bytes()
    for image in (
        str(photo),
        photo,
        {"path": str(photo), "bytes": None},
        {"path": None, "bytes": content},
        PIL.Image.open(io.BytesIO(content)),
    ):
        np.testing.assert_array_equal(np.asarray(decode_image({"image": image})), expected)
    with pytest.raises(ValueError, match="image 7"):
        decode_image({"image": None, "image_id": 7})
    with pytest.raises(ValueError, match="image 8"):
        decode_image({"image": {"path": None, "bytes": content[:300]}, "image_id": 8})


@pytest.mark.parametrize(
    ("needed", "scale"),
    [((101, 203), 1.0), ((51, 102), 1.0), ((50, 101), 0.5), ((25, 50), 0.25), ((1, 1), 0.125)],
)
def test_reduced_decoding(photo, needed, scale):
    decoded = decode_image_at_least({"image": str(photo)}, lambda stored: needed)
    assert decoded.stored_size == (101, 203)
    assert decoded.scale == pytest.approx((scale, scale))
    assert decoded.image.width >= needed[1]
    assert decoded.image.height >= needed[0]
    # The left edge of the picture stays where it is: the ramp has the same slope in stored pixels.
    red = np.asarray(decoded.image)[..., 0].mean(axis=0)
    positions = (np.arange(len(red)) + 0.5) / decoded.scale[0]
    inside = positions < 200
    np.testing.assert_allclose(red[inside], (positions[inside] - 0.5) * 255 / 202, atol=4)


def test_files_without_reduced_decoding(tmp_path):
    PIL.Image.new("RGB", (80, 40)).save(tmp_path / "plain.png")
    decoded = decode_image_at_least({"image": tmp_path / "plain.png"}, lambda stored: (5, 5))
    assert (decoded.image.size, decoded.scale) == ((80, 40), (1.0, 1.0))
