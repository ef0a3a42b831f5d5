"""The two augmentations: boxes follow the pixels, and every step is the documented one."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from drmm_hf.data import PaperTransform, TrainTransform, load_detection_dataset
from drmm_hf.data.transforms import View, canvas_size

PLAIN: dict[str, Any] = {"horizontal_flip": 0.0, "scale_range": (1.0, 1.0), "translate": 0.0, "color_jitter": 0.0}
SMALL: dict[str, Any] = {
    "shortest_edges": (48, 64, 80),
    "longest_edge": 133,
    "crop_shortest_edges": (40, 50, 60),
    "crop_size": (38, 60),
}
"""The defaults of `PaperTransform`, a tenth as large."""
EDGES = tuple(range(480, 801, 32))
BOTH = [TrainTransform((240, 320)), PaperTransform(**SMALL)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example(image: PIL.Image.Image, boxes: list, **objects: Any) -> dict[str, Any]:
    """A row for a PIL image with `boxes` in xywh, labels from 3 on."""
    objects = {"bbox": boxes, "category": list(range(3, 3 + len(boxes))), "iscrowd": [0] * len(boxes)} | objects
    return {"image": image, "image_id": 9, "width": image.width, "height": image.height, "objects": objects}


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int] = (480, 640)) -> dict[str, Any]:
    """A black image (height, width) with one white rectangle (xyxy), which is its object."""
    image = PIL.Image.new("RGB", (size[1], size[0]))
    image.paste((255, 255, 255), box)
    return example(image, [[box[0], box[1], box[2] - box[0], box[3] - box[1]]])


def smooth_image(size: tuple[int, int]) -> PIL.Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return PIL.Image.fromarray(noise).resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC)


def white_area(image: torch.Tensor) -> torch.Tensor:
    """Tight xyxy of the bright pixels of a (3, H, W) image."""
    bright = image.min(dim=0).values > 127
    rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def view_of(transform: PaperTransform, size: tuple[int, int], seed: int) -> View:
    return transform.view(size, torch.rand(8, generator=seeded(seed)).tolist())


@pytest.mark.parametrize("transform", BOTH)
def test_output(transform: Any) -> None:
    sample = transform(example(smooth_image((48, 64)), [[10, 5, 40, 30]]), seeded(0))
    assert list(sample) == ["image", "boxes", "labels", "image_id", "dropped_boxes"]
    assert [type(sample[name]) for name in ("image", "boxes", "labels")] == [torch.Tensor] * 3
    assert [sample[name].dtype for name in ("image", "boxes", "labels")] == [torch.uint8, torch.float32, torch.int64]
    assert sample["image"].shape[0] == 3
    assert sample["image"].is_contiguous()
    assert (sample["labels"].tolist(), sample["image_id"]) == ([3], 9)


@pytest.mark.parametrize("source", ["memory", "png", "jpg"])
@pytest.mark.parametrize("kind", ["affine", "paper"])
def test_boxes_follow_the_pixels(tmp_path: Path, kind: str, source: str) -> None:
    row = rectangle((180, 130, 533, 471), (601, 803))  # large enough for the JPEG decoder to give a smaller image
    if source != "memory":
        path = tmp_path / ("image.png" if source == "png" else "image.jpg")
        row["image"].save(path, quality=95)
        row["image"] = {"path": str(path), "bytes": None}
    options = {"vertical_flip": 0.5, "scale_range": (0.4, 1.6), "color_jitter": 0.0}
    transform = TrainTransform((237, 322), **options) if kind == "affine" else PaperTransform(**SMALL)
    widths = []
    for seed in range(40):
        sample = transform(row, seeded(seed))
        if len(sample["boxes"]):
            torch.testing.assert_close(sample["boxes"][0], white_area(sample["image"]), atol=0.8, rtol=0)
            widths.append(float(sample["boxes"][0, 2] - sample["boxes"][0, 0]))
    assert len(widths) > 30
    assert max(widths) > 1.5 * min(widths)


@pytest.mark.parametrize("transform", BOTH)
def test_randomness_comes_from_torch_only(transform: Any) -> None:
    row = rectangle((100, 50, 300, 250))
    first = transform(row, seeded(1))
    torch.manual_seed(1)
    second, third = transform(row), transform(row)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])
    assert second["image"].shape != third["image"].shape or not torch.equal(second["image"], third["image"])


@pytest.mark.parametrize("transform", BOTH)
def test_crowd_and_empty(transform: Any) -> None:
    row = example(smooth_image((48, 64)), [[0, 0, 64, 48], [0, 0, 64, 48]], iscrowd=[1, 0])
    assert transform(row)["labels"].tolist() == [4]
    sample = transform(example(smooth_image((48, 64)), []))
    assert (sample["boxes"].shape, sample["labels"].shape) == ((0, 4), (0,))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 2), (1, 1), (5, 4)])
@pytest.mark.parametrize(
    "transform",
    [TrainTransform((24, 32), translate=1.0), *(PaperTransform(**SMALL, crop_probability=p) for p in (0, 1))],
)
def test_extreme_images(transform: Any, size: tuple[int, int]) -> None:
    row = rectangle((0, 0, size[1], size[0]), size)
    for seed in range(5):
        sample = transform(row, seeded(seed))
        height, width = sample["image"].shape[1:]
        if isinstance(transform, TrainTransform):
            assert (height, width) == (24, 32)
            continue
        assert 1 <= min(height, width) <= max(height, width) <= 133
        assert (sample["image"] == 255).all()
        torch.testing.assert_close(sample["boxes"], torch.tensor([[0.0, 0, width, height]]), atol=1e-3, rtol=0)


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    translate=st.floats(0, 1),
    zoom=st.floats(1e-3, 20),
    draws=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=8, max_size=8),
)
def test_views_are_always_inside(height: int, width: int, translate: float, zoom: float, draws: list[float]) -> None:
    canvas = TrainTransform((240, 320), scale_range=(zoom, zoom), translate=translate).view((height, width), draws)
    paper = PaperTransform().view((height, width), draws)
    for view in (canvas, paper):
        left, top, right, bottom = view.source
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        left, top, right, bottom = view.target
        assert 0 <= left < right <= view.size[1]
        assert 0 <= top < bottom <= view.size[0]
        if min(right - left, bottom - top) >= 20 and min(height, width) >= 20:
            # The roundings of a side of 20 pixels at least, and of the image that is cropped.
            assert math.isclose(*view.scale, rel_tol=0.15)
    assert canvas.size == (240, 320)
    scale = zoom * min(240 / height, 320 / width)
    for axis, side in enumerate((width, height)):
        if min(side * scale, canvas.target[axis + 2] - canvas.target[axis]) >= 20:
            assert canvas.scale[axis] == pytest.approx(scale, rel=0.06)
    assert 1 <= min(paper.size) <= 800
    assert max(paper.size) <= 1333


@pytest.mark.parametrize("name", ["bccd", "coco"])
def test_real_data(real_data: Path, name: str) -> None:
    transform, before, after = TrainTransform((240, 320)), 0, 0
    for index, row in enumerate(load_detection_dataset(real_data / name, "val").dataset):
        boxes = transform(row, seeded(index))["boxes"]
        before, after = before + row["objects"]["iscrowd"].count(0), after + len(boxes)
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([320, 240])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 2).all()
    assert 0.8 * before < after <= before


# The canvas of one size


def test_plain_resize_is_torchvisions() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    sample = TrainTransform((240, 320), **PLAIN)(example(PIL.Image.fromarray(pixels), [[10, 20, 30, 40]]))
    expected = functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [240, 320], antialias=True)
    assert (sample["image"].int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(sample["boxes"], torch.tensor([[5.0, 10, 20, 30]]))


def test_flips_are_exact_mirrors() -> None:
    row = rectangle((100, 50, 300, 250))
    plain = TrainTransform((240, 320), **PLAIN)(row)
    across = TrainTransform((240, 320), **(PLAIN | {"horizontal_flip": 1.0}))(row)
    down = TrainTransform((240, 320), **PLAIN, vertical_flip=1.0)(row)
    assert torch.equal(across["image"], plain["image"].flip(2))
    assert torch.equal(down["image"], plain["image"].flip(1))
    assert across["boxes"].tolist() == [[170, 25, 270, 125]]
    assert down["boxes"].tolist() == [[50, 115, 150, 215]]


@pytest.mark.parametrize("color_jitter", [0.0, 1.0])
def test_zoom_out_pads_with_the_fill_color(color_jitter: float) -> None:
    options = PLAIN | {"scale_range": (0.5, 0.5), "color_jitter": color_jitter, "fill": (1, 2, 3)}
    sample = TrainTransform((240, 320), **options)(rectangle((0, 0, 640, 480)), seeded(3))
    x1, y1, x2, y2 = sample["boxes"][0].int().tolist()
    assert (x2 - x1, y2 - y1) == (160, 120)
    assert color_jitter or (sample["image"][:, y1:y2, x1:x2] == 255).all()
    outside = torch.ones((240, 320), dtype=torch.bool)
    outside[y1:y2, x1:x2] = False
    assert (sample["image"][:, outside] == torch.tensor([1, 2, 3])[:, None]).all()


@pytest.mark.parametrize(
    ("scale", "translate", "least", "greatest"),
    [(0.5, 0.0, (0, 5), (155, 160)), (0.5, 0.1, (0, 0), (180, 193)), (1.5, 0.0, (0, 0), (0, 0))],
)
def test_shift_covers_its_range(scale: float, translate: float, least: tuple, greatest: tuple) -> None:
    transform = TrainTransform((240, 320), **(PLAIN | {"scale_range": (scale, scale), "translate": translate}))
    row = rectangle((0, 0, 640, 480))
    lefts = [float(transform(row, seeded(seed))["boxes"][0, 0]) for seed in range(300)]
    assert least[0] <= min(lefts) <= least[1]
    assert greatest[0] <= max(lefts) <= greatest[1]


def test_aspect_ratio() -> None:
    row = rectangle((0, 0, 300, 300), (300, 300))
    kept = TrainTransform((240, 320), **PLAIN)(row)["boxes"][0]
    assert (kept[2:] - kept[:2]).tolist() == [240, 240]
    assert TrainTransform((240, 320), **PLAIN, keep_aspect=False)(row)["boxes"].tolist() == [[0, 0, 320, 240]]


def test_rules_for_removed_boxes() -> None:
    """The canvas shows half of the image at its own size; what is left of each box decides."""
    boxes = torch.tensor([[x, 100.0, 60, 50] for x in range(0, 580, 8)] + [[300.0, 200, 2.1, 50], [300, 200, 1.9, 50]])
    row = example(PIL.Image.new("RGB", (640, 480)), boxes.tolist(), category=list(range(len(boxes))))
    transform = TrainTransform((240, 320), **(PLAIN | {"scale_range": (2.0, 2.0)}))
    removed = 0
    for seed in range(20):
        sample = transform(row, seeded(seed))
        whole = (sample["boxes"][:, 2:] - sample["boxes"][:, :2] > torch.tensor([59.99, 49.99])).all(dim=1)
        if not whole.any():
            continue
        index = int(whole.nonzero()[0])
        shift = (sample["boxes"][index, :2] - boxes[sample["labels"][index], :2]).repeat(2)
        moved = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1) + shift
        clipped = moved.clamp(min=torch.zeros(4), max=torch.tensor([320.0, 240, 320, 240]))
        sides = clipped[:, 2:] - clipped[:, :2]
        share = sides.prod(dim=1) / boxes[:, 2:].prod(dim=1)
        kept = (share >= 0.25) & (sides >= 2).all(dim=1)
        assert sample["labels"].tolist() == kept.nonzero()[:, 0].tolist()
        torch.testing.assert_close(sample["boxes"], clipped[kept])
        removed += int((~kept & (share > 0)).sum())
    assert removed > 5


@pytest.mark.parametrize(
    ("landscape_share", "size", "expected"),
    [
        (1.0, {"shortest_edge": 96, "longest_edge": 128}, (96, 128)),
        (0.0, {"shortest_edge": 96, "longest_edge": 128}, (128, 96)),
        (0.5, {"shortest_edge": 96, "longest_edge": 128}, (128, 128)),
        (0.0, {"height": 64, "width": 96}, (64, 96)),
    ],
)
def test_the_canvas_lies_as_the_images_do(landscape_share: float, size: dict, expected: tuple) -> None:
    assert canvas_size(landscape_share, size) == expected


# The paper's augmentation of many sizes


def reference_resize(image: PIL.Image.Image, boxes: np.ndarray, shortest: int, longest: int) -> tuple[Any, np.ndarray]:
    """One resize as mmdet does it; boxes are float64 xyxy."""
    scale = min(longest / max(image.size), shortest / min(image.size))
    width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
    boxes = boxes * np.tile([width / image.width, height / image.height], 2)
    return image.resize((width, height), PIL.Image.Resampling.BILINEAR), boxes


def crop_of(view: View, size: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
    """The view's rectangle in pixels of the image resized to `resized` (height, width)."""
    return np.array(view.source) * np.tile([resized[1] / size[1], resized[0] / size[0]], 2)


