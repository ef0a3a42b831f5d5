"""Photos with an EXIF orientation: whatever they come in, pixels and boxes are of the same frame."""

import io
import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageOps

from drmm_hf.data import (
    TrainTransform,
    coco_ground_truth,
    decode_image,
    load_detection_dataset,
    load_streaming_dataset,
    objects_dataset,
)
from drmm_hf.training import TrainConfig
from drmm_hf.training.batches import TableData
from drmm_hf.training.stream_batches import StreamData
from shards import write_tar

LYING = (64, 96)
"""The (height, width) of the pixels in the files."""
BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
NUMBER = 3


def photo(orientation: int) -> tuple[bytes, dict[str, list[int]]]:
    """A JPEG with a white rectangle, and the rectangle's xyxy in the stored and in the upright picture."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    # Drawn upright, then turned as a camera would store it.
    size = LYING if orientation >= 5 else LYING[::-1]
    upright = PIL.Image.new("RGB", size)
    box = [int(share * side) for share, side in zip((0.3, 0.7, 0.8, 0.95), size * 2, strict=True)]
    upright.paste((255, 255, 255), tuple(box))
    back = PIL.Image.Exif()
    back[0x0112] = BACK[orientation]
    upright.getexif()[0x0112] = BACK[orientation]
    stored = ImageOps.exif_transpose(upright)
    assert stored.size == LYING[::-1]
    stream = io.BytesIO()
    stored.save(stream, "JPEG", quality=95, exif=exif)
    bright = np.asarray(stored.convert("L")) > 127
    ys, xs = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return stream.getvalue(), {"upright": box, "stored": [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]}


def write(folder: Path, kind: str, orientation: int, frame: str, sizes: str) -> None:
    """A data set of a few equal photos, annotated in `frame`, with the width and height of `sizes`."""
    picture, boxes = photo(orientation)
    x1, y1, x2, y2 = map(int, boxes[frame])
    height, width = {"upright": LYING[::-1] if orientation >= 5 else LYING, "stored": LYING}.get(sizes, (None, None))
    size = {} if width is None else {"width": width, "height": height}
    box = [x1, y1, x2 - x1, y2 - y1]
    objects = {"bbox": [box], "category": [0]}
    if kind == "coco":
        (folder / "images").mkdir(parents=True)
        (folder / "annotations").mkdir()
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", **size} for i in range(NUMBER)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": box} for i in range(NUMBER)],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (folder / "annotations/instances_train.json").write_text(json.dumps(content))
        for index in range(NUMBER):
            (folder / f"images/{index}.jpg").write_bytes(picture)
    elif kind == "yolo":
        own = LYING[::-1] if orientation >= 5 and frame == "upright" else LYING
        center = [(x1 + x2) / 2 / own[1], (y1 + y2) / 2 / own[0], (x2 - x1) / own[1], (y2 - y1) / own[0]]
        for place in ("images", "labels"):
            (folder / place / "train").mkdir(parents=True)
        (folder / "data.yaml").write_text("train: images/train\nnames: [thing]\n")
        for index in range(NUMBER):
            (folder / f"images/train/{index}.jpg").write_bytes(picture)
            (folder / f"labels/train/{index}.txt").write_text(" ".join(map(str, [0, *center])))
    elif kind == "tars":
        files: dict[str, Any] = {}
        for index in range(NUMBER):
            files |= {f"{index}.jpg": picture, f"{index}.json": {"objects": objects, **size}}
        write_tar(folder / "train-0.tar", files)
    else:
        rows = {"image": [{"bytes": picture, "path": None}] * NUMBER, "objects": [objects] * NUMBER}
        rows |= {"image_id": list(range(NUMBER)), **{side: [value] * NUMBER for side, value in size.items()}}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        folder.mkdir()
        table.to_parquet(folder / "train-00000-of-00001.parquet")


@pytest.mark.parametrize("sizes", ["upright", "stored", "none"])
@pytest.mark.parametrize("frame", ["upright", "stored"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", ["coco", "yolo", "table", "parquet", "tars"])
def test_boxes_are_where_they_were_drawn(tmp_path, caplog, kind, orientation, frame, sizes) -> None:
    if frame == "stored" and sizes == "upright" and orientation >= 5:
        pytest.skip("a contradiction")
    write(tmp_path / "set", kind, orientation, frame, sizes)
    options: Any = {"id2label": {0: "thing"}, "image_frame": frame}
    with caplog.at_level(logging.WARNING):
        if kind in ("parquet", "tars"):
            stream = load_streaming_dataset(tmp_path / "set", **options)
            rows, report = list(stream), stream.report
        else:
            data = load_detection_dataset(tmp_path / "set", **options)
            rows, report = list(data.dataset), data.report
            own = json.loads(data.annotations_path.read_bytes())["annotations"]
            truth = coco_ground_truth(data)["annotations"]
            assert [one["bbox"] for one in truth] == [pytest.approx(one["bbox"], abs=0.01) for one in own]
            assert data.image_frame == frame
            swapped = orientation >= 5 and frame == "upright" and sizes == "stored"
            assert kind != "coco" or swapped == (data.annotations_path.name != "instances_train.json")
    assert (report.images, report.clipped_boxes) == (NUMBER, 0)
    assert report.turned_images == (NUMBER if orientation > 1 else 0)
    assert ("orientation" in caplog.text) == (orientation > 1 and kind not in ("parquet", "tars"))
    for row in rows:
        image = decode_image(row)
        assert image.size == (row["width"], row["height"])
        (box,) = row["objects"]["bbox"]
        assert box == pytest.approx([*box_of(np.asarray(image))], abs=0.01)
        still = {"horizontal_flip": 0.0, "scale_range": (0.5, 0.5), "translate": 0.0, "color_jitter": 0.0}
        sample = TrainTransform((row["height"], row["width"]), **still)(row, torch.Generator().manual_seed(0))
        x1, y1, width, height = box_of(sample["image"].permute(1, 2, 0).numpy())
        torch.testing.assert_close(sample["boxes"][0], torch.tensor([x1, y1, x1 + width, y1 + height]), atol=1, rtol=0)


def box_of(pixels: np.ndarray) -> list[float]:
    """The xywh of what is bright."""
    bright = pixels.min(axis=2) > 127
    ys, xs = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    return [float(value) for value in (xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0])]


def test_sizes_that_are_of_neither_frame_are_refused(tmp_path) -> None:
    write(tmp_path / "set", "coco", 6, "stored", "upright")
    data = load_detection_dataset(tmp_path / "set", image_frame="stored")
    with pytest.raises(ValueError, match=r"0\.jpg"):
        decode_image(data.dataset[0])


def test_a_turned_photo_outside_of_the_sample_is_found_by_its_box(tmp_path) -> None:
    """Headers of a sample are read first."""
    upright, _ = photo(1)
    turned, boxes = photo(6)
    x1, y1, x2, y2 = boxes["upright"]
    images = [{"bytes": turned if index == 778 else upright, "path": None} for index in range(2000)]
    objects = [
        {"bbox": [[x1, y1, x2 - x1, y2 - y1]] if i == 778 else [[1, 1, 5, 5]], "category": [0]} for i in range(2000)
    ]
    sizes = {"width": [LYING[1]] * 2000, "height": [LYING[0]] * 2000}
    table = datasets.Dataset.from_dict({"image": images, "objects": objects, **sizes})
    data = objects_dataset(table.cast_column("image", datasets.Image()))
    assert (data.report.turned_images, data.report.clipped_boxes) == (1, 0)
    row = data.dataset[778]
    assert (row["width"], row["height"]) == LYING


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_says_what_it_found(tmp_path, caplog, workers) -> None:
    """Of a stream once, however many of its images are turned; dropped boxes are counted in both."""
    picture, boxes = photo(6)
    x1, y1, x2, y2 = boxes["upright"]
    objects = {"bbox": [[x1, y1, x2 - x1, y2 - y1], [1, 1, 2.5, 9], [-5, 5, 20, 10]], "category": [0, 0, 0]}
    for shard in range(2):
        files: dict[str, Any] = {}
        for key in ("a", "b"):
            files |= {f"{shard}{key}.jpg": picture, f"{shard}{key}.json": {"objects": objects}}
        write_tar(tmp_path / f"tars/train-{shard}.tar", files)
    rows = [{"image": {"bytes": picture, "path": None}, "objects": objects}] * 4
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    still = TrainTransform((48, 32), horizontal_flip=0.0, scale_range=(1.0, 1.0), translate=0.0)
    for source in (StreamData, TableData):
        caplog.clear()
        path = tmp_path / ("tars" if source is StreamData else "saved")
        with caplog.at_level(logging.WARNING):
            options = {"streaming": source is StreamData, "classes": ["thing"], "num_workers": workers}
            data = source(TrainConfig(data=str(path), train_images=1, **options))
            batches = list(islice(data.batches(still), 4))
        assert caplog.text.count("EXIF orientation") == 1
        assert [(batch["objects"], batch["dropped_boxes"]) for batch in batches] == [(4, 2)] * 4
