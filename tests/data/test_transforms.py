import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from drmm_hf.data import TrainTransform, generate_scenes, load_detection_dataset
from drmm_hf.data.transforms import jitter_color, place_axis

PLAIN = {"horizontal_flip": 0.0, "scale_range": (1.0, 1.0), "translate": 0.0, "color_jitter": 0.0}


def rectangle_example(box, size=(480, 640), extra=()):
    """A black image (height, width) with one white rectangle (xyxy) at `box`, as a PIL example."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    boxes = [[x1, y1, x2 - x1, y2 - y1], *extra]
    return {
        "image": PIL.Image.fromarray(pixels),
        "image_id": 9,
        "width": size[1],
        "height": size[0],
        "objects": {"bbox": boxes, "category": list(range(3, 3 + len(boxes))), "iscrowd": [0] * len(boxes)},
    }


def saved(example, path, **options):
    example["image"].save(path, **options)
    return {**example, "image": {"path": str(path), "bytes": None}}


def white_area(image):
    """Tight xyxy of the bright pixels of a (3, H, W) image."""
    bright = image.min(dim=0).values > 127
    rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)


def test_output(tmp_path):
    sample = TrainTransform((240, 320))(rectangle_example((100, 50, 300, 250)))
    assert sample["image"].shape == (3, 240, 320)
    assert sample["image"].dtype == torch.uint8
    assert sample["boxes"].shape == (1, 4)
    assert sample["boxes"].dtype == torch.float32
    assert sample["labels"].tolist() == [3]
    assert sample["labels"].dtype == torch.int64
    assert sample["image_id"] == 9
    assert type(sample["image"]) is torch.Tensor
    assert type(sample["boxes"]) is torch.Tensor


def test_plain_resize_is_torchvisions():
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    example = {"image": PIL.Image.fromarray(pixels), "objects": {"bbox": [[10, 20, 30, 40]], "category": [0]}}
    sample = TrainTransform((240, 320), **PLAIN)(example)
    expected = functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [240, 320], antialias=True)
    assert (sample["image"].int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(sample["boxes"], torch.tensor([[5.0, 10, 20, 30]]))
    assert sample["image_id"] == -1


@pytest.mark.parametrize("source", ["memory", "png", "jpg", "cache"])
def test_boxes_follow_the_pixels(tmp_path, source):
    example = rectangle_example((180, 130, 423, 351))
    if source != "memory":
        suffix = "png" if source == "png" else "jpg"
        example = saved(example, tmp_path / f"image.{suffix}", quality=95)
    transform = TrainTransform(
        (237, 322), vertical_flip=0.5, scale_range=(0.4, 1.6), color_jitter=0.0, cache=source == "cache"
    )
    generator = torch.Generator().manual_seed(0)
    checked, widths = 0, []
    for _ in range(40):
        sample = transform(example, generator)
        if not len(sample["boxes"]):
            continue
        torch.testing.assert_close(sample["boxes"][0], white_area(sample["image"]), atol=0.8, rtol=0)
        widths.append(float(sample["boxes"][0, 2] - sample["boxes"][0, 0]))
        checked += 1
    assert checked > 30
    assert max(widths) > 2 * min(widths)


def test_flips_are_exact_mirrors():
    example = rectangle_example((100, 50, 300, 250))
    plain = TrainTransform((240, 320), **PLAIN)(example)
    across = TrainTransform((240, 320), **(PLAIN | {"horizontal_flip": 1.0}))(example)
    down = TrainTransform((240, 320), **PLAIN, vertical_flip=1.0)(example)
    assert torch.equal(across["image"], plain["image"].flip(2))
    assert torch.equal(down["image"], plain["image"].flip(1))
    assert across["boxes"].tolist() == [[170, 25, 270, 125]]
    assert down["boxes"].tolist() == [[50, 115, 150, 215]]


def test_zoom_out_pads_with_the_fill_color():
    example = rectangle_example((0, 0, 640, 480))
    settings = PLAIN | {"scale_range": (0.5, 0.5)}
    sample = TrainTransform((240, 320), **settings, fill=(1, 2, 3))(example)
    x1, y1, x2, y2 = sample["boxes"][0].int().tolist()
    assert (x2 - x1, y2 - y1) == (160, 120)
    assert (sample["image"][:, y1:y2, x1:x2] == 255).all()
    sample["image"][:, y1:y2, x1:x2] = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    assert (sample["image"] == torch.tensor([1, 2, 3])[:, None, None]).all()


def test_shift_covers_its_range():
    example = rectangle_example((0, 0, 640, 480))
    generator = torch.Generator().manual_seed(0)

    def lefts(scale, translate):
        settings = PLAIN | {"scale_range": (scale, scale), "translate": translate}
        transform = TrainTransform((240, 320), **settings)
        return [float(transform(example, generator)["boxes"][0, 0]) for _ in range(300)]

    inside = lefts(0.5, 0.0)
    assert 0 <= min(inside) < 5
    assert 155 < max(inside) <= 160
    beyond = lefts(0.5, 0.1)
    assert min(beyond) == 0
    assert 180 < max(beyond) <= 193
    assert set(lefts(1.5, 0.0)) == {0.0}  # zoomed in, no padding


def test_aspect_ratio():
    example = rectangle_example((0, 0, 300, 300), size=(300, 300))
    kept = TrainTransform((240, 320), **PLAIN)(example)["boxes"][0]
    stretched = TrainTransform((240, 320), **PLAIN, keep_aspect=False)(example)["boxes"][0]
    assert (kept[2:] - kept[:2]).tolist() == [240, 240]
    assert stretched.tolist() == [0, 0, 320, 240]


def test_rules_for_removed_boxes():
    """The canvas shows half of the image at its own size; what is left of each box decides."""
    boxes = torch.tensor([[x, 100.0, 60, 50] for x in range(0, 580, 8)] + [[300.0, 200, 2.1, 50], [300, 200, 1.9, 50]])
    example = rectangle_example((0, 0, 640, 480))
    example["objects"] = {"bbox": boxes.tolist(), "category": list(range(len(boxes)))}
    transform = TrainTransform((240, 320), **(PLAIN | {"scale_range": (2.0, 2.0)}))
    removed = 0
    for seed in range(20):
        sample = transform(example, torch.Generator().manual_seed(seed))
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


def test_crowd_and_empty():
    example = rectangle_example((100, 50, 300, 250), extra=[[10, 10, 50, 50]])
    example["objects"]["iscrowd"] = [1, 0]
    assert TrainTransform((240, 320), **PLAIN)(example)["labels"].tolist() == [4]
    example["objects"] = {"bbox": [], "category": [], "iscrowd": []}
    sample = TrainTransform((240, 320))(example)
    assert sample["boxes"].shape == (0, 4)
    assert sample["labels"].shape == (0,)


def test_objects_of_another_layout_are_refused():
    example = rectangle_example((100, 50, 300, 250))
    example["objects"] = {"boxes": [], "labels": []}
    with pytest.raises(ValueError, match="image 9: `objects`"):
        TrainTransform((240, 320))(example)


@pytest.mark.parametrize("factors", [(1.2, 1.0, 1.0), (1.0, 0.8, 1.0), (1.0, 1.0, 1.3), (0.9, 1.2, 0.8)])
def test_color_is_torchvisions(factors):
    pixels = np.random.default_rng(0).integers(70, 150, (64, 48, 3)).astype(np.uint8)
    image = PIL.Image.fromarray(np.kron(pixels[::4, ::4], np.ones((4, 4, 1), dtype=np.uint8)))
    expected = functional.pil_to_tensor(image)
    expected = functional.adjust_brightness(expected, factors[0])
    expected = functional.adjust_contrast(expected, factors[1])
    expected = functional.adjust_saturation(expected, factors[2])
    actual = functional.pil_to_tensor(jitter_color(image, *factors))
    assert (actual.int() - expected.int()).abs().max() <= 3
    assert (actual.int() - functional.pil_to_tensor(image).int()).abs().max() > 5


def test_color_jitter_leaves_the_padding():
    example = rectangle_example((0, 0, 640, 480))
    settings = PLAIN | {"scale_range": (0.5, 0.5), "color_jitter": 1.0}
    sample = TrainTransform((240, 320), **settings, fill=(10, 20, 30))(example, torch.Generator().manual_seed(3))
    x1, y1, x2, y2 = sample["boxes"][0].int().tolist()
    outside = torch.ones((240, 320), dtype=torch.bool)
    outside[y1:y2, x1:x2] = False
    assert outside.any()
    assert (sample["image"][:, outside] == torch.tensor([10, 20, 30])[:, None]).all()


def test_randomness_comes_from_torch_only():
    example = rectangle_example((100, 50, 300, 250))
    transform = TrainTransform((240, 320))
    first = transform(example, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    second = transform(example)
    third = transform(example)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["boxes"], second["boxes"])
    assert not torch.equal(second["image"], third["image"])


class _Scenes(torch.utils.data.Dataset):
    def __init__(self, rows, transform):
        self.rows, self.transform = rows, transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.transform(self.rows[index])["image"]


def test_workers_draw_different_values(tmp_path):
    row = saved(rectangle_example((100, 50, 300, 250)), tmp_path / "a.jpg")
    loader = DataLoader(_Scenes([row] * 4, TrainTransform((60, 80))), batch_size=None, num_workers=2)
    images = list(loader)
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_cache_gives_nearly_the_same_and_reads_once(tmp_path):
    root = generate_scenes(tmp_path / "scenes", num_train=6, num_val=1, image_size=(240, 320))
    rows = list(load_detection_dataset(root).dataset)
    fresh, cached = TrainTransform((120, 160)), TrainTransform((120, 160), cache=True)
    for row in rows:
        cached(row)
    assert cached.cache.used_bytes == 6 * 150 * 200 * 3
    expected = [fresh(row, torch.Generator().manual_seed(i)) for i, row in enumerate(rows)]
    for row in rows:
        (root / "images" / row["image"]["path"]).unlink()
    for index, row in enumerate(rows):
        sample = cached(row, torch.Generator().manual_seed(index))
        torch.testing.assert_close(sample["boxes"], expected[index]["boxes"])
        assert (sample["image"].float() - expected[index]["image"].float()).abs().mean() < 4
    assert pickle.loads(pickle.dumps(cached)).cache.used_bytes == 0


def test_cache_is_bounded(tmp_path):
    rows = [saved(rectangle_example((9, 9, 99, 99)), tmp_path / f"{i}.jpg") for i in range(3)]
    transform = TrainTransform((240, 320), **PLAIN, cache=True, cache_bytes=2 * 240 * 320 * 3)
    for row in rows:
        assert transform(row)["boxes"].tolist() == [[4.5, 4.5, 49.5, 49.5]]
    assert transform.cache.used_bytes == transform.cache.max_bytes
    transform(rectangle_example((9, 9, 99, 99)))  # without a path
    assert transform.cache.used_bytes == transform.cache.max_bytes


@settings(max_examples=300, deadline=None)
@given(
    stored=st.integers(1, 5000),
    canvas=st.integers(1, 1400),
    scale=st.floats(1e-4, 20),
    translate=st.floats(0, 1),
    draw=st.floats(0, 1),
)
def test_placement_is_always_inside(stored, canvas, scale, translate, draw):
    placed = place_axis(stored, canvas, scale, translate, draw)
    assert 0 <= placed.target[0] < placed.target[1] <= canvas
    assert 0 <= placed.source[0] < placed.source[1] <= stored
    if stored * scale >= 20 and placed.length >= 20:
        assert placed.scale == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 2), (5, 4)])
def test_extreme_images(size):
    example = rectangle_example((0, 0, size[1], size[0]), size=size)
    for seed in range(5):
        sample = TrainTransform((24, 32), translate=1.0)(example, torch.Generator().manual_seed(seed))
        assert sample["image"].shape == (3, 24, 32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("size", (240,)), ("size", (240, 0)), ("horizontal_flip", 1.5), ("color_jitter", -0.1)),
        *(("scale_range", (1.2, 0.8)), ("scale_range", (0.0, 1.0)), ("min_box_size", -1), ("fill", (0, 0, 256))),
        ("cache_bytes", 0),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        TrainTransform(**({"size": (240, 320), "cache": True} | {name: value}))


@pytest.mark.parametrize(("name", "split"), [("bccd", "val"), ("coco", "val")])
def test_real_data(real_data, name, split):
    data = load_detection_dataset(real_data / name, split)
    transform = TrainTransform((240, 320))
    torch.manual_seed(0)
    before = after = 0
    for row in data.dataset:
        sample = transform(row)
        before += sum(1 for crowd in row["objects"]["iscrowd"] if not crowd)
        after += len(sample["boxes"])
        boxes = sample["boxes"]
        assert len(sample["labels"]) == len(boxes)
        if len(boxes):
            assert boxes.min() >= 0
            assert boxes[:, 2].max() <= 320
            assert boxes[:, 3].max() <= 240
            assert (boxes[:, 2:] - boxes[:, :2]).min() >= 2
    assert 0.8 * before < after <= before
