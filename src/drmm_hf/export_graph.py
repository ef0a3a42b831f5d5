"""The detector as a function of tensors alone, which is what leaves Python, and whether a file computes the same."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.ops import box_convert

from .image_processing_drmm import DrmmImageProcessor
from .modeling_drmm import DrmmForObjectDetection
from .postprocessing import best_pairs

STRIDE = DrmmImageProcessor.size_divisor
# A coarsest map of one row or column makes torch.export take another path through memory formats.
MIN_SIDE = 2 * STRIDE

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
        fields = (outputs.logits, outputs.pred_boxes, outputs.pred_scales)
        raw = [value.float() for value in fields if value is not None]
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
    backbone = graph.model.model.backbone
    # Windows (Swin) are cut and padded by size: torch.export does not come to an end on them with an open one.
    if settings.size is None and (backbone.strides is None or backbone.channels_last_output):
        raise ValueError(
            "the graph of this backbone holds for one size only: fix it (--size HxW), or use a convolutional backbone "
            "of timm."
        )
    inputs = example_inputs(graph.input_names, settings.batch or 2, settings.size or (160, 224))
    batch = {0: Dim("batch", min=1)} if settings.batch is None else {}
    sides = [STRIDE * Dim(f"{name}_{STRIDE}", min=MIN_SIDE // STRIDE) for name in ("height", "width")]
    spatial = {} if settings.size else dict(enumerate(sides))
    shapes = {
        "pixel_values": batch | {2 + i: side for i, side in spatial.items()},
        "pixel_mask": batch | {1 + i: side for i, side in spatial.items()},
        "target_sizes": batch,
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own tracing
        return torch.export.export(
            graph, (), kwargs=inputs, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False
        )


@dataclass(frozen=True)
class Deviation:
    """Largest absolute deviations from the model on one batch; boxes and scales as fractions of the image.

    Attributes:
        batch, size: images, and their padded (height, width) in pixels.
        values: by output name; of a graph that ranks, `scores`, `boxes` and `scales`.
    """

    batch: int
    size: tuple[int, int]
    values: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest of all deviations."""
        return max(self.values.values())


def check_parity(
    run: Run, reference: DetectorGraph, settings: GraphSettings, canvas: tuple[int, int]
) -> Iterator[Deviation]:
    """Compare on random images, the last of several padded: batches of 1 and 2, a quarter, half and all of `canvas`.

    Args:
        run: the exported file.
        reference: graph of the model without ranking, run as it is (eagerly).
        settings: of the exported file; what it fixes is not varied.
        canvas: (height, width) the image processor makes of an image, pixels.
    """
    sizes = [settings.size] if settings.size else [_part_of(canvas, share) for share in (0.25, 0.5, 1.0)]
    names = [*reference.input_names, *(["target_sizes"] if settings.top_k else [])]
    for size in sizes:
        for batch in [settings.batch] if settings.batch else [1, 2]:
            inputs = example_inputs(names, batch, size)
            with torch.no_grad():
                expected = reference(**{name: inputs[name] for name in reference.input_names})
            if settings.top_k:
                inputs["target_sizes"] = torch.ones_like(inputs["target_sizes"])  # boxes as fractions
                values = _ranked_deviations(run(inputs), expected)
            else:
                pairs = zip(reference.output_names, run(inputs), expected, strict=True)
                values = {name: (found - wanted).abs().max().item() for name, found, wanted in pairs}
            yield Deviation(batch, size, values)


def rounding(model: DrmmForObjectDetection, place: Deviation) -> Deviation:
    """What rounding to float32 costs the model itself on the inputs of `place`: float64 layers against float32 ones.

    A deviation of an exported file of this order is the rounding of another order of sums, not a fault.
    """
    precise, settings = DetectorGraph(model).double(), GraphSettings(place.batch, place.size)
    return next(check_parity(lambda inputs: precise(**inputs), DetectorGraph(model), settings, place.size))


def _part_of(canvas: tuple[int, int], share: float) -> tuple[int, int]:
    height, width = (max(MIN_SIDE, round(side * share / STRIDE) * STRIDE) for side in canvas)
    return height, width


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
