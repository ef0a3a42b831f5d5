"""Large photos in tiles: every object once, and the same as without tiles where one tile holds the image."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import evaluate_coco, predict_images
from drmm_hf.evaluation.coco import detections_to_coco
from drmm_hf.evaluation.tiles import merge_tiles, predict_tiled, tile_boxes
from drmm_hf.image_processing_drmm import DrmmImageProcessor
from drmm_hf.loading import load_detector
from model_fixtures import small_model


class SeesRectangles(torch.nn.Module):
    """A detector without a fault: each color but black is an object, found as far as it is in the picture.

    It is its own processor. The color is the object's score, in 1/255, and its class is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []

    def __call__(self, images=None, return_tensors=None, pixel_values=None):
        if images is None:
            return {"pictures": pixel_values}
        self.seen += [image.size for image in images]
        return {"pixel_values": torch.stack([torch.tensor(np.asarray(image))[..., 0] for image in images]).float()}

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        found = []
        for picture in outputs["pictures"]:
            shades = [shade for shade in picture.unique(sorted=True).flip(0).tolist() if shade > 0]
            places = [(picture == shade).nonzero() for shade in shades]
            boxes = [
                [*place.min(0).values.flip(0).tolist(), *(place.max(0).values.flip(0) + 1).tolist()] for place in places
            ]
            one = {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "scores": torch.tensor(shades) / 255,
            }
            found.append({**one, "labels": torch.zeros(len(shades), dtype=torch.long)})
        return found


