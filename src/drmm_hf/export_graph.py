"""The detector as a function of tensors alone, which is what leaves Python, and how far another one is from it."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import box_convert

from .image_processing_drmm import DrmmImageProcessor
from .loading import predicted
from .modeling_drmm import DrmmForObjectDetection
from .postprocessing import best_pairs

STRIDE = DrmmImageProcessor.size_divisor
# A coarsest map of one row or column makes torch.export take another path through memory formats.
MIN_SIDE = 2 * STRIDE
AXES = {
    "pixel_values": {0: "batch", 2: "height", 3: "width"},
    "pixel_mask": {0: "batch", 1: "height", 2: "width"},
    "target_sizes": {0: "batch"},
}
"""Axes of the inputs that can be dynamic; of the outputs it is the first."""

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""An exported file: inputs by name to outputs in the order of its graph."""


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
    """A detector whose inputs and outputs are tensors with fixed names; a copy in float32, the model stays as it is.

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
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        if isinstance(model, DrmmForObjectDetection):
            # A batch is computed as one canvas: images of several canvases are no graph.
            self.model.config.isolate_images = False
            if attention is not None:
                self.model.set_attn_implementation(attention)
        self.top_k = top_k
        self.input_names = ["pixel_values", "pixel_mask", *(["target_sizes"] if top_k else [])]
        names = ["scores", "labels", "boxes", "scales"] if top_k else ["logits", "pred_boxes", "pred_scales"]
        self.output_names = names if "scales" in predicted(model) else names[:-1]

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, target_sizes: Tensor | None = None) -> tuple:
        """Tensors by `input_names` to tensors by `output_names`."""
        outputs = self.model(pixel_values.to(self.model.dtype), pixel_mask=pixel_mask)
        fields = (outputs.logits, outputs.pred_boxes, getattr(outputs, "pred_scales", None))
        raw = [value.float() for value in fields if value is not None]
        if raw[0].shape[-1] > len(self.model.config.id2label):  # DETR: a softmax with the background
            raw[0] = torch.logit(raw[0].softmax(dim=-1)[..., :-1])
        if self.top_k is None:
            return tuple(raw)
        assert target_sizes is not None  # `input_names` has it
        # as `select_detections` without its end, lists of varying length
        scores, labels, components = best_pairs(raw[0], self.top_k)
        boxes, *scales = (values.gather(1, components) for values in raw[1:])
        pixels = target_sizes.to(boxes.dtype).flip(1).repeat(1, 2).unsqueeze(1)
        return scores, labels, box_convert(boxes, "cxcywh", "xyxy") * pixels, *(s * pixels for s in scales)


def example_inputs(names: Sequence[str], batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Random inputs of a `DetectorGraph`, the same at every call; the last image of several covers three quarters."""
    generator = torch.Generator().manual_seed(batch)
    mask = torch.ones(batch, *size, dtype=torch.int64)
    if batch > 1:
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
    if settings.size is None:
        backbone = graph.model.model.backbone
        # Windows (Swin) are cut and padded by size: torch.export does not come to an end on them with an open one.
        if backbone.strides is None or backbone.channels_last_output:
            raise ValueError(
                "the graph of this backbone holds for one size only: fix it (--size HxW), or use a convolutional "
                "backbone of timm."
            )
    dims = {} if settings.batch else {"batch": Dim("batch", min=1)}
    if settings.size is None:
        dims |= {name: STRIDE * Dim(name, min=MIN_SIDE // STRIDE) for name in ("height", "width")}
    shapes = {name: {axis: dims[dim] for axis, dim in AXES[name].items() if dim in dims} for name in graph.input_names}
    inputs = example_inputs(graph.input_names, settings.batch or 2, settings.size or (160, 224))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own tracing
        return torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)


def deviations(
    run: Run, reference: DetectorGraph, batch: int, size: tuple[int, int], top_k: int | None = None
) -> dict[str, float]:
    """Largest absolute deviations of a file from the model on random images, the last of several padded.

    Args:
        run: the exported file.
        reference: graph of the model without ranking, run as it is (eagerly).
        batch: images.
        size: their (height, width), pixels.
        top_k: what the file ranks, None for raw outputs.

    Returns:
        By output name; of a file that ranks, of `scores`, `boxes` and `scales`. Boxes and scales are fractions of the
        image.
    """
    inputs = example_inputs(reference.input_names, batch, size)
    with torch.no_grad():
        expected = reference(**inputs)
    if top_k:
        return _ranked_deviations(run({**inputs, "target_sizes": torch.ones(batch, 2, dtype=torch.int64)}), expected)
    pairs = zip(reference.output_names, run(inputs), expected, strict=True)
    return {name: (found - wanted).abs().max().item() for name, found, wanted in pairs}


def _ranked_deviations(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Scores in order; boxes and scales against the nearest component, because equal scores may change places."""
    scores, labels, *ranked = found
    logits, boxes, *scales = expected
    confidences = logits.sigmoid()
    best = confidences.flatten(1).topk(scores.shape[1], dim=1).values
    of_label = confidences.gather(2, labels.unsqueeze(1).expand(-1, logits.shape[1], -1)).transpose(1, 2)
    # (B, n, K) each: detection against component
    apart = [(scores.unsqueeze(-1) - of_label).abs()]
    for one, other in zip(ranked, [box_convert(boxes, "cxcywh", "xyxy"), *scales], strict=True):
        apart.append((one.unsqueeze(2) - other.unsqueeze(1)).abs().amax(-1))
    nearest = torch.stack(apart).amax(0).argmin(-1, keepdim=True)
    names = ("scores", "boxes", "scales")
    values = {name: far.gather(2, nearest).max().item() for name, far in zip(names, apart, strict=False)}
    return {**values, "scores": max(values["scores"], (scores - best).abs().max().item())}
