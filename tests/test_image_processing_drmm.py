"""The image processor: sizes, padding, labels, input kinds, saving, and what it refuses."""

import base64
import functools
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from drmm_hf.image_processing_drmm import DrmmImageProcessor, keep_ratio_size

ORIENTATION = 0x0112
SMALL = {"shortest_edge": 64, "longest_edge": 100}


def image_of(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def annotation_of(*boxes: list[float], image_id: int = 7, **fields: Any) -> dict[str, Any]:
    """One image's annotation; `fields` go into every record."""
    records = [{"bbox": box, "category_id": 1, "area": box[2] * box[3], "iscrowd": 0, **fields} for box in boxes]
    return {"image_id": image_id, "annotations": records}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67 rounds up
        ((427, 640), (800, 1199)),  # 1199.06 rounds down
        ((640, 427), (1199, 800)),
        ((375, 500), (800, 1067)),
        ((300, 1000), (400, 1333)),  # the long side limits: 399.9
        ((1000, 300), (1333, 400)),
        ((333, 500), (800, 1201)),  # 1201.2
        ((800, 1333), (800, 1333)),
        ((1600, 2000), (800, 1000)),
        ((1, 3000), (1, 1333)),  # 0.44 + 0.5 would be an image without pixels
    ],
)
def test_keep_ratio_size_is_the_rule_of_the_released_code(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert keep_ratio_size(*size, 800, 1333) == expected


def test_defaults() -> None:
    assert keep_ratio_size(480, 640, 800, None) == (800, 1067)
    assert keep_ratio_size(480, 640, None, 320) == (240, 320)
    batch = DrmmImageProcessor()(image_of(480, 640), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 800, 1088)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == torch.int64
    assert batch["pixel_mask"].sum() == 800 * 1067
    assert "labels" not in batch


def test_values_are_normalized_with_imagenet_statistics_and_padding_is_zero() -> None:
    gray = np.full((30, 40, 3), 128, dtype=np.uint8)
    batch = DrmmImageProcessor(do_resize=False)(gray, return_tensors="pt")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (128 / 255 - mean) / std
    torch.testing.assert_close(batch["pixel_values"][0, :, 10, 10], expected)
    assert batch["pixel_values"].shape == (1, 3, 32, 64)
    assert batch["pixel_values"][0, :, 30:].abs().max() == 0
    assert batch["pixel_values"][0, :, :, 40:].abs().max() == 0
    assert batch["pixel_values"][0, :, :30, :40].abs().min() > 0


def test_batch_of_different_sizes() -> None:
    processor = DrmmImageProcessor(size=SMALL)
    images = [image_of(50, 80), image_of(90, 60), image_of(64, 64)]
    batch = processor(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, 96, 128)
    sizes = [(63, 100), (96, 64), (64, 64)]
    for image, values, mask, (height, width) in zip(images, *batch.values(), sizes, strict=True):
        assert keep_ratio_size(*image.size[::-1], 64, 100) == (height, width)
        assert mask[:height, :width].all()
        assert mask.sum() == height * width
        alone = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(values[:, : alone.shape[1], : alone.shape[2]], alone)


def test_labels_by_hand() -> None:
    annotation = annotation_of([10, 5, 20, 30], [0, 0, 40, 50])
    batch = DrmmImageProcessor(size=SMALL)(image_of(50, 40), annotation, return_tensors="pt")
    label = batch["labels"][0]
    assert label["image_id"].tolist() == [7]
    assert label["class_labels"].tolist() == [1, 1]
    assert label["class_labels"].dtype == torch.int64
    assert label["boxes"].dtype == torch.float32
    torch.testing.assert_close(label["boxes"], torch.tensor([[0.5, 0.4, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]]))
    assert label["orig_size"].tolist() == [50, 40]
    assert label["size"].tolist() == [80, 64]
    torch.testing.assert_close(label["area"], torch.tensor([600.0, 2000.0]) * (80 / 50) * (64 / 40))
    assert label["iscrowd"].tolist() == [0, 0]


def test_padding_changes_neither_boxes_nor_sizes() -> None:
    processor = DrmmImageProcessor(size=SMALL)
    image, annotation = image_of(50, 80), annotation_of([10, 5, 20, 30])
    large, large_annotation = image_of(100, 40), annotation_of([1, 2, 3, 4], image_id=8)
    alone = processor(image, annotation, return_tensors="pt")["labels"][0]
    together = processor([image, large], [annotation, large_annotation], return_tensors="pt")["labels"][0]
    padded = processor(image, annotation, pad_size={"height": 256, "width": 192}, return_tensors="pt")["labels"][0]
    torch.testing.assert_close(dict(together), dict(alone), rtol=0, atol=0)
    torch.testing.assert_close(dict(padded), dict(alone), rtol=0, atol=0)


def test_pad_size_makes_batches_of_separate_calls_stackable() -> None:
    processor = DrmmImageProcessor(size=SMALL, pad_size={"height": 128, "width": 128})
    parts = [processor(image_of(*size), return_tensors="pt") for size in ((50, 80), (80, 50), (64, 64))]
    assert {tuple(part["pixel_values"].shape) for part in parts} == {(1, 3, 128, 128)}
    assert [int(part["pixel_mask"].sum()) for part in parts] == [63 * 100, 100 * 63, 64 * 64]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size_divisor": 1}, (64, 85)),
        ({"size_divisor": 8}, (64, 88)),
        ({"size_divisor": 128}, (128, 128)),
        ({"do_pad": False}, (64, 85)),
        ({"size": {"height": 96, "width": 64}}, (96, 64)),  # exactly, and distorted
    ],
)
def test_size_of_the_canvas(options: dict[str, Any], expected: tuple[int, int]) -> None:
    image = image_of(48, 64)
    saved = DrmmImageProcessor(**{"size": SMALL, **options})(image, return_tensors="pt")
    given = DrmmImageProcessor(size=SMALL)(image, **options, return_tensors="pt")
    for batch in (saved, given):
        assert batch["pixel_values"].shape == (1, 3, *expected)
        assert batch["pixel_mask"].shape == (1, *expected)
        assert batch["pixel_mask"].sum() == min(expected[0], 96) * expected[1] if "size" in options else 64 * 85