@pytest.mark.parametrize("size", [(48, 64), (90, 61), (130, 197), (20, 90)])
@pytest.mark.parametrize("crop_probability", [0, 1])
def test_equals_the_steps(size: tuple[int, int], crop_probability: int) -> None:
    """Optional resize and crop, resize, flip: one after the other, as mmdet does them."""
    whole, (height, width) = smooth_image(size), size
    xyxy = np.array([[0, 0, width, height], [2.5, 3, width / 2, height / 3], [width / 3, 4, width - 1, height - 2]])
    row = example(whole, np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1).tolist())
    for seed in range(12):
        first, shortest = SMALL["crop_shortest_edges"][seed % 3], SMALL["shortest_edges"][seed // 4]
        options = SMALL | {"crop_shortest_edges": (first,), "shortest_edges": (shortest,)}
        transform = PaperTransform(**options, crop_probability=crop_probability)
        view, image, boxes = view_of(transform, size, seed), whole, xyxy
        if crop_probability:
            image, boxes = reference_resize(image, boxes, first, 133)
            crop = crop_of(view, size, (image.height, image.width))
            assert np.abs(crop - crop.round()).max() < 1e-9
            image = image.crop(crop.round().astype(int).tolist())
            boxes = (boxes - np.tile(crop[:2], 2)).clip(0, np.tile(image.size, 2))
        image, boxes = reference_resize(image, boxes, shortest, 133)
        boxes = boxes.clip(0, np.tile(image.size, 2))
        if view.flip[0]:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = np.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], axis=1)
        expected, sample = functional.pil_to_tensor(image), transform(row, seeded(seed))
        assert sample["image"].shape == expected.shape
        assert (sample["image"].float() - expected.float()).abs().mean() < 2
        shown = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        assert sample["labels"].tolist() == (3 + np.flatnonzero(shown)).tolist()
        boxes = boxes[shown]
        np.testing.assert_allclose(sample["boxes"].numpy(), boxes, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((427, 640), (800, 1199)), ((333, 1000), (444, 1333)), ((640, 361), (1333, 752))],
)
def test_one_size_schedule(size: tuple[int, int], expected: tuple[int, int]) -> None:
    views = [view_of(PaperTransform(multi_scale=False), size, seed) for seed in range(40)]
    assert {view.size for view in views} == {expected}
    assert {view.source for view in views} == {(0, 0, size[1], size[0])}
    assert {view.flip for view in views} == {(True, False), (False, False)}