def photo(width: int, height: int, boxes: list[tuple[int, int, int, int]]) -> Image.Image:
    """Rectangles (xyxy) on black, the first one brightest."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = 250 - number
    return Image.fromarray(pixels)


def found_in_tiles(image: Image.Image, tile: int, overlap: float) -> list[tuple[int, ...]]:
    detector = SeesRectangles()
    [(_, [found])] = predict_tiled(detector, detector, [{"image": image}], tile=tile, overlap=overlap, progress=False)
    assert max(max(size) for size in detector.seen) <= tile
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    return [tuple(box) for box in found["boxes"].int().tolist()]


@pytest.mark.parametrize(("width", "height"), [(3000, 2000), (801, 800), (800, 5000), (1, 1), (799, 1601)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image_and_overlap_by_as_much_as_asked(width, height, overlap) -> None:
    tiles = tile_boxes(width, height, 800, overlap)
    covered = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(800, width), min(800, height))
        covered[top:bottom, left:right] = True
    assert covered.all()
    for side in (0, 1):
        starts = sorted({tile[side] for tile in tiles})
        assert all(800 - (later - start) >= 800 * overlap for start, later in itertools.pairwise(starts))


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0.2), (800, 1.0), (800, -0.1)])
def test_tiles_that_cannot_be_are_refused(tile, overlap) -> None:
    with pytest.raises(ValueError, match="tile"):
        tile_boxes(1000, 1000, tile, overlap)


def test_objects_on_borders_are_found_once_and_whole() -> None:
    generator = np.random.default_rng(0)
    boxes = []
    for top in range(10, 1400, 70):  # objects of 12 to 60 pixels all over, on every border and corner
        for left in range(10, 2300, 70):
            width, height = generator.integers(12, 60, size=2)
            boxes.append((left, top, left + int(width), top + int(height)))
    image = photo(2400, 1500, [])
    pixels = np.asarray(image).copy()
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = 1 + number % 250
    # the same shade twice in one tile would be one object: the detector sees a tile of 400 pixels, 30 objects
    assert sorted(found_in_tiles(Image.fromarray(pixels), 400, 0.2)) == sorted(boxes)


def test_crowded_objects_are_kept_apart() -> None:
    """Two that overlap by an IoU of 0.6 inside the common part of two tiles: NMS among all would lose one."""
    first, second = (85, 20, 95, 30), (85, 20, 101, 30)
    tiles = [(0, 0, 110, 100), (70, 0, 180, 100)]

    def of(tile: tuple[int, ...], scores: list[float]) -> dict[str, torch.Tensor]:
        boxes = torch.tensor([first, second], dtype=torch.float32) - torch.tensor([*tile[:2], *tile[:2]])
        return {"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor([0, 0])}

    merged = merge_tiles([of(tiles[0], [0.9, 0.7]), of(tiles[1], [0.8, 0.85])], tiles, (180, 100))
    assert merged["boxes"].tolist() == [[*map(float, first)], [*map(float, second)]]
    assert merged["scores"].tolist() == pytest.approx([0.9, 0.85])


def test_an_object_larger_than_the_common_part_is_found_once() -> None:
    [box] = found_in_tiles(photo(1000, 300, [(300, 100, 700, 200)]), 500, 0.4)
    assert 300 <= box[0] < box[2] <= 700


def test_classes_do_not_take_each_others_objects() -> None:
    box = torch.tensor([[20.0, 20, 40, 40]])
    tiles = [(0, 0, 100, 100), (10, 0, 110, 100)]
    one = {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    other = {"boxes": box - torch.tensor([10.0, 0, 10, 0]), "scores": torch.tensor([0.8]), "labels": torch.tensor([1])}
    assert merge_tiles([one, other], tiles, (110, 100))["labels"].tolist() == [0, 1]
    same = {**other, "labels": torch.tensor([0])}
    assert merge_tiles([one, same], tiles, (110, 100))["scores"].tolist() == pytest.approx([0.9])


def test_nothing_found_and_several_images() -> None:
    detector = SeesRectangles()
    images = [photo(30, 20, []), photo(70, 50, [(5, 5, 9, 9)]), photo(10, 10, [(1, 1, 5, 5)])]
    rows = [{"image": image, "name": name} for name, image in zip("abc", images, strict=True)]
    found = list(predict_tiled(detector, detector, rows, tile=40, batch_size=1, num_workers=1, progress=False))
    assert [row["name"] for [row], _ in found] == ["a", "b", "c"]
    assert [len(one["scores"]) for _, [one] in found] == [0, 1, 1]


def test_an_image_of_one_tile_is_as_without_tiles() -> None:
    model, processor = small_model(), DrmmImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    [(_, [tiled])] = predict_tiled(model, processor, [{"image": image}], tile=80, top_k=7, progress=False)
    [whole] = predict_images(model, processor, [image], top_k=7)
    assert set(tiled) == set(whole)
    assert all(torch.equal(tiled[name], whole[name]) for name in whole)


def test_a_mosaic_of_real_images_is_read_as_its_parts(bccd, request) -> None:
    """Six images in one photo, and tiles that do not follow them: about the accuracy of the images by themselves."""
    folder = request.config.rootpath / "checkpoints/drmm-adamixer-tiny-bccd"
    model, processor = load_detector(str(folder), "cpu")
    dataset = load_detection_dataset(bccd, "val", id2label=model.config.id2label)
    ids = dataset.category_ids
    photo = Image.new("RGB", (3 * 640, 2 * 480))
    annotations, alone = [], []
    for number, row in enumerate(dataset.dataset.select(range(6))):
        image, corner = Image.open(row["image"]["path"]).convert("RGB"), (number % 3 * 640, number // 3 * 480)
        photo.paste(image, corner)
        [found] = predict_images(model, processor, [image])
        alone += detections_to_coco([{**found, "boxes": found["boxes"] + torch.tensor(corner * 2)}], [1], ids)
        for (x, y, *sides), label in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            one = {"image_id": 1, "bbox": [x + corner[0], y + corner[1], *sides], "category_id": ids[label]}
            annotations.append({"id": len(annotations) + 1, **one})
    truth = {
        "images": [{"id": 1, "width": photo.width, "height": photo.height}],
        "annotations": annotations,
        "categories": [{"id": category_id, "name": dataset.id2label[label]} for label, category_id in enumerate(ids)],
    }
    [(_, tiled)] = predict_tiled(model, processor, [{"image": photo}], tile=600, overlap=0.3, progress=False)
    whole = predict_images(model, processor, [photo])
    accuracy = [
        evaluate_coco(truth, results, max_detections=(1, 10, 600))["AP50"]
        for results in (alone, *(detections_to_coco(found, [1], ids) for found in (tiled, whole)))
    ]
    assert accuracy[1] > accuracy[0] - 0.1, "what the borders of the images cut is lost"
    assert accuracy[1] > accuracy[2] + 0.3, "without tiles the cells are too small"
