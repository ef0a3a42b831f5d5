"""Suites `data` and `evaluation`: annotations, image files and saved detections of generated data sets like COCO."""

import contextlib
import copy
import io
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import DetrImageProcessor

from drmm_hf import DrmmImageProcessor
from drmm_hf.data import DetectionDataset, PaperTransform, decode_image, load_detection_dataset
from drmm_hf.evaluation import evaluate_coco, evaluate_detections

from .measure import Settings, Timing, alternate, table

PYCOCOTOOLS, OURS = "pycocotools", "drmm-hf"
EXAMPLE = "albumentations and DetrImageProcessor"
_EDGES = tuple(range(480, 801, 32))
_CROP_EDGES, _CROP_SIZE = (400, 500, 600), (384, 600)
NUM_CLASSES, WIDTH, HEIGHT = 80, 640, 480
OBJECTS_PER_IMAGE = 7.3  # 860,001 boxes of 117,266 images with boxes in COCO train2017


def generate_ground_truth(num_images: int, polygons: bool = False) -> dict[str, Any]:
    """COCO annotations with the numbers of COCO: 80 classes, 7.3 objects an image, a hundredth of them crowd.

    A few classes are frequent, most are rare, and an image has few of them; box sides are log-uniform from 8 pixels to
    the image's own. With `polygons` each has one of 24 points, which makes the json about as large as COCO's.
    """
    generator = np.random.default_rng(0)
    frequency = 1.0 / np.arange(1, NUM_CLASSES + 1)
    annotations: list[dict[str, Any]] = []
    for image in range(num_images):
        classes = generator.choice(NUM_CLASSES, size=3, p=frequency / frequency.sum())
        # Geometric from zero: some images have nothing, some have 40 objects.
        for _ in range(generator.geometric(1.0 / (1.0 + OBJECTS_PER_IMAGE)) - 1):
            width, height = np.exp(generator.uniform(np.log(8), np.log((WIDTH, HEIGHT))))
            x, y = generator.uniform(0, (WIDTH - width, HEIGHT - height))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image + 1,
                "category_id": int(generator.choice(classes)) + 1,
                "bbox": [round(float(value), 2) for value in (x, y, width, height)],
                "area": round(float(width * height), 2),
                "iscrowd": int(generator.random() < 0.01),
            }
            if polygons:
                points = np.array((x, y)) + generator.random((24, 2)) * (width, height)
                annotation["segmentation"] = [points.round(2).ravel().tolist()]
            annotations.append(annotation)
    images = [
        {"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(num_images)
    ]
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def generate_results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """COCO results: every object once well and twice badly, the rest anywhere with small scores."""
    generator, per_image = np.random.default_rng(0), 100
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    results = []
    for image_id, present in objects.items():
        found = [(one, spread) for one in present for spread in (0.05, 0.2, 0.2)][:per_image]
        boxes = generator.uniform(0, (WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2), (per_image, 4))
        classes = generator.integers(1, NUM_CLASSES + 1, per_image)
        scores = generator.random(per_image) ** 4 * 0.5
        for row, (one, spread) in enumerate(found):
            size = one["bbox"][2:] * 2
            boxes[row] = np.maximum(one["bbox"] + spread * generator.normal(size=4) * size, 0.0)
            classes[row], scores[row] = one["category_id"], generator.random() ** (1.0 + 20.0 * (spread - 0.05))
        order = np.argsort(-scores)
        rows = zip(boxes[order].tolist(), classes[order].tolist(), scores[order].tolist(), strict=True)
        results += [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for box, c, score in rows]
    return results


def measure_evaluation(settings: Settings, num_images: int | None = None) -> dict[str, Any]:
    """Measure the suite `evaluation`: COCO numbers and calibration beside plain pycocotools."""
    num_images = num_images or (100 if settings.quick else 1000)
    truth = generate_ground_truth(num_images)
    results = generate_results(truth)

    def plain() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = copy.deepcopy(truth)
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    runs: dict[str, Callable[[], object]] = {
        "evaluate_coco": lambda: evaluate_coco(truth, results),
        "evaluate_detections (with calibration)": lambda: evaluate_detections(truth, results),
        PYCOCOTOOLS: plain,
    }
    note = (
        f"{num_images} generated images with 7.3 objects and 100 detections each, from Python lists to numbers; "
        "pycocotools is its own indexing, evaluation and summary. Ours checks every annotation and detection as well."
    )
    timings = alternate(runs, min(settings.rounds, 3))
    return {"tables": [table("Evaluation", note, timings, base=PYCOCOTOOLS)]}


def measure_data(settings: Settings, num_images: int | None = None) -> dict[str, Any]:
    """Measure the suite `data`: annotations of `num_images` images, and image files to batches."""
    num_images = num_images or (1000 if settings.quick else 10_000)
    with tempfile.TemporaryDirectory() as folder:
        return {"tables": [_loading(settings, Path(folder), num_images), _batches(settings, Path(folder))]}


def write_coco(root: Path, num_images: int) -> Path:
    """Write a data set with the numbers of COCO and empty image files; the folder."""
    truth = generate_ground_truth(num_images, polygons=True)
    for folder in ("train2017", "annotations"):
        (root / folder).mkdir(parents=True)
    for image in truth["images"]:
        (root / "train2017" / image["file_name"]).touch()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))
    return root


