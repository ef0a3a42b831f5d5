"""Training samples to batches: uint8 until the device, padded to the backbone's stride."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import DetectionDataset, TrainTransform

STRIDE = 32


class TrainingSamples(Dataset):
    """Augmented samples of a `DetectionDataset`."""

    def __init__(self, dataset: DetectionDataset, transform: TrainTransform):
        self.rows, self.transform = dataset.dataset, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any] | Exception:
        try:
            return self.transform(self.rows[index])
        except (ValueError, OSError) as error:
            return error  # raised in the main process: a worker's own report would be a page of traceback


def collate(samples: Sequence[Mapping[str, Any] | Exception]) -> dict[str, Any] | Exception:
    """Samples of one size to a batch, or the first error among them.

    Args:
        samples: `image` (3, h, w) uint8, `boxes` (n, 4) xyxy in its pixels, `labels` (n,).

    Returns:
        `image` (B, 3, H, W) uint8 with H, W rounded up to a multiple of 32, `pixel_mask` (B, H, W), and `labels` as
        `DrmmForObjectDetection` takes them.
    """
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    samples = cast(Sequence[Mapping[str, Any]], samples)
    height, width = samples[0]["image"].shape[-2:]
    padded = [-(-side // STRIDE) * STRIDE for side in (height, width)]
    images = torch.zeros(len(samples), 3, *padded, dtype=torch.uint8)
    mask = torch.zeros(len(samples), *padded, dtype=torch.long)
    labels = []
    for i, sample in enumerate(samples):
        images[i, :, :height, :width] = sample["image"]
        mask[i, :height, :width] = 1
        boxes = sample["boxes"] / torch.tensor([width, height, width, height])
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels.append({"boxes": torch.cat((center, size), dim=-1), "class_labels": sample["labels"]})
    return {"image": images, "pixel_mask": mask, "labels": labels}


def normalize(images: Tensor, pixel_mask: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 to the network's input: ImageNet-normalized, zero on the padding."""
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - shift) / scale * pixel_mask.unsqueeze(1)


def training_loader(
    dataset: DetectionDataset, transform: TrainTransform, batch_size: int, num_workers: int, seed: int
) -> DataLoader:
    """Shuffled batches; the last partial batch of an epoch is left out if there is a full one."""
    return DataLoader(
        TrainingSamples(dataset, transform),
        batch_size=batch_size,
        shuffle=True,
        drop_last=len(dataset) >= batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )


def canvas_size(dataset: DetectionDataset, size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width of the training canvas for the processor's `size`.

    A processor with fixed height and width gives just that. With shortest and longest edge the canvas lies as nine in
    ten of the images do, or is a square where they are mixed.
    """
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], size.get("longest_edge") or size["shortest_edge"]
    landscape = np.mean(np.array(dataset.dataset["width"]) >= np.array(dataset.dataset["height"]))
    if landscape >= 0.9:
        return short, long
    return (long, short) if landscape <= 0.1 else (long, long)
