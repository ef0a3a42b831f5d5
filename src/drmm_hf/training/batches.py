"""Training samples to batches: uint8 until the device, padded to the backbone's stride."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import DetectionDataset
from .faults import ignore_interrupts
from .sampling import TrainingOrder, sample_seed

STRIDE = 32
_OF_A_SAMPLE = {"image", "boxes", "labels", "skipped"}
MAX_REPLACEMENTS = 10
"""So many unreadable images in a row are no accident."""


class TrainingSamples(Dataset):
    """Augmented samples of a `DetectionDataset`, each a function of the seed, the epoch and its index alone.

    An image that cannot be read is replaced by the next one that can, and named in the sample's `skipped`.

    Args:
        dataset: rows of it are what `transform` takes.
        transform: draws from torch's global generator.
        seed: of the augmentation.
        strict: return the error of an unreadable image in place of a sample.
    """

    def __init__(self, dataset: DetectionDataset, transform: Callable, seed: int = 0, *, strict: bool = False):
        self.rows, self.transform, self.seed, self.strict = dataset.dataset, transform, seed, strict

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | Exception:
        epoch, index = key
        before = torch.get_rng_state()
        # not torch.manual_seed, which would seed the accelerator as well
        torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
        try:
            return self._readable_sample(index)
        finally:
            torch.set_rng_state(before)

    def _readable_sample(self, index: int) -> dict[str, Any] | Exception:
        skipped = []
        for candidate in range(index, index + MAX_REPLACEMENTS):
            try:
                sample = self.transform(self.rows[candidate % len(self.rows)])
            except (ValueError, OSError) as error:
                if self.strict:
                    return error  # raised in the main process: a worker's own report is a page of traceback
                skipped.append(str(error))
            else:
                return {**sample, "skipped": skipped}
        return ValueError(f"{len(skipped)} images in a row cannot be read; the last: {skipped[-1]}")


def collate(samples: Sequence[Mapping[str, Any] | Exception | None]) -> dict[str, Any] | Exception | None:
    """Samples to a batch, or the first error or None among them.

    Args:
        samples: `image` (3, h, w) uint8, `boxes` (n, 4) xyxy in its pixels, `labels` (n,), and optionally `skipped`,
            messages of images that could not be read. What else the last sample has is passed on.

    Returns:
        `image` (B, 3, H, W) uint8 with H, W the largest rounded up to a multiple of 32, `pixel_mask` (B, H, W),
        `labels` as `DrmmForObjectDetection` takes them, and `skipped`.
    """
    for sample in samples:
        if sample is None or isinstance(sample, Exception):
            return sample
    samples = cast(Sequence[Mapping[str, Any]], samples)
    largest = [max(sample["image"].shape[axis] for sample in samples) for axis in (-2, -1)]
    padded = [-(-side // STRIDE) * STRIDE for side in largest]
    images = torch.zeros(len(samples), 3, *padded, dtype=torch.uint8)
    mask = torch.zeros(len(samples), *padded, dtype=torch.long)
    labels = []
    for i, sample in enumerate(samples):
        height, width = sample["image"].shape[-2:]
        images[i, :, :height, :width] = sample["image"]
        mask[i, :height, :width] = 1
        boxes = sample["boxes"] / torch.tensor([width, height, width, height])
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        labels.append({"boxes": torch.cat((center, size), dim=-1), "class_labels": sample["labels"]})
    skipped = [message for sample in samples for message in sample.get("skipped", ())]
    more = {name: value for name, value in samples[-1].items() if name not in _OF_A_SAMPLE}
    return {"image": images, "pixel_mask": mask, "labels": labels, "skipped": skipped, **more}


def normalize(images: Tensor, pixel_mask: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 to the network's input: ImageNet-normalized, zero on the padding."""
    scale = torch.tensor(std, device=images.device).view(1, 3, 1, 1) * 255
    shift = torch.tensor(mean, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - shift) / scale * pixel_mask.unsqueeze(1)


def training_loader(
    samples: Dataset, num_workers: int = 0, *, order: TrainingOrder | None = None, batch_size: int = 1
) -> DataLoader:
    """Endless batches: in the given order, or of so many consecutive samples of a stream."""
    return DataLoader(
        samples,
        **({"batch_size": batch_size} if order is None else {"batch_sampler": order}),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_interrupts,
    )


def orientation_groups(dataset: DetectionDataset) -> list[int]:
    """1 for each image at least as wide as tall and 0 for the others, as mmdet groups them; nothing is decoded."""
    wide = np.array(dataset.dataset["width"]) >= np.array(dataset.dataset["height"])
    return wide.astype(int).tolist()


def canvas_size(landscape_share: float, size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width of the training canvas for the processor's `size`.

    A processor with fixed height and width gives just that. With shortest and longest edge the canvas lies as nine in
    ten of the images do, or is a square where they are mixed.
    """
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], size.get("longest_edge") or size["shortest_edge"]
    if landscape_share >= 0.9:
        return short, long
    return (long, short) if landscape_share <= 0.1 else (long, long)
