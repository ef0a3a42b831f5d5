"""Runs a detector over images: pictures, or a whole data set to COCO results. Everything that predicts comes here."""

import contextlib
import http.client
import itertools
import logging
import math
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedConfig

from ..data import DetectionDataset, StreamingDetectionDataset, decode_image
from ..data.rows import turned_notice
from ..image_processing_drmm import DrmmImageProcessor
from ..postprocessing import select_detections
from .coco import detections_to_coco

logger = logging.getLogger(__name__)

Detection = dict[str, torch.Tensor]
Row = Mapping[str, Any]
Prepared = TypeVar("Prepared")

TIMEOUT, MAX_DOWNLOAD = 60, 512 * 2**20  # of a picture from a URL: seconds without an answer, and bytes
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


class PredictOptions(TypedDict, total=False):
    """The keywords of whatever predicts.

    Attributes:
        batch_size: images in a batch; 8.
        threshold: keep detections with a score above this; 0.
        top_k: detections kept per image, the highest scores; 100.
        num_workers: threads that decode and resize images ahead of the model; 0 does it in this one.
        accelerator: knows the other processes, if there are any; each predicts every n-th batch.
        progress: show a progress bar on stderr, of the main process; True.
    """

    batch_size: int
    threshold: float
    top_k: int
    num_workers: int
    accelerator: Accelerator | PartialState | None
    progress: bool


def predict_dataset(
    model: nn.Module,
    processor: Any,
    dataset: DetectionDataset | StreamingDetectionDataset,
    *,
    with_scales: bool = False,
    with_parts: bool = False,
    rows: list[dict[str, Any]] | None = None,
    **options: Unpack[PredictOptions],
) -> list[dict[str, Any]]:
    """COCO results of a model on a data set.

    Args:
        model: a `DrmmForObjectDetection`; runs where it is, in eval mode without gradients, and gets its modes back.
        processor: its `DrmmImageProcessor`.
        dataset: labels must be those of the model (`load_detection_dataset(...,
            id2label=model.config.id2label)`). A stream is read once.
        with_scales: keep γ of each edge in the results, as `detections_to_coco` says.
        with_parts: keep the objectness in the results, as `detections_to_coco` says.
        rows: gets every row of the data set without its image, on every process.
        options: `batch_size`, `threshold`, `top_k`, `num_workers`, `accelerator` and `progress`; see `PredictOptions`.
            The batches are the same ones whatever the number of processes, so that the results are the same, too.

    Returns:
        As `detections_to_coco`: original image and category ids, boxes [x, y, width, height] in pixels of the stored
        image. On every process those of all images, in the order of the data set. The image ids of a stream are its
        own if each image has one and no two the same, and else their places in it, from 0.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    source: Iterable[Row] = dataset.dataset if isinstance(dataset, DetectionDataset) else dataset
    rows = [] if rows is None else rows

    def numbered() -> Iterator[Row]:
        """Every row with its place, which tells the images of a stream apart."""
        for place, row in enumerate(source):
            rows.append({name: value for name, value in row.items() if name != "image"})
            yield {**row, "place": place}

    total = len(dataset) if isinstance(dataset, DetectionDataset) else None
    category_ids = _category_ids(dataset)
    share = []
    for batch, detections in predict_batches(model, processor, numbered(), total=total, **options):
        places = [row["place"] for row in batch]
        share.append((places, detections_to_coco(detections, places, category_ids, with_scales, with_parts)))
    everything = sorted(gather_object(share) if options.get("accelerator") else share, key=lambda pair: pair[0])
    ids = [row["image_id"] for row in rows]
    if source is dataset and (len(set(ids)) < len(ids) or min(ids, default=0) < 0):
        for place, row in enumerate(rows):
            row["image_id"] = place
    return [{**one, "image_id": rows[one["image_id"]]["image_id"]} for _, found in everything for one in found]


def predict_stream(
    model: nn.Module, processor: Any, dataset: StreamingDetectionDataset, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What `predict_dataset` gives of a stream, and the stream's COCO ground truth (`images`, `annotations`, which are
    the cleaned boxes, and `categories`) with the same ids, from reading it once.
    """
    rows: list[dict[str, Any]] = []
    results = predict_dataset(model, processor, dataset, rows=rows, **options)
    if dataset.report.turned_images:
        logger.warning("%s: %s", dataset.name, turned_notice(dataset.report, dataset.image_frame))
    annotations = [{"image_id": row["image_id"], **one} for row in rows for one in object_records(row)]
    return results, {
        "images": [{"id": row["image_id"], "width": row["width"], "height": row["height"]} for row in rows],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": dataset.id2label[i]} for i in _category_ids(dataset) if i != -1],
    }