def pixel(image: Any, **options: Any) -> list[float]:
    """The first pixel, in 0..255, after conversion to RGB."""
    processor = DrmmImageProcessor(do_resize=False, do_normalize=False, do_rescale=False, **options)
    return processor(image, return_tensors="pt")["pixel_values"][0, :, 0, 0].tolist()


def filled(shape: tuple[int, ...], value: Any, dtype: Any = np.uint8) -> np.ndarray:
    array = np.zeros(shape, dtype=dtype)
    array[...] = value
    return array


PALETTE = Image.new("P", (40, 30), 1)
PALETTE.putpalette([0, 0, 0, 200, 10, 20])
RED, GRAY = (200, 10, 20), (77, 77, 77)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (40, 30), RED), RED),
        (filled((30, 40, 3), RED), RED),
        (torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, 30, 40), RED),
        (Image.new("RGBA", (40, 30), (*RED, 255)), RED),
        (filled((30, 40, 4), [*RED, 255]), RED),
        (PALETTE, RED),
        (Image.new("L", (40, 30), 77), GRAY),
        (filled((30, 40), 77), GRAY),
        ([filled((30, 40), 77)], GRAY),
        (torch.full((30, 40), 77), GRAY),
        (filled((30, 40, 1), 77), GRAY),
        (torch.full((1, 30, 40), 77, dtype=torch.uint8), GRAY),
        (Image.new("1", (40, 30), 1), (255, 255, 255)),
        (filled((30, 40), True, bool), (255, 255, 255)),
    ],
)
def test_image_kinds_become_rgb(image: Any, expected: tuple[int, ...]) -> None:
    assert pixel(image) == list(expected)


def test_transparency_lies_over_white() -> None:
    expected = [228.0, 128.0, 178.0]  # alpha 128/255 over white
    assert pixel(Image.new("RGBA", (40, 30), (200, 0, 100, 128))) == pytest.approx(expected, abs=1)
    assert pixel(filled((30, 40, 4), [200, 0, 100, 128])) == pytest.approx(expected, abs=1)
    assert pixel(Image.new("LA", (40, 30), (100, 0))) == [255.0] * 3
    scaled = filled((30, 40, 4), [0.5, 0.0, 1.0, 0.5], np.float32)
    assert pixel(scaled) == pytest.approx([0.75, 0.5, 1.0])


def test_sixteen_bit_images_become_eight_bit() -> None:
    values = filled((30, 40), 257 * 100, np.uint16)
    assert pixel(values) == [100.0] * 3
    assert pixel(Image.fromarray(values)) == [100.0] * 3
    assert pixel(Image.fromarray(values.astype(np.int32))) == [100.0] * 3
    assert pixel(Image.fromarray(filled((30, 40), 100, np.int32))) == [100.0] * 3
    assert pixel(filled((30, 40, 3), 65535, np.uint16)) == [255.0] * 3


