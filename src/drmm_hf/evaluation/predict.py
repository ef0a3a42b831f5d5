"""Runs a detector over images: a list of pictures, or a whole data set to COCO results."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..data import DetectionDataset
from .batches import Batch, read_batches
from .coco import detections_to_coco

Detection = dict[str, torch.Tensor]


def predict_dataset(
    model: nn.Module,
    processor: Any,
    dataset: DetectionDataset,
    *,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    threshold: float = 0.0,
    top_k: int = 100,
    num_workers: int = 0,
    progress: bool = True,
    with_scales: bool = False,
    with_parts: bool = False,
    num_processes: int = 1,
    process_index: int = 0,
) -> list[dict[str, Any]]:
    """COCO results of a model on a data set.

    Args:
        model: a `DrmmForObjectDetection`; runs in eval mode without gradients, and gets its modes back.
        processor: its `DrmmImageProcessor`.
        dataset: labels must be those of the model (`load_detection_dataset(...,
            id2label=model.config.id2label)`).
        batch_size: images in a batch.
        device: moves the model there; it stays where it is unless given.
        threshold: keep detections with a score above this.
        top_k: detections kept per image, the highest scores.
        num_workers: processes that decode and resize images; 0 does it in this one.
        progress: show a progress bar on stderr.
        with_scales: keep γ of each edge in the results, as `detections_to_coco` says.
        with_parts: keep the objectness in the results, as `detections_to_coco` says.
        num_processes, process_index: predict the share of one of several processes. The batches are the same ones
            whatever their number, and each image is in one of them, so that the results together are the same, too.

    Returns:
        As `detections_to_coco`: original image and category ids, boxes [x, y, width, height] in pixels of the
        stored image.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    if device is not None:
        model.to(device)
    batches = read_batches(
        dataset,
        processor,
        batch_size,
        num_workers=num_workers,
        num_processes=num_processes,
        process_index=process_index,
    )
    results: list[dict[str, Any]] = []
    total = -(-len(dataset) // num_processes)
    for batch, detections in predict_batches(
        model, batches, processor, threshold=threshold, top_k=top_k, total=total, progress=progress
    ):
        image_ids = [row["image_id"] for row in batch.rows]
        results += detections_to_coco(detections, image_ids, dataset.category_ids, with_scales, with_parts)
    return results


def predict_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    processor: Any,
    *,
    threshold: float = 0.0,
    top_k: int = 100,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[Batch, list[Detection]]]:
    """Each batch with its detections, as `predict_images` gives them, one batch in memory at a time.

    Args:
        model, processor, threshold, top_k, progress: as in `predict_dataset`.
        batches: as `read_batches` gives them.
        total: images of all batches, if known, for the progress bar.
    """
    with tqdm(total=total, desc="detecting", unit="image", disable=not progress) as bar:
        for batch in batches:
            # Not around the loop: the caller's code between two batches would run without gradients, too.
            with evaluating(model):
                detections = _detect(model, processor, batch.inputs, batch.sizes, threshold, top_k)
            bar.update(len(batch.rows))
            yield batch, detections


def predict_images(
    model: nn.Module,
    processor: Any,
    images: Sequence[Image.Image],
    *,
    threshold: float = 0.0,
    top_k: int = 100,
) -> list[Detection]:
    """Detections in one batch of RGB images.

    Args:
        model, processor, threshold, top_k: as in `predict_dataset`.
        images: any sizes; they are padded to a common one.

    Returns:
        Per image `scores` (n,), `labels` (n,), `boxes` (n, 4) xyxy and `scales` (n, 4), both in pixels of
        the given image, and `objectness` (n,), on the CPU.
    """
    if not images:
        return []
    inputs = processor(images=list(images), return_tensors="pt")
    sizes = [(image.height, image.width) for image in images]
    with evaluating(model):
        return _detect(model, processor, inputs, sizes, threshold, top_k)


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


def _detect(
    model: nn.Module,
    processor: Any,
    inputs: Mapping[str, torch.Tensor],
    sizes: list[tuple[int, int]],
    threshold: float,
    top_k: int,
) -> list[Detection]:
    parameter = next(model.parameters())
    moved = {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    outputs = model(**moved)
    detections = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes, top_k=top_k)
    return [
        {name: value.float().cpu() if value.is_floating_point() else value.cpu() for name, value in one.items()}
        for one in detections
    ]