def object_records(row: Row) -> list[dict[str, Any]]:
    """The objects of a row as COCO has them, which is how the image processor takes them; categories are labels."""
    columns = [row["objects"][name] for name in ("bbox", "category", "area", "iscrowd")]
    return [
        dict(zip(("bbox", "category_id", "area", "iscrowd"), one, strict=True)) for one in zip(*columns, strict=True)
    ]


def predict_batches(
    model: nn.Module,
    processor: Any,
    rows: Iterable[Row],
    *,
    batch_size: int = 8,
    threshold: float = 0.0,
    top_k: int = 100,
    num_workers: int = 0,
    accelerator: Accelerator | PartialState | None = None,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[list[Row], list[Detection]]]:
    """The rows of each batch with their detections, as `predict_images` gives them, few batches in memory at a time.

    Args:
        rows: with an `image`, as `decode_image` takes it.
        total: images of all processes, if known, for the progress bar.
        model, processor, batch_size, threshold, top_k, num_workers, accelerator, progress: as in `predict_dataset`.
    """
    count, index = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)

    def prepare(rows: Sequence[Row]) -> tuple[Mapping[str, torch.Tensor], list[tuple[int, int]]]:
        images = [decode_image(row) for row in rows]
        return processor(images=images, return_tensors="pt"), [(image.height, image.width) for image in images]

    batches = prepared_batches(rows, prepare, batch_size, num_workers, count, index)
    own = None if total is None else math.ceil(total / count)
    with tqdm(total=own, desc="detecting", unit="image", disable=not progress or index > 0) as bar:
        for batch, (inputs, sizes) in batches:
            # Not around the loop: the caller's code between two batches would run without gradients, too.
            with evaluating(model):
                detections = _detect(model, processor, inputs, sizes, threshold, top_k)
            bar.update(len(batch))
            yield batch, detections


def predict_images(
    model: nn.Module, processor: Any, images: Sequence[Image.Image], threshold: float = 0.0, top_k: int = 100
) -> list[Detection]:
    """Detections in one batch of images.

    Args:
        model, processor, threshold, top_k: as in `predict_dataset`.
        images: any sizes; they are padded to a common one.

    Returns:
        Per image `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy and `scales` (n, 4), both in pixels of
        the given image, and `objectness` (n,), on the CPU.
    """
    rows = [{"image": image} for image in images]
    options: PredictOptions = {"batch_size": len(rows), "threshold": threshold, "top_k": top_k, "progress": False}
    return [one for _, found in predict_batches(model, processor, rows, **options) for one in found]


def find_images(inputs: Sequence[str], leave_out: Path | None = None) -> list[str]:
    """Image files and URLs named by `inputs`, each once, in order; a folder stands for all images in it and below it.

    Hidden files and folders (.thumbnails/, and ._a.jpg, which macOS adds to archives) are left out.

    Args:
        inputs: files, folders, and addresses that begin with http:// or https://.
        leave_out: a folder inside of others that is not searched, such as the one for the output.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no images.
    """
    found: dict[str, None] = {}
    for text in inputs:
        path = Path(text)
        if is_url(text):
            found[text] = None
        elif path.is_dir():
            below = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
            below = [file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts)]
            if leave_out is not None and leave_out.resolve().is_relative_to(path.resolve()):
                below = [file for file in below if leave_out.resolve() not in file.resolve().parents]
            if not below:
                raise FileNotFoundError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
            found.update(dict.fromkeys(map(str, below)))
        elif path.is_file():
            found[str(path)] = None
        else:
            raise FileNotFoundError(f"{path}: no such image file or folder")
    return list(found)