def _loading(settings: Settings, folder: Path, num_images: int) -> dict[str, Any]:
    root = write_coco(folder / "annotations", num_images)
    timings: dict[str, Timing] = {loader: {"wall": [], "cpu": [], "device": []} for loader in (OURS, PYCOCOTOOLS)}
    extra = {}
    for _ in range(1 if settings.quick else 3):
        for loader, timing in timings.items():
            # Not forked: memory that this process has freed would be reused there, and not seen.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds, before, after = pool.submit(_load, root, loader).result()
            timing["cpu"].append(seconds)
            extra[loader] = {"memory after (MB)": after, "before (MB)": before}
    note = f"COCO annotations of {num_images:,} generated images in a new process."
    return table("Loading annotations", note, timings, extra, base=PYCOCOTOOLS)


def _load(root: Path, loader: str) -> tuple[float, float, float]:
    """CPU seconds, and resident memory in MB before and after."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = str(root / "annotations" / "instances_train2017.json")
        data: Any = COCO(annotations) if loader == PYCOCOTOOLS else load_detection_dataset(root, "train")
    seconds, after = time.process_time() - start, process.memory_info().rss
    del data
    return seconds, before / 1e6, after / 1e6


def photos(root: Path, count: int) -> DetectionDataset:
    """Write and load a data set of photo-like JPEG files of 640x480 pixels and about 160 KB, as those of COCO."""
    write_coco(root, count)
    random = np.random.default_rng(0)
    for image in sorted((root / "train2017").iterdir()):
        colors = random.integers(0, 255, (HEIGHT // 32, WIDTH // 32, 3), dtype=np.uint8)
        smooth = PIL.Image.fromarray(colors).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        pixels = (np.asarray(smooth) + random.normal(0, 12, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(image, quality=90)
    return load_detection_dataset(root, "train")


def _batches(settings: Settings, folder: Path) -> dict[str, Any]:
    dataset = photos(folder / "photos", 8 if settings.quick else 32)
    batch_size, batches = (2, 1) if settings.quick else (8, 8)
    order = np.random.default_rng(0).choice(len(dataset), (batches, batch_size)).tolist()

    def over_all(make: Callable[[Sequence[dict[str, Any]]], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for indices in order:
                make([dataset.dataset[index] for index in indices])

        return run

    runs = {OURS: over_all(augmented_batch)}
    note = (
        "Image files of 640x480 pixels to a padded, normalized batch with the augmentation of the 3x schedule; time of "
        "one image."
    )
    with contextlib.suppress(ImportError):
        runs[EXAMPLE] = over_all(augment_as_the_example())
        note += (
            " The other way is that of transformers' object-detection example: the image decoded whole, the same "
            "resizes, crops and flips by albumentations."
        )
    timings = {
        name: {clock: [seconds / (batches * batch_size) for seconds in values] for clock, values in timing.items()}
        for name, timing in alternate(runs, settings.rounds).items()
    }
    return table("From image files to batches", note, timings, base=EXAMPLE if EXAMPLE in runs else None)


def augmented_batch(rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Rows to pixel values, as the training on COCO makes them of a batch."""
    transform = PaperTransform(
        shortest_edges=_EDGES, crop_shortest_edges=_CROP_EDGES, crop_size=_CROP_SIZE, longest_edge=1333
    )
    samples = [transform(row) for row in rows]
    annotations = []
    for row, sample in zip(rows, samples, strict=True):
        boxes = [
            {"category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for (x0, y0, x1, y1), label in zip(sample["boxes"].tolist(), sample["labels"], strict=True)
        ]
        annotations.append({"image_id": int(row["image_id"]), "annotations": boxes})
    images = [sample["image"] for sample in samples]
    batch = DrmmImageProcessor(do_resize=False)(images=images, annotations=annotations, return_tensors="pt")
    return batch["pixel_values"]


def augment_as_the_example() -> Callable[[Sequence[dict[str, Any]]], torch.Tensor]:
    """The way of transformers' object-detection example, with the choices of `PaperTransform`.

    Raises:
        ImportError: albumentations is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look for a newer version on the network
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    resize, crops = A.SmallestMaxSize(max_size=list(_EDGES), p=1.0), []
    for edge in _CROP_EDGES:
        # Sizes of a crop are fixed in albumentations: three each way in place of all.
        heights, widths = (
            np.linspace(_CROP_SIZE[0], min(_CROP_SIZE[1], side), 3).astype(int).tolist()
            for side in (edge, edge * WIDTH // HEIGHT)
        )
        for height, width in itertools.product(heights, widths):
            crop = A.RandomCrop(height=height, width=width, p=1.0)
            crops.append(A.Sequential([A.SmallestMaxSize(max_size=edge, p=1.0), crop, resize]))
    augment = A.Compose(
        [A.OneOf([resize, A.OneOf(crops, p=1.0)], p=1.0), A.HorizontalFlip(p=0.5)],
        bbox_params=A.BboxParams(format="coco", label_fields=["category"], clip=True),
    )
    processor: Any = DetrImageProcessor(do_resize=False, do_pad=True)

    def run(rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        images, annotations = [], []
        for row in rows:
            boxes = row["objects"]
            output = augment(image=np.array(decode_image(row)), bboxes=boxes["bbox"], category=boxes["category"])
            images.append(output["image"])
            found = [
                {
                    "image_id": row["image_id"],
                    "category_id": c,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for box, c in zip(output["bboxes"], output["category"], strict=True)
            ]
            annotations.append({"image_id": row["image_id"], "annotations": found})
        return processor(images=images, annotations=annotations, return_tensors="pt")["pixel_values"]

    return run
