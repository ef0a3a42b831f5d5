"""CPU time of reading regions from a feature map: the package's way against torchvision's operator, in one run."""

import statistics
import time
from collections.abc import Callable

import torch

from drmm_hf.roi_align_drmm import _bag_roi_align, _operator_roi_align

CASES = {
    "tiny preset, training batch: 2 images, 64 boxes, 64 channels, 36x48": (2, 64, 64, 36, 48, 8),
    "ResNet-50 preset, stride 8 of 800x1344: 1 image, 300 boxes, 256 channels, 100x168": (1, 300, 256, 100, 168, 8),
}
ROUNDS = 7


def cpu_milliseconds(pool: Callable, feature: torch.Tensor, boxes: torch.Tensor, stride: int) -> tuple[float, float]:
    """Median CPU time of forward and of backward, single-threaded."""
    level = torch.zeros(boxes.shape[:2], dtype=torch.long)
    forward, backward = [], []
    for _ in range(ROUNDS):
        leaf = feature.clone(memory_format=torch.preserve_format).requires_grad_()
        start = time.process_time()
        pooled = pool([leaf], boxes, level, [stride], 7, 2)
        middle = time.process_time()
        pooled.backward(torch.ones_like(pooled))
        forward.append(middle - start)
        backward.append(time.process_time() - middle)
    return statistics.median(forward) * 1e3, statistics.median(backward) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| case | torchvision forward, backward (ms) | ours (ms) | ratio of the sum |\n|---|---|---|---|")
    for name, (batch, num_boxes, dim, height, width, stride) in CASES.items():
        feature = torch.randn(batch, dim, height, width)
        center = torch.rand(batch, num_boxes, 2) * torch.tensor([width, height]) * stride
        size = 10 + 100 * torch.rand(batch, num_boxes, 2)
        boxes = torch.cat((center - size / 2, center + size / 2), dim=-1)
        # Each in the memory format that it is fastest in and gets in the model.
        theirs = cpu_milliseconds(_operator_roi_align, feature, boxes, stride)
        ours = cpu_milliseconds(_bag_roi_align, feature.contiguous(memory_format=torch.channels_last), boxes, stride)
        print(
            f"| {name} | {theirs[0]:.1f}, {theirs[1]:.1f} | {ours[0]:.1f}, {ours[1]:.1f} "
            f"| {sum(theirs) / sum(ours):.1f} |"
        )


if __name__ == "__main__":
    main()
