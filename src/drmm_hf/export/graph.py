"""The detector as a function of tensors alone, which is what leaves Python, and its capture by torch.export."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import box_convert

from ..canvas_drmm import STRIDE
from ..modeling_drmm import DrmmForObjectDetection
from ..postprocessing_drmm import best_pairs

_EXAMPLE_BATCH, _EXAMPLE_SIZE = 2, (160, 224)
# A coarsest map of one row or column makes torch.export take another path through memory formats.
MIN_SIDE = 2 * STRIDE


@dataclass(frozen=True)
class GraphSettings:
    """What an exported graph computes, and for which inputs.

    Attributes:
        batch: images in a batch, None for any number.
        size: (height, width) of `pixel_values` in pixels, multiples of 32; None for any such size from 64 on.
        top_k: with a number, the graph ends in that many ranked detections instead of the model's raw outputs.

    Raises:
        ValueError: a number below 1, or a size that is no multiple of 32.
    """

    batch: int | None = None
    size: tuple[int, int] | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give a whole number of at least 1.")
        if self.size is not None and any(side < STRIDE or side % STRIDE for side in self.size):
            raise ValueError(
                f"size is {self.size[0]}x{self.size[1]} (height x width): both must be multiples of {STRIDE}, "
                "as the image processor pads to."
            )


class DetectorGraph(nn.Module):
    """A detector whose inputs and outputs are tensors with fixed names; a copy, the given model stays as it is.

    Inputs:
        pixel_values: (B, 3, H, W) float32 as the image processor makes them.
        pixel_mask: (B, H, W) int64, 1 on the image and 0 on its padding.
        target_sizes: (B, 2) int64 height and width of the original images, pixels; only with `top_k`.

    Outputs, all float32 but labels: `logits` (B, K, C), `pred_boxes` (B, K, 4), `pred_scales` (B, K, 4) as in
    `DrmmObjectDetectionOutput`; with `top_k` `scores` (B, n), `labels` (B, n) int64, `boxes` (B, n, 4) xyxy and
    `scales` (B, n, 4) as in `select_detections` without a threshold, n = min(top_k, K C). The baselines' head has no
    scales.

    Args:
        model: the detector.
        top_k: see above.
        attention: implementation of the attention (transformers' name); None keeps the model's.
    """

    def __init__(self, model: DrmmForObjectDetection, top_k: int | None = None, attention: str | None = None):
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # A batch is computed as one canvas: images of several canvases are no graph.
        self.model.config.isolate_images = False
        if attention is not None:
            self.model.set_attn_implementation(attention)
        self.top_k = top_k

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs in the order of `forward`; target_sizes only where the graph ranks."""
        return ["pixel_values", "pixel_mask", *(["target_sizes"] if self.top_k else [])]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs in their order; that of the scales only where the model predicts a density."""
        names = ["scores", "labels", "boxes", "scales"] if self.top_k else ["logits", "pred_boxes", "pred_scales"]
        return names if self.model.config.head == "mixture" else names[:-1]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, target_sizes: Tensor | None = None) -> tuple:
        """Tensors by `input_names` to tensors by `output_names`."""
        outputs = self.model(pixel_values.to(self.model.dtype), pixel_mask=pixel_mask)
        raw = [outputs.logits.float(), outputs.pred_boxes.float()]
        if outputs.pred_scales is not None:
            raw.append(outputs.pred_scales.float())
        if self.top_k is None:
            return tuple(raw)
        assert target_sizes is not None  # `input_names` has it
        return _rank(raw[0], raw[1:], target_sizes, self.top_k)


def _rank(logits: Tensor, boxes_and_scales: Sequence[Tensor], target_sizes: Tensor, top_k: int) -> tuple[Tensor, ...]:
    """`select_detections` without its end, lists of varying length."""
    scores, labels, components = best_pairs(logits, top_k)
    boxes, *scales = (values.gather(1, components) for values in boxes_and_scales)
    pixels = target_sizes.to(boxes.dtype).flip(1).repeat(1, 2).unsqueeze(1)
    corners = box_convert(boxes, "cxcywh", "xyxy") * pixels
    return scores, labels, corners, *(s * pixels for s in scales)


def example_inputs(
    names: Sequence[str], batch: int, size: tuple[int, int], seed: int = 0, padding: bool = True
) -> dict[str, Tensor]:
    """Random inputs of a `DetectorGraph`; with `padding` the last image of several covers three quarters."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, *size, dtype=torch.int64)
    if padding and batch > 1:
        mask[-1, size[0] * 3 // 4 :], mask[-1, :, size[1] * 3 // 4 :] = 0, 0
    inputs = {
        "pixel_values": torch.randn(batch, 3, *size, generator=generator) * mask.unsqueeze(1),
        "pixel_mask": mask,
        "target_sizes": torch.tensor(size).repeat(batch, 1),
    }
    return {name: inputs[name] for name in names}


def capture(graph: DetectorGraph, settings: GraphSettings) -> ExportedProgram:
    """The graph as torch.export sees it, dynamic where the settings leave batch or size open.

    Raises:
        ValueError: any size is asked of a model whose graph depends on the size.
    """
    backbone = graph.model.model.backbone
    # Windows (Swin) are cut and padded by size: torch.export does not come to an end on them with an open one.
    if settings.size is None and (backbone.strides is None or backbone.channels_last_output):
        raise ValueError(
            "the graph of this backbone holds for one size only: fix it (--size HxW), or use a convolutional backbone "
            "of timm."
        )
    inputs = example_inputs(graph.input_names, settings.batch or _EXAMPLE_BATCH, settings.size or _EXAMPLE_SIZE)
    dynamic: dict[int, Dim] = {}
    if settings.batch is None:
        dynamic[0] = Dim("batch", min=1)
    spatial = []
    if settings.size is None:
        spatial = [STRIDE * Dim(name, min=MIN_SIDE // STRIDE) for name in ("height_32", "width_32")]
    shapes = {
        "pixel_values": {**dynamic, **{2 + i: side for i, side in enumerate(spatial)}},
        "pixel_mask": {**dynamic, **{1 + i: side for i, side in enumerate(spatial)}},
        "target_sizes": dict(dynamic),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own tracing
        return torch.export.export(
            graph, (), kwargs=inputs, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False
        )
