"""Drawn pixels: colors, places and odd boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from drmm_hf.visualization import contact_sheet, draw_comparison, draw_detections, label_color

NAMES = {0: "cell", 1: "plate"}
GRAY = (128, 128, 128)


def gray(width=200, height=150, mode="RGB") -> Image.Image:
    return Image.new("RGB", (width, height), GRAY).convert(mode)


def found(boxes, labels=None, scores=None) -> dict:
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels if labels is not None else [0] * count),
        "scores": torch.tensor(scores if scores is not None else [0.9] * count),
    }


def test_box_edges_have_the_color_of_the_class():
    image = gray()
    drawn = draw_detections(image, found([[40, 50, 120, 110]], labels=[1]), NAMES)
    assert drawn.size == image.size
    for point in [(40, 80), (119, 80), (60, 109), (119, 109)]:
        assert drawn.getpixel(point) == label_color(1)
    for point in [(39, 80), (120, 80), (60, 110), (80, 80)]:
        assert drawn.getpixel(point) == GRAY
    assert image.getpixel((40, 80)) == GRAY  # the input is left alone
    rows, columns = np.nonzero((np.asarray(drawn) == label_color(1)).all(axis=-1))
    assert (columns.min(), rows.max()) == (40, 109)
    assert 30 < rows.min() < 45, "the tag sits above the box"


@pytest.mark.parametrize(
    "box", [[0, 0, 60, 40], [180, 0, 200, 20], [150, 130, 200, 150], [0, 140, 10, 150], [0, 0, 200, 150]]
)
def test_tag_stays_inside_at_the_border(box):
    drawn = np.asarray(draw_detections(gray(), found([box]), NAMES)).astype(int)
    # The tag is the largest area of the class color: a whole tag is as large as that of a box in the middle.
    middle = np.asarray(draw_detections(gray(), found([[80, 80, 82, 82]]), NAMES)).astype(int)
    count = [(picture == label_color(0)).all(axis=-1).sum() for picture in (drawn, middle)]
    assert drawn.shape == (150, 200, 3)
    assert count[0] >= count[1] - 8


def test_tags_of_close_boxes_do_not_cover_each_other():
    boxes = [[60, 70, 130, 120], [62, 72, 132, 122]]
    alone = np.asarray(draw_detections(gray(), found(boxes[:1], [0], [0.9]), NAMES))
    both = np.asarray(draw_detections(gray(), found(boxes, [0, 1], [0.9, 0.8]), NAMES))
    tag = (alone != GRAY).any(axis=-1)
    tag[70:] = False
    assert tag.sum() > 300
    assert (both[tag] == alone[tag]).all()


def test_tags_of_many_small_objects_on_a_large_photo_do_not_cover_it():
    boxes = [[x, y, x + 40, y + 30] for x in range(50, 2950, 200) for y in range(50, 1950, 100)]
    drawn = np.asarray(draw_detections(gray(3000, 2000), found(boxes), NAMES))
    assert 0.02 < (drawn != GRAY).any(axis=-1).mean() < 0.3


def test_threshold_and_boxes_without_scores():
    weak = found([[40, 50, 120, 110]], scores=[0.2])
    assert np.array_equal(draw_detections(gray(), weak, NAMES), gray())
    assert draw_detections(gray(), weak, NAMES, threshold=0.2).getpixel((40, 80)) == label_color(0)
    truth = {"bbox": [[40, 50, 80, 60]], "category": [0]}
    assert draw_detections(gray(), truth, NAMES, threshold=1.0).getpixel((40, 80)) == label_color(0)


def test_the_three_forms_of_boxes_look_the_same():
    tensors = draw_detections(gray(), found([[40, 50, 120, 110]], [1], [0.5]), NAMES)
    coco = [{"bbox": [40, 50, 80, 60], "category_id": 1, "score": 0.5, "image_id": 3}]
    assert np.array_equal(draw_detections(gray(), coco, NAMES), tensors)
    columns = {"bbox": [[40, 50, 80, 60]], "category": [1], "scores": [0.5]}
    assert np.array_equal(draw_detections(gray(), columns, NAMES), tensors)


def test_the_surest_box_is_on_top():
    pair = found([[40, 50, 120, 110], [40, 50, 120, 110]], labels=[0, 1], scores=[0.9, 0.5])
    assert draw_detections(gray(), pair, NAMES).getpixel((40, 80)) == label_color(0)


@pytest.mark.parametrize(
    "box", [[-50, -50, -10, -10], [300, 10, 350, 60], [float("nan"), 0, 10, 10], [0, 0, float("inf"), 10]]
)
def test_boxes_with_nothing_to_show_are_left_out(box):
    assert np.array_equal(draw_detections(gray(), found([box]), NAMES), gray())


def test_inverted_empty_and_oversized_boxes():
    inverted = draw_detections(gray(), found([[120, 110, 40, 50]]), NAMES)
    assert np.array_equal(inverted, draw_detections(gray(), found([[40, 50, 120, 110]]), NAMES))
    oversized = draw_detections(gray(), found([[-1e9, -1e9, 1e9, 1e9]]), NAMES)
    assert oversized.getpixel((0, 149)) == oversized.getpixel((199, 149)) == label_color(0)
    empty = draw_detections(gray(), found([[100, 100, 100, 100]]), NAMES)
    assert empty.getpixel((100, 100)) == label_color(0)
    assert np.array_equal(draw_detections(gray(), found([]), NAMES), gray())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    drawn = draw_detections(gray(mode=mode), found([[40, 50, 120, 110]]), NAMES)
    assert drawn.mode == "RGB"
    assert drawn.getpixel((40, 80)) == label_color(0)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_tiny_images_and_unknown_labels(size):
    drawn = draw_detections(gray(*size), found([[0, 0, *size]], labels=[7]), NAMES)
    assert drawn.size == size
    assert draw_comparison(gray(*size), found([[0, 0, 1, 1]]), found([]), NAMES).width > 2 * size[0]


def test_a_name_of_two_lines_is_written_on_one():
    boxes = found([[40, 50, 120, 110]])
    assert np.array_equal(
        draw_detections(gray(), boxes, {0: "red\ncell"}), draw_detections(gray(), boxes, {0: "red cell"})
    )


def test_comparison_has_truth_left_and_prediction_right_each_under_its_title():
    truth = [{"bbox": [40, 50, 80, 60], "category_id": 0}]
    prediction = found([[40, 50, 120, 110]], labels=[1])
    sheet = np.asarray(draw_comparison(gray(), truth, prediction, NAMES))
    assert sheet.shape[1] > 400
    for index, boxes in enumerate((truth, prediction)):
        left = 8 + index * 208
        titled = sheet[8:-8, left : left + 200]
        assert np.array_equal(titled[-150:], np.asarray(draw_detections(gray(), boxes, NAMES)))
        assert len(titled) > 158
        assert titled[:-150].min() < 100


def test_contact_sheet_places_images_in_rows():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [Image.new("RGB", (40, 20), color) for color in colors]
    sheet = contact_sheet(images, 2)
    assert sheet.size == (2 * 48 + 8, 2 * 28 + 8)
    assert [sheet.getpixel(point) for point in [(28, 18), (76, 18), (28, 46), (76, 46)]] == [
        *colors,
        (255, 255, 255),
    ]
    assert contact_sheet(images, 5, cell_width=20).size == (92, 26)