def test_one_size_boxes_are_clipped_and_flipped() -> None:
    row = example(smooth_image((30, 40)), [[4, 3, 10, 9], [30, 20, 30, 30], [45, 3, 5, 5]])
    plain, mirrored = (PaperTransform(**SMALL, multi_scale=False, horizontal_flip=p)(row) for p in (0, 1))
    scale_x, scale_y = 107 / 40, 80 / 30
    x1, y1, x2, y2 = 4 * scale_x, 3 * scale_y, 14 * scale_x, 12 * scale_y
    x3, y3 = 30 * scale_x, 20 * scale_y
    assert plain["image"].shape == (3, 80, 107)
    torch.testing.assert_close(plain["boxes"], torch.tensor([[x1, y1, x2, y2], [x3, y3, 107, 80]]))
    torch.testing.assert_close(mirrored["boxes"], torch.tensor([[107 - x2, y1, 107 - x1, y2], [0, y3, 107 - x3, 80]]))
    assert plain["labels"].tolist() == mirrored["labels"].tolist() == [3, 4]
    assert torch.equal(mirrored["image"], plain["image"].flip(2))


def test_branches_sizes_and_flips_are_all_drawn() -> None:
    views = [view_of(PaperTransform(), (480, 640), seed) for seed in range(1000)]
    resized = [view for view in views if view.source == (0, 0, 640, 480)]
    cropped = [view for view in views if view.source != (0, 0, 640, 480)]
    assert 430 < len(cropped) < 570
    assert 430 < sum(view.flip[0] for view in views) < 570
    assert 180 < sum(view.flip[0] for view in cropped) < 320
    for branch in (resized, cropped):
        # A long crop may be limited by its longer side instead.
        counts = [sum(min(view.size) == edge for view in branch) for edge in EDGES]
        assert min(counts) > 20
        assert max(counts) < 90
        assert all(max(view.size) <= 1333 and (min(view.size) in EDGES or max(view.size) == 1333) for view in branch)