def is_url(text: str) -> bool:
    """Whether an input is an address of the web."""
    return text.lower().startswith(("http://", "https://"))


def open_source(source: str | PathLike[str], image_frame: str = "upright") -> Image.Image:
    """RGB image of a file or a URL.

    Args:
        image_frame: upright, as viewers show it, or stored, as `decode_image` has it.

    Raises:
        OSError, ValueError: as `decode_image`, or the URL cannot be read; the message names it.
    """
    if not is_url(str(source)):
        return decode_image({"image": source, "image_frame": image_frame})
    try:
        with urllib.request.urlopen(str(source), timeout=TIMEOUT) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(f"{source}: cannot be downloaded: {error}") from error
    if len(content) > MAX_DOWNLOAD:
        raise OSError(f"{source}: has more than {MAX_DOWNLOAD >> 20} MiB; download it yourself")
    return decode_image({"image": {"path": str(source), "bytes": content}, "image_frame": image_frame})


def prepared_batches(
    rows: Iterable[Row],
    prepare: Callable[[list[Row]], Prepared],
    batch_size: int,
    num_workers: int = 0,
    num_processes: int = 1,
    process_index: int = 0,
) -> Iterator[tuple[list[Row], Prepared]]:
    """Consecutive rows, and what `prepare` makes of them; the last batch may have fewer.

    Args:
        rows: iterated over in this thread. Every process reads all of them, and prepares every n-th batch.
        prepare: its error is raised where its value would have come.
        num_workers: threads that prepare, each at most one batch ahead, so that memory does not depend on the number of
            rows. Threads suffice: decoding and resizing run outside of Python.
    """
    rows = iter(rows)
    groups = iter(lambda: list(itertools.islice(rows, batch_size)), [])
    own = itertools.islice(groups, process_index, None, num_processes)
    if num_workers == 0:
        yield from ((group, prepare(group)) for group in own)
        return
    waiting: deque[tuple[list[Row], Future[Prepared]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for group in own:
                waiting.append((group, pool.submit(prepare, group)))
                if len(waiting) > num_workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every module is in the mode it was in before."""
    # model.train() at the end would also put modules in training mode that were kept in eval, such as
    # frozen norms.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def to_model(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs on the device of the model, fractions in its number type."""
    parameter = next(model.parameters())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def _detect(
    model: nn.Module,
    processor: Any,
    inputs: Mapping[str, torch.Tensor],
    sizes: list[tuple[int, int]],
    threshold: float,
    top_k: int,
) -> list[Detection]:
    outputs = model(**to_model(model, inputs))
    if isinstance(processor, DrmmImageProcessor):
        detections = select_detections(outputs, threshold, sizes, top_k)
    elif outputs.get("pred_scales") is not None:  # D-RMM on a stock detector, whose processor knows nothing of scales
        logits, config = outputs["logits"], cast(PreTrainedConfig, model.config)
        if logits.shape[-1] > len(config.id2label or {}):  # a softmax with the background
            logits = torch.logit(logits.softmax(dim=-1)[..., :-1])
        detections = select_detections({**outputs, "logits": logits}, threshold, sizes, top_k)
    else:  # stock detectors disagree about what a score is, and their processors know
        detections = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        best = [one["scores"].topk(min(top_k, len(one["scores"]))).indices for one in detections]
        detections = [
            {name: value[index] for name, value in one.items()} for one, index in zip(detections, best, strict=True)
        ]
    return [
        {name: value.float().cpu() if value.is_floating_point() else value.cpu() for name, value in one.items()}
        for one in detections
    ]


def _category_ids(dataset: DetectionDataset | StreamingDetectionDataset) -> list[int]:
    """Category id of each label; of a stream the label itself, -1 where the stream is known not to have it."""
    if isinstance(dataset, DetectionDataset):
        return dataset.category_ids
    present = dataset.class_names
    return [label if present is None or name in present else -1 for label, name in dataset.id2label.items()]