def _encoded(image: Image.Image) -> bytes:
    image.save(content := io.BytesIO(), "png")
    return content.getvalue()


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, Image.Image]:
    """A file whose EXIF data say that it lies on its side, and the upright picture."""
    stored = image_of(50, 80)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored.save(tmp_path / "photo of a dog.png", exif=exif)
    return tmp_path / "photo of a dog.png", stored.transpose(Image.Transpose.ROTATE_270)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_whatever_brings_an_image_it_is_upright(photo: tuple[Path, Image.Image], server: str) -> None:
    path, upright = photo
    data = path.read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    kinds = [
        Image.open(path),
        str(path),
        path,
        data,
        io.BytesIO(data),
        memoryview(data),
        f"{server}/{quote(path.name)}",
        uri,
        load_image(str(path)),
    ]
    processor, annotation = DrmmImageProcessor(size=SMALL), annotation_of([10, 5, 20, 30])
    expected = processor(upright, annotation, return_tensors="pt")
    assert expected["labels"][0]["orig_size"].tolist() == [80, 50]
    for kind in kinds:
        batch = processor(kind, annotation, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"]), kind
        assert torch.equal(batch["labels"][0]["orig_size"], expected["labels"][0]["orig_size"])
        assert torch.equal(batch["labels"][0]["boxes"], expected["labels"][0]["boxes"])
    assert torch.equal(processor(kinds, return_tensors="pt")["pixel_values"][3], expected["pixel_values"][0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image_of(40, 60).save(tmp_path / "image.jpg", exif=exif, quality=100)
    opened = Image.open(tmp_path / "image.jpg")
    assert pixel(opened) == pixel(tmp_path / "image.jpg") == pixel(np.array(load_image(opened)))


def test_what_is_no_file_is_named(tmp_path: Path, server: str) -> None:
    (tmp_path / "text.png").write_text("no image")
    for missing in (str(tmp_path / "none.jpg"), tmp_path / "none.jpg", "none.jpg", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=Path(missing).name):
            DrmmImageProcessor(size=SMALL)(missing)
    (tmp_path / "half.png").write_bytes(_encoded(image_of(50, 80))[:900])
    for broken in (tmp_path / "text.png", tmp_path / "half.png", f"{server}/none.jpg"):
        with pytest.raises(ValueError, match=str(broken).rsplit("/", 1)[1]):
            DrmmImageProcessor(size=SMALL)([image_of(9, 9), broken])
    with pytest.raises(ValueError, match="A") as error:  # base64 of an image, say
        DrmmImageProcessor(size=SMALL)("A" * 9000)
    assert len(str(error.value)) < 300


def test_arrays_however_they_lie_in_memory() -> None:
    values = np.array(image_of(20, 30))
    processor = DrmmImageProcessor(size=SMALL)
    arrays = [values[..., ::-1], np.flipud(values), np.fliplr(values), values[::2, ::3], np.asfortranarray(values)]
    arrays += [values.transpose(2, 0, 1), values[..., 0][::-1]]
    arrays += [values.astype(dtype) for dtype in (np.longdouble, np.float64, np.float16, ">f4", np.int64, np.uint32)]
    arrays += [values.astype(">u2") * np.array(257, ">u2"), values.astype(np.int16)[::-1]]
    locked = values.copy()
    locked.setflags(write=False)
    for array in [*arrays, locked]:
        plain = array // 257 if array.dtype.itemsize == 2 and array.dtype.kind == "u" else array
        expected = processor(np.array(plain, dtype=np.uint8, order="C"), return_tensors="pt")["pixel_values"]
        found = processor(array, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(
            found, expected, rtol=0, atol=0.02
        )  # half a step of 255 where floats are not rounded


def test_save_and_load(tmp_path: Path) -> None:
    processor = DrmmImageProcessor(size=SMALL, size_divisor=16, pad_size={"height": 112, "width": 128})
    processor.auto_map = {"AutoImageProcessor": "image_processing_drmm.DrmmImageProcessor"}
    processor.save_pretrained(tmp_path)
    loaded = DrmmImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = image_of(50, 80)
    batches = [one(image, return_tensors="pt")["pixel_values"] for one in (processor, loaded)]
    assert torch.equal(*batches)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size_divisor"] == 16
    assert saved["image_processor_type"] == "DrmmImageProcessor"
    assert "auto_map" not in saved, "only where the code is saved with it"


@pytest.mark.parametrize(
    "options",
    [
        {"pad_size": {"height": 64, "width": 64}},  # too small for the resized images
        {"pad_size": {"height": 64}},
        {"pad_size": {"height": 0, "width": 64}},
        {"do_pad": False},
        {"do_pad": "no"},
        {"do_resize": 3},
        {"size_divisor": 0},
        {"size_divisor": "a"},
        {"size": {"height": "a"}},
        {"size": {"height": -3, "width": 8}},
        {"size": "large"},
        {"size": []},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5, [0.5], 0.5]},
        {"image_mean": [float("nan")] * 3},
        {"image_mean": [10**400] * 3},
        {"image_std": [0.0, 0.5, 0.5]},
        {"rescale_factor": 0},
        {"resample": "bilinear"},
        {"resample": 17},
    ],
)
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DrmmImageProcessor(**{"size": SMALL, **options})([image_of(50, 80), image_of(80, 50)])


@pytest.mark.parametrize(
    "images",
    [
        [],
        np.zeros((30, 40, 5), np.uint8),
        np.zeros((0, 40, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((8, 8, 3), np.complex64),
        np.zeros((8, 8, 3), object),
        np.full((8, 8, 3), np.nan),
        torch.full((3, 8, 8), torch.inf),
        np.full((8, 8, 3), 1e300),
        np.full((8, 8, 3), 4000, np.int32),  # neither 8-bit nor declared as 16-bit
        "",
        7,
    ],
)
def test_what_is_no_image(images: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="image"):
        DrmmImageProcessor(size=SMALL)(images)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_channels_need_the_conversion(mode: str) -> None:
    images = [Image.new(mode, (8, 8)), Image.new("RGB", (8, 8))]
    with pytest.raises(ValueError, match="do_convert_rgb"):
        DrmmImageProcessor(size=SMALL, do_convert_rgb=False)(images)


@pytest.mark.parametrize("size", [(9, 3), (7, 1), (3, 4), (1, 9)])
def test_pictures_of_few_rows_are_not_taken_for_channels(size: tuple[int, int]) -> None:
    """An array of 3 rows looks as if its channels came first; a picture knows better."""
    processor = DrmmImageProcessor(do_resize=False, do_normalize=False, do_pad=False)
    values = processor(Image.new("RGB", size, (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, size[1], size[0])
    assert values[0].amax((1, 2)).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("padding", [{}, {"size_divisor": 1}, {"pad_size": {"height": 40, "width": 72}}])
def test_a_training_batch_of_augmented_images(do_normalize: bool, do_rescale: bool, padding: dict[str, Any]) -> None:
    """Tensors that are resized already: each is scaled by the processor's own settings, and the padding is zero."""
    mean, std, factor = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0], 1 / 100
    processor = DrmmImageProcessor(
        image_mean=mean,
        image_std=std,
        rescale_factor=factor,
        do_normalize=do_normalize,
        do_rescale=do_rescale,
        **padding,
    )
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 50), (30, 70), (40, 70))]
    before = [image.clone() for image in images]
    annotations = [annotation_of([1, 2, 10, 20], [3, 4, 5, 6]), annotation_of(), annotation_of([0, 0, 99, 99])]
    batch = processor(images=images, annotations=annotations, do_resize=False, return_tensors="pt", device="cpu")
    assert all(map(torch.equal, images, before))
    canvas = {"size_divisor": (40, 70), "pad_size": (40, 72)}.get(next(iter(padding), ""), (64, 96))
    assert batch["pixel_values"].shape == (3, 3, *canvas)
    assert batch["pixel_values"].dtype == torch.float32
    for values, mask, image in zip(batch["pixel_values"], batch["pixel_mask"], images, strict=True):
        height, width = image.shape[-2:]
        expected = image * factor if do_rescale else image.float()
        if do_normalize:
            expected = (expected - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(values[:, :height, :width], expected, rtol=1e-5, atol=1e-5)
        assert mask[:height, :width].all()
        assert int(mask.sum()) == height * width
        assert not values[:, mask == 0].any()
    assert [len(label["boxes"]) for label in batch["labels"]] == [2, 0, 1]
    torch.testing.assert_close(batch["labels"][0]["boxes"][0], torch.tensor([6 / 50, 12 / 40, 10 / 50, 20 / 40]))
    assert batch["labels"][2]["boxes"].tolist() == [[0.5, 0.5, 1, 1]]


@pytest.mark.parametrize("image", [np.full((9, 9), 0.2, np.float32), np.full((9, 9), 51.0, np.float32)])
def test_pictures_of_fractions_have_the_range_that_they_fill(image: np.ndarray) -> None:
    assert pixel(Image.fromarray(image)) == [51.0] * 3