def test_both_sizes_of_the_crop_branch_are_independent() -> None:
    # Crops are squares of 384 pixels, so their height in stored pixels gives the first size away.
    transform = PaperTransform(crop_probability=1, crop_size=(384, 384))
    views = [view_of(transform, (480, 640), seed) for seed in range(500)]
    pairs = {(round(384 * 480 / (view.source[3] - view.source[1])), view.size) for view in views}
    assert pairs == {(first, (edge, edge)) for first in (400, 500, 600) for edge in EDGES}


def test_crops_cover_their_range() -> None:
    transform = PaperTransform(crop_probability=1, crop_shortest_edges=(500,))
    size, resized = (480, 640), (500, 667)
    exact = np.array([crop_of(view_of(transform, size, seed), size, resized) for seed in range(2000)])
    np.testing.assert_allclose(exact, exact.round(), atol=1e-9)
    crops = exact.round().astype(int)
    widths, heights = (crops[:, 2:] - crops[:, :2]).T
    assert set(heights) == set(range(384, 501))  # not more than the image has
    assert set(widths) == set(range(384, 601))
    assert abs(widths.mean() - 492) < 5
    assert abs(np.corrcoef(widths, heights)[0, 1]) < 0.1
    assert (crops.min(), crops[:, 2].max(), crops[:, 3].max()) == (0, 667, 500)
    np.testing.assert_allclose(np.histogram(crops[:, 0] / (667 - widths), 4, (0, 1))[0], 500, atol=80)


def test_boxes_that_only_touch_are_removed() -> None:
    boxes = [[64, 3, 5, 5], [3, 3, 0, 9], [-5, 3, 5, 9], [63.9, 3, 5, 5]]
    sample = PaperTransform(**SMALL, multi_scale=False)(example(smooth_image((48, 64)), boxes))
    assert sample["labels"].tolist() == [6]
