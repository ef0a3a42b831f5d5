import math

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from drmm_hf.data import PaperTransform

EDGES = tuple(range(480, 801, 32))
SMALL = {
    "shortest_edges": (48, 64, 80),
    "longest_edge": 133,
    "crop_shortest_edges": (40, 50, 60),
    "crop_size": (38, 60),
}
"""The default settings, a tenth as large."""


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def example_of(image, boxes, **objects):
    """A row for a PIL image with `boxes` in xywh, labels from 3 on."""
    objects = {"bbox": boxes, "category": list(range(3, 3 + len(boxes))), "iscrowd": [0] * len(boxes)} | objects
    return {"image": image, "image_id": 9, "width": image.width, "height": image.height, "objects": objects}


def smooth_image(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return PIL.Image.fromarray(noise).resize((size[1], size[0]), PIL.Image.Resampling.BICUBIC)


def rectangle_image(box, size):
    image = PIL.Image.new("RGB", (size[1], size[0]))
    image.paste((255, 255, 255), box)
    return image


def white_area(image):
    """Tight xyxy of the bright pixels of a (3, H, W) image."""
    bright = image.min(dim=0).values > 127
    rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def reference_resize(image, boxes, shortest, longest):
    """One resize as mmdet does it; boxes are float64 xyxy."""
    scale = min(longest / max(image.size), shortest / min(image.size))
    width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
    boxes = boxes * np.tile([width / image.width, height / image.height], 2)
    return image.resize((width, height), PIL.Image.Resampling.BILINEAR), boxes


def reference(image, boxes, *, longest, shortest, flip, first=None, crop=None):
    """The pipeline step by step: optional resize to `first` and `crop` (xyxy there), resize, flip."""
    if crop is not None:
        image, boxes = reference_resize(image, boxes, first, longest)
        image = image.crop(crop)
        boxes = (boxes - np.tile(crop[:2], 2)).clip(0, np.tile(image.size, 2))
    image, boxes = reference_resize(image, boxes, shortest, longest)
    boxes = boxes.clip(0, np.tile(image.size, 2))
    if flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = np.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], axis=1)
    return functional.pil_to_tensor(image), boxes


def view_of(transform, size, seed):
    return transform.view(size, torch.rand(8, generator=seeded(seed)).tolist())


def crop_of(view, size, resized):
    """The view's rectangle in pixels of the image resized to `resized` (height, width)."""
    return np.array(view.source) * np.tile([resized[1] / size[1], resized[0] / size[0]], 2)


def test_output():
    sample = PaperTransform(**SMALL)(example_of(smooth_image((48, 64)), [[10, 5, 40, 30]]), seeded(0))
    assert list(sample) == ["image", "boxes", "labels", "image_id"]
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape[0] == 3
    assert sample["image"].is_contiguous()
    assert sample["boxes"].dtype == torch.float32
    assert sample["labels"].dtype == torch.int64
    assert sample["labels"].tolist() == [3]
    assert sample["image_id"] == 9


@pytest.mark.parametrize("size", [(48, 64), (90, 61), (130, 197), (20, 90)])
@pytest.mark.parametrize("crop_probability", [0, 1])
def test_equals_the_steps(size, crop_probability):
    image = smooth_image(size)
    height, width = size
    xyxy = np.array([[0, 0, width, height], [2.5, 3, width / 2, height / 3], [width / 3, 4, width - 1, height - 2]])
    example = example_of(image, np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1).tolist())
    for seed in range(12):
        first, shortest = SMALL["crop_shortest_edges"][seed % 3], SMALL["shortest_edges"][seed // 4]
        options = SMALL | {"crop_shortest_edges": (first,), "shortest_edges": (shortest,)}
        transform = PaperTransform(**options, crop_probability=crop_probability)
        view = view_of(transform, size, seed)
        steps = {"longest": 133, "shortest": shortest, "flip": view.flip}
        if crop_probability:
            resized = reference_resize(image, xyxy, first, 133)[0]
            crop = crop_of(view, size, (resized.height, resized.width))
            assert np.abs(crop - crop.round()).max() < 1e-9
            steps |= {"first": first, "crop": tuple(crop.round().astype(int).tolist())}
        expected, boxes = reference(image, xyxy, **steps)
        sample = transform(example, seeded(seed))
        assert sample["image"].shape == expected.shape
        assert (sample["image"].float() - expected.float()).abs().mean() < 2
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
        np.testing.assert_allclose(sample["boxes"].numpy(), boxes, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((427, 640), (800, 1199)), ((333, 1000), (444, 1333)), ((640, 361), (1333, 752))],
)
def test_one_size_schedule(size, expected):
    transform = PaperTransform(multi_scale=False)
    views = [view_of(transform, size, seed) for seed in range(40)]
    assert {view.size for view in views} == {expected}
    assert {view.source for view in views} == {(0, 0, size[1], size[0])}
    assert {view.flip for view in views} == {True, False}


