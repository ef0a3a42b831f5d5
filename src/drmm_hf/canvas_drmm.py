"""Each image of a batch on its own canvas, so that what is detected does not depend on the rest of the batch.

A batch pads its images to the largest. The padding is zero, but after a convolution and a normalization it is not zero
any more, and what it holds reaches into the image from the border. So an image's detections change with its padding,
here as in every convolutional detector that is fed padded batches, the released code included. Computed on its own
canvas (its own size, rounded up as the image processor does for a single image) they do not.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

STRIDE = 32


def run_on_own_canvas(model: nn.Module, pixel_values: Tensor, pixel_mask: Tensor | None, **kwargs: Any) -> Any:
    """The model's output for a padded batch, images of one canvas size computed together.

    Args:
        model: called as `model(pixel_values, pixel_mask=..., **kwargs)`; its outputs have the batch first.
        pixel_values: (B, 3, H, W), padded at the right and the bottom.
        pixel_mask: (B, H, W), 1 on the image; None if there is no padding.

    Returns:
        The output in the order of the batch. Reads the sizes on the host, which on a GPU waits for the mask; while a
        graph is captured (compilation, export) the batch is computed whole.
    """
    if pixel_mask is None or torch.compiler.is_compiling():
        return model(pixel_values, pixel_mask=pixel_mask, **kwargs)
    full = tuple(pixel_values.shape[-2:])
    extents = torch.stack((pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0, :].sum(1)), dim=1).clamp(min=1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, extent in enumerate(extents.tolist()):
        canvas = tuple(min(-(-side // STRIDE) * STRIDE, limit) for side, limit in zip(extent, full, strict=True))
        groups.setdefault(canvas, []).append(i)
    if list(groups) == [full]:
        return model(pixel_values, pixel_mask=pixel_mask, **kwargs)
    outputs = [
        model(pixel_values[index, :, :height, :width], pixel_mask=pixel_mask[index, :height, :width], **kwargs)
        for (height, width), index in groups.items()
    ]
    order = torch.tensor([i for index in groups.values() for i in index], device=pixel_values.device).argsort()
    # None: a layer whose hidden states were not asked for
    return tree_map(lambda *parts: None if parts[0] is None else torch.cat(parts)[order], *outputs)
