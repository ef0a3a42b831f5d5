"""Does an exported file compute what the model computes? Largest deviations, over sizes and batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert

from ..canvas_drmm import STRIDE
from ..modeling_drmm import DrmmForObjectDetection
from .graph import MIN_SIDE, DetectorGraph, GraphSettings, example_inputs

TOLERANCE = 1e-4

Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


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
        run: the exported file: inputs by name to outputs in the order of the graph.
        reference: graph of the model without ranking, run as it is (eagerly).
        settings: of the exported file; what it fixes is not varied.
        canvas: (height, width) the image processor makes of an image, pixels.
    """
    sizes = [settings.size] if settings.size else _sizes(canvas)
    batches = [settings.batch] if settings.batch else [1, 2]
    names = [*reference.input_names, *(["target_sizes"] if settings.top_k else [])]
    for size in sizes:
        for batch in batches:
            inputs = example_inputs(names, batch, size, seed=batch)
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


def _sizes(canvas: tuple[int, int]) -> list[tuple[int, int]]:
    return [(_rounded(canvas[0] * share), _rounded(canvas[1] * share)) for share in (0.25, 0.5, 1.0)]


def _rounded(side: float) -> int:
    return max(MIN_SIDE, round(side / STRIDE) * STRIDE)


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
    values = {
        name: distance.gather(2, nearest).max().item()
        for name, distance in zip(("scores", "boxes", "scales"), apart, strict=False)
    }
    values["scores"] = max(values["scores"], (scores - best).abs().max().item())
    return values