def test_one_size_boxes_are_clipped_and_flipped():
    image = smooth_image((30, 40))
    example = example_of(image, [[4, 3, 10, 9], [30, 20, 30, 30], [45, 3, 5, 5]])
    options = SMALL | {"multi_scale": False}
    plain = PaperTransform(**options, horizontal_flip=0)(example)
    mirrored = PaperTransform(**options, horizontal_flip=1)(example)
    scale_x, scale_y = 107 / 40, 80 / 30
    x1, y1, x2, y2 = 4 * scale_x, 3 * scale_y, 14 * scale_x, 12 * scale_y
    x3, y3 = 30 * scale_x, 20 * scale_y
    assert plain["image"].shape == (3, 80, 107)
    torch.testing.assert_close(plain["boxes"], torch.tensor([[x1, y1, x2, y2], [x3, y3, 107, 80]]))
    torch.testing.assert_close(mirrored["boxes"], torch.tensor([[107 - x2, y1, 107 - x1, y2], [0, y3, 107 - x3, 80]]))
    assert plain["labels"].tolist() == mirrored["labels"].tolist() == [3, 4]
    assert torch.equal(mirrored["image"], plain["image"].flip(2))


def test_branches_sizes_and_flips_are_all_drawn():
    transform, size = PaperTransform(), (480, 640)
    views = [view_of(transform, size, seed) for seed in range(1000)]
    resized = [view for view in views if view.source == (0, 0, 640, 480)]
    cropped = [view for view in views if view.source != (0, 0, 640, 480)]
    assert 430 < len(cropped) < 570
    assert 430 < sum(view.flip for view in views) < 570
    assert 180 < sum(view.flip for view in cropped) < 320
    for branch in (resized, cropped):
        # A long crop may be limited by its longer side instead.
        counts = [sum(min(view.size) == edge for view in branch) for edge in EDGES]
        assert min(counts) > 20
        assert max(counts) < 90
        assert all(max(view.size) <= 1333 and (min(view.size) in EDGES or max(view.size) == 1333) for view in branch)


def test_both_sizes_of_the_crop_branch_are_independent():
    # Crops are squares of 384 pixels, so their height in stored pixels gives the first size away.
    transform = PaperTransform(crop_probability=1, crop_size=(384, 384))
    views = [view_of(transform, (480, 640), seed) for seed in range(500)]
    pairs = {(round(384 * 480 / (view.source[3] - view.source[1])), view.size) for view in views}
    assert pairs == {(first, (edge, edge)) for first in (400, 500, 600) for edge in EDGES}


def test_crops_cover_their_range():
    transform = PaperTransform(crop_probability=1, crop_shortest_edges=(500,))
    size, resized = (480, 640), (500, 667)
    crops = np.array([crop_of(view_of(transform, size, seed), size, resized) for seed in range(2000)])
    np.testing.assert_allclose(crops, crops.round(), atol=1e-9)
    crops = crops.round().astype(int)
    widths, heights = (crops[:, 2:] - crops[:, :2]).T
    assert set(heights) == set(range(384, 501))  # not more than the image has
    assert set(widths) == set(range(384, 601))
    assert abs(widths.mean() - 492) < 5
    assert abs(np.corrcoef(widths, heights)[0, 1]) < 0.1
    assert crops.min() == 0
    assert crops[:, 2].max() == 667
    assert crops[:, 3].max() == 500
    share = crops[:, 0] / (667 - widths)
    np.testing.assert_allclose(np.histogram(share, 4, (0, 1))[0], 500, atol=80)


