"""Runs a detector over images: a list of pictures, or a whole data set to COCO results."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import DetectionDataset, decode_image
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

    Returns:
        As `detections_to_coco`: original image and category ids, boxes [x, y, width, height] in pixels of the
        stored image.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read; the message names the file.
    """
    if device is not None:
        model.to(device)
    loader = DataLoader(
        dataset.dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_Collate(processor),
    )
    results: list[dict[str, Any]] = []
    bar = tqdm(total=len(dataset), desc="detecting", unit="image", disable=not progress)
    with evaluating(model), bar:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            inputs, image_ids, sizes = batch
            detections = _detect(model, processor, inputs, sizes, threshold, top_k)
            results += detections_to_coco(detections, image_ids, dataset.category_ids, with_scales)
            bar.update(len(image_ids))
    return results


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
        the given image, on the CPU.
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


class _Collate:
    """Decodes and preprocesses a batch of rows; a class, since workers started afresh must pickle it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        try:
            images = [decode_image(row) for row in rows]
        except (OSError, ValueError) as error:
            # Raised by the caller: a worker's exception would arrive wrapped in the worker's traceback.
            return error
        inputs = self.processor(images=images, return_tensors="pt")
        sizes = [(image.height, image.width) for image in images]
        return dict(inputs), [row["image_id"] for row in rows], sizes


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
