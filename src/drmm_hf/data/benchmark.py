"""What the data side costs at the size of COCO: loading, memory, and images per second."""

import contextlib
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import PIL.Image
import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from .coco import DetectionDataset, load_detection_dataset
from .images import decode_image
from .paper_transform import PaperTransform

BOXES_PER_IMAGE = 7.3
"""860,001 boxes of 117,266 images with boxes in COCO train2017."""
LOADERS = ("drmm-hf", "pycocotools")
PIPELINES = ("drmm-hf", "drmm-hf, normalized on the CPU", "albumentations and DetrImageProcessor")
WIDTH, HEIGHT = 640, 480
_MEGABYTE = 1e6
_EDGES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
_CROP_EDGES = (400, 500, 600)
_CROP_SIZE = (384, 600)


def write_coco(root: Path, num_images: int, seed: int = 0) -> Path:
    """Write a data set with the numbers of COCO and **empty** image files, which no measurement decodes.

    Boxes are 7.3 an image on average, with a polygon of 24 points each, so that the json is about as large as COCO's
    (450 MB at 118,000 images); 80 categories.

    Returns:
        The json file.
    """
    random = np.random.default_rng(seed)
    counts = random.poisson(BOXES_PER_IMAGE, num_images)
    images = root / "train2017"
    images.mkdir(parents=True)
    for index in range(num_images):
        os.close(os.open(images / f"{index:012d}.jpg", os.O_CREAT | os.O_WRONLY))
    file = root / "annotations" / "instances_train2017.json"
    file.parent.mkdir()
    categories = [{"id": index + 1, "name": f"class {index}", "supercategory": "thing"} for index in range(80)]
    records = (
        {"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT, "license": 1}
        for i in range(num_images)
    )
    with file.open("w") as out:
        out.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        _write_list(out, records)
        out.write('], "annotations": [')
        _write_list(out, _annotations(counts, random))
        out.write("]}")
    return file


def _write_list(out: TextIO, records: Iterable[dict[str, Any]]) -> None:
    for index, record in enumerate(records):
        out.write((", " if index else "") + json.dumps(record))


def _annotations(counts: np.ndarray, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Annotation records, a few of them crowd; boxes lie inside their images of 640x480 pixels."""
    number = 0
    for image_id, count in enumerate(counts.tolist()):
        corner = random.uniform(0, (560, 400), (count, 2))
        side = random.uniform(4, 80, (count, 2))
        points = corner[:, None] + random.uniform(0, 1, (count, 24, 2)) * side[:, None]
        boxes = np.concatenate([corner, side], axis=1).round(2).tolist()
        for box, polygon, category in zip(boxes, points.round(2), random.integers(1, 81, count).tolist(), strict=True):
            number += 1
            yield {
                "segmentation": [polygon.reshape(-1).tolist()],
                "area": round(box[2] * box[3] * 0.6, 4),
                "iscrowd": int(number % 100 == 0),
                "image_id": image_id,
                "bbox": box,
                "category_id": category,
                "id": number,
            }


@dataclass(frozen=True)
class Loading:
    """One start of a process that loads annotations. Memory in MB, resident; time in CPU seconds."""

    seconds: float
    before: float
    after: float
    peak: float
    worker: tuple[float, float] = (0.0, 0.0)
    """Of a DataLoader worker that reads every row once: after its first batch and after its last."""
    worker_own: tuple[float, float] = (0.0, 0.0)
    """The part of `worker` that it does not share with the main process."""


def measure_loading(root: Path, loader: str, *, read_rows: bool = False) -> Loading:
    """Load `write_coco`'s data set in a new process, by one of `LOADERS`.

    Args:
        root: the data set's folder.
        read_rows: read every row in a DataLoader worker afterwards, in random order; no image is decoded.
    """
    # Not forked: memory that this process has freed would be reused there, and not seen.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_load, root, loader, read_rows).result()


def _load(root: Path, loader: str, read_rows: bool) -> Loading:
    from pycocotools.coco import COCO

    process = psutil.Process()
    before, start = process.memory_info().rss, time.process_time()
    if loader == "pycocotools":
        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO(str(root / "annotations" / "instances_train2017.json"))
    else:
        data = load_detection_dataset(root, "train")
    seconds = time.process_time() - start
    after = process.memory_info().rss
    result = Loading(seconds, before / _MEGABYTE, after / _MEGABYTE, max(after, _highest_resident()) / _MEGABYTE)
    if not read_rows:
        return result
    batches = DataLoader(
        _Rows(data),
        batch_size=256,
        shuffle=True,
        num_workers=1,
        collate_fn=_resident,
        multiprocessing_context="fork",
    )
    sizes = list(batches)
    (first, first_own), (last, last_own) = sizes[0], sizes[-1]
    return replace(result, worker=(first, last), worker_own=(first_own, last_own))


def _highest_resident() -> int:
    """Bytes. Not `ru_maxrss`, which a new process takes over from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class _Rows(Dataset):
    """The annotations of an image, as its number of boxes."""

    def __init__(self, data: Any):
        self.data = data
        self.image_ids = None if isinstance(data, DetectionDataset) else data.getImgIds()

    def __len__(self) -> int:
        return len(self.data) if self.image_ids is None else len(self.image_ids)

    def __getitem__(self, index: int) -> int:
        if self.image_ids is None:
            return len(self.data.dataset[index]["objects"]["bbox"])
        return len(self.data.loadAnns(self.data.getAnnIds(imgIds=self.image_ids[index])))


def _resident(_: list[int]) -> tuple[float, float]:
    memory = psutil.Process().memory_full_info()
    return memory.rss / _MEGABYTE, memory.uss / _MEGABYTE


def benchmark_images(root: Path, count: int = 32, seed: int = 0) -> DetectionDataset:
    """Write and load a data set of photo-like JPEG files of 640x480 pixels and about 160 KB, as those of COCO."""
    file = write_coco(root, count, seed)
    random = np.random.default_rng(seed)
    for image in sorted((root / "train2017").iterdir()):
        colors = random.integers(0, 255, (HEIGHT // 32, WIDTH // 32, 3), dtype=np.uint8)
        smooth = PIL.Image.fromarray(colors).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)
        noise = random.normal(0, 12, (HEIGHT, WIDTH, 1))
        pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(image, quality=90)
    return load_detection_dataset(root, "train", annotations=file)


def measure_throughput(
    dataset: DetectionDataset, *, batch_size: int = 8, batches: int = 8, rounds: int = 5, seed: int = 0
) -> dict[str, list[float]]:
    """Images per CPU second of one thread from files to a padded batch, of all `PIPELINES` in turn.

    Args:
        dataset: its images of 640x480 pixels are used.
        batch_size: images.
        batches: in every round, by every pipeline, of the same images.

    Returns:
        A number for each round.

    Raises:
        ValueError: albumentations is not installed, or there are no images of that size.
    """
    sizes = zip(dataset.dataset["width"], dataset.dataset["height"], strict=True)
    chosen = [index for index, size in enumerate(sizes) if size == (WIDTH, HEIGHT)]
    if not chosen:
        raise ValueError(f"{dataset.annotations_path}: has no images of {WIDTH}x{HEIGHT} pixels to measure with")
    order = np.random.default_rng(seed).choice(chosen, (batches, batch_size)).tolist()
    runs: list[Callable] = [partial(_ours, normalized=False), partial(_ours, normalized=True), _example()]
    pipelines = dict(zip(PIPELINES, runs, strict=True))
    rates: dict[str, list[float]] = {name: [] for name in PIPELINES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    try:
        for turn in range(rounds + 1):
            for name, run in pipelines.items():
                start = time.process_time()
                for indices in order:
                    run([dataset.dataset[index] for index in indices])
                if turn:  # the first is to warm up
                    rates[name].append(batches * batch_size / (time.process_time() - start))
    finally:
        torch.set_num_threads(threads)
    return rates


def _ours(rows: Sequence[dict[str, Any]], *, normalized: bool) -> torch.Tensor:
    from ..training.batches import collate, normalize  # which builds on this package

    transform = PaperTransform(
        shortest_edges=_EDGES, crop_shortest_edges=_CROP_EDGES, crop_size=_CROP_SIZE, longest_edge=1333
    )
    batch = collate([transform(row) for row in rows])
    assert isinstance(batch, dict)
    if not normalized:
        return batch["image"]
    return normalize(batch["image"], batch["pixel_mask"], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _example() -> Callable[[Sequence[dict[str, Any]]], torch.Tensor]:
    """The way of transformers' object-detection example, with the choices of `PaperTransform`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look for a newer version on the network
    try:
        import albumentations as A
        import cv2
    except ImportError as error:
        raise ValueError(f"the comparison needs albumentations ({error}): pip install albumentations") from error
    from transformers import DetrImageProcessor

    cv2.setNumThreads(0)
    resize = A.SmallestMaxSize(max_size=list(_EDGES), p=1.0)
    crops = []
    for edge in _CROP_EDGES:
        # Sizes of a crop are fixed in albumentations: three each way in place of all.
        heights = np.linspace(_CROP_SIZE[0], min(_CROP_SIZE[1], edge), 3).astype(int).tolist()
        widths = np.linspace(_CROP_SIZE[0], min(_CROP_SIZE[1], edge * WIDTH // HEIGHT), 3).astype(int).tolist()
        shrink = A.SmallestMaxSize(max_size=edge, p=1.0)
        crops += [
            A.Sequential([shrink, A.RandomCrop(height=height, width=width, p=1.0), resize])
            for height in heights
            for width in widths
        ]
    augment = A.Compose(
        [A.OneOf([resize, A.OneOf(crops, p=1.0)], p=1.0), A.HorizontalFlip(p=0.5)],
        bbox_params=A.BboxParams(format="coco", label_fields=["category"], clip=True),
    )
    processor: Any = DetrImageProcessor(do_resize=False, do_pad=True)

    def run(rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        images, annotations = [], []
        for row in rows:
            objects = row["objects"]
            pixels = np.array(decode_image(row))
            output = augment(image=pixels, bboxes=objects["bbox"], category=objects["category"])
            images.append(output["image"])
            boxes = [
                {"image_id": row["image_id"], "category_id": label, "bbox": list(box), "area": area, "iscrowd": 0}
                for box, label, area in zip(output["bboxes"], output["category"], objects["area"], strict=False)
            ]
            annotations.append({"image_id": row["image_id"], "annotations": boxes})
        return processor(images=images, annotations=annotations, return_tensors="pt")["pixel_values"]

    return run


def report(sizes: Sequence[int], photos: DetectionDataset | None = None, *, rounds: int = 5) -> dict[str, str]:
    """Measure everything; the tables `starts`, `memory` and `throughput` in Markdown.

    Args:
        sizes: numbers of images of the generated annotation files.
        photos: real images for the throughput, in place of generated ones.
        rounds: of the throughput.

    Raises:
        ValueError: as `measure_throughput`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if photos is None:
            photos = benchmark_images(Path(folder, "photos"))
        rates = measure_throughput(photos, rounds=rounds)
        starts = {size: _measure_starts(Path(folder, str(size)), size) for size in sizes}
    return {
        "starts": "\n".join(_start_table(starts)),
        "memory": "\n".join(_memory_table(starts)),
        "throughput": "\n".join(_throughput_table(rates)),
    }


def _measure_starts(root: Path, size: int) -> dict[str, Any]:
    file = write_coco(root, size)
    starts: dict[str, list[Loading]] = {loader: [] for loader in LOADERS}
    for turn in range(2):
        for loader in LOADERS:
            starts[loader].append(measure_loading(root, loader, read_rows=turn == 1))
    return {"megabytes": file.stat().st_size / _MEGABYTE, **starts}


def _start_table(starts: dict[int, dict[str, Any]]) -> Iterator[str]:
    yield "| images | json (MB) | drmm-hf: first, second start (s) | pycocotools (s) | ratio |"
    yield "|---|---|---|---|---|"
    for size, found in starts.items():
        ours, theirs = ([start.seconds for start in found[loader]] for loader in LOADERS)
        cells = [", ".join(f"{value:.2f}" for value in values) for values in (ours, theirs)]
        ratio = sum(ours) / sum(theirs)
        yield f"| {size:,} | {found['megabytes']:,.0f} | {cells[0]} | {cells[1]} | {ratio:.2f} |"


def _memory_table(starts: dict[int, dict[str, Any]]) -> Iterator[str]:
    yield "| images | way | before (MB) | after | highest | worker: first batch, last | not shared: first, last |"
    yield "|---|---|---|---|---|---|---|"
    for size, found in starts.items():
        for loader in LOADERS:
            start = found[loader][-1]
            cells = [f"{value:,.0f}" for value in (start.before, start.after, start.peak)]
            cells += [f"{first:,.0f}, {last:,.0f}" for first, last in (start.worker, start.worker_own)]
            yield f"| {size:,} | {loader} | {' | '.join(cells)} |"


def _throughput_table(rates: dict[str, list[float]]) -> Iterator[str]:
    yield "| way | images/s of a core: median (lowest, highest round) | compared with the last line |"
    yield "|---|---|---|"
    base = statistics.median(rates[PIPELINES[-1]])
    for name in PIPELINES:
        middle = statistics.median(rates[name])
        yield f"| {name} | {middle:.1f} ({min(rates[name]):.1f}, {max(rates[name]):.1f}) | {middle / base:.2f} |"