@pytest.mark.parametrize("source", ["memory", "png", "jpg"])
def test_boxes_follow_the_pixels(tmp_path, source):
    # Large enough for the JPEG decoder to give a smaller image.
    size = (601, 803)
    example = example_of(rectangle_image((180, 130, 533, 471), size), [[180, 130, 353, 341]])
    if source != "memory":
        example["image"].save(tmp_path / f"image.{source}", quality=95)
        example["image"] = {"path": str(tmp_path / f"image.{source}"), "bytes": None}
    transform = PaperTransform(**SMALL)
    widths = []
    for seed in range(20):
        sample = transform(example, seeded(seed))
        torch.testing.assert_close(sample["boxes"][0], white_area(sample["image"]), atol=0.8, rtol=0)
        widths.append(float(sample["boxes"][0, 2] - sample["boxes"][0, 0]))
    assert max(widths) > 1.5 * min(widths)


def test_randomness_comes_from_torch_only():
    example = example_of(smooth_image((96, 128)), [[10, 5, 80, 60]])
    transform = PaperTransform(**SMALL)
    first = transform(example, seeded(1))
    torch.manual_seed(1)
    second = transform(example)
    third = transform(example)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])
    assert not torch.equal(second["boxes"], third["boxes"])


def test_crops_without_boxes():
    example = example_of(smooth_image((48, 64)), [[0, 0, 1, 1]])
    transform = PaperTransform(**(SMALL | {"crop_size": (10, 20)}), crop_probability=1)
    samples = [transform(example, seeded(seed)) for seed in range(20)]
    empty = [sample for sample in samples if not len(sample["boxes"])]
    assert len(empty) > 10
    assert empty[0]["boxes"].shape == (0, 4)
    assert empty[0]["labels"].shape == (0,)


def test_labels_follow_the_boxes_that_remain():
    # Each box is one column of pixels of its own color.
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:] = (np.arange(80) * 3)[None, :, None]
    boxes = [[x, 0, 1, 40] for x in range(80)]
    example = example_of(PIL.Image.fromarray(pixels), boxes, category=list(range(80)))
    transform = PaperTransform(**(SMALL | {"crop_size": (20, 30)}), crop_probability=1)
    for seed in range(10):
        sample = transform(example, seeded(seed))
        assert 13 <= len(sample["labels"]) <= 31  # 20 to 30 of 40, 50 or 60 pixels, of 40 stored rows
        for box, label in zip(sample["boxes"][1:-1], sample["labels"][1:-1], strict=True):
            color = sample["image"][0, 20, int((box[0] + box[2]) / 2)]
            assert abs(int(color) - 3 * int(label)) <= 2


def test_boxes_that_only_touch_are_removed():
    transform = PaperTransform(**SMALL, multi_scale=False)
    sample = transform(
        example_of(smooth_image((48, 64)), [[64, 3, 5, 5], [3, 3, 0, 9], [-5, 3, 5, 9], [63.9, 3, 5, 5]])
    )
    assert sample["labels"].tolist() == [6]


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    draws=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=8, max_size=8),
)
def test_views_are_always_inside(height, width, draws):
    view = PaperTransform().view((height, width), draws)
    left, top, right, bottom = view.source
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert 1 <= min(view.size) <= 800
    assert max(view.size) <= 1333
    if min(view.size) >= 20:
        scale_x, scale_y = view.scale
        # Two roundings, of a side of 20 pixels at least, and of the image that is cropped.
        assert min(height, width) < 20 or math.isclose(scale_x, scale_y, rel_tol=0.15)


@pytest.mark.parametrize("size", [(20, 15), (1, 1), (1, 300), (3000, 2), (5, 4)])
@pytest.mark.parametrize("crop_probability", [0, 1])
def test_extreme_images(size, crop_probability):
    example = example_of(rectangle_image((0, 0, size[1], size[0]), size), [[0, 0, size[1], size[0]]])
    transform = PaperTransform(**SMALL, crop_probability=crop_probability)
    for seed in range(5):
        sample = transform(example, seeded(seed))
        height, width = sample["image"].shape[1:]
        assert 1 <= min(height, width) <= max(height, width) <= 133
        assert (sample["image"] == 255).all()
        torch.testing.assert_close(sample["boxes"], torch.tensor([[0.0, 0, width, height]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("multi_scale", 3), ("longest_edge", 0), ("longest_edge", 1333.0), ("shortest_edges", ())),
        *(("shortest_edges", 800), ("shortest_edges", (800, 1400)), ("crop_shortest_edges", [400, 0])),
        *(("crop_shortest_edges", (400.5,)), ("crop_size", (600, 384)), ("crop_size", (384,)), ("crop_size", (0, 600))),
        *(("crop_probability", 1.5), ("crop_probability", "0.5"), ("horizontal_flip", math.nan)),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        PaperTransform(**{name: value})
