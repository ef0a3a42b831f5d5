"""The mixture density of D-RMM and its two training terms: the paper's Equations 2 to 8 (3 in `density_drmm.py`).

An image's prediction is a mixture of K components. Component k carries a mixing coefficient pi_k, a location
mu_k and a scale gamma_k for each of the four box edges, class probabilities p_k and an objectness o_k from which
pi_k = o_k / sum_k' o_k' is derived (Section 3.2). The density of a ground truth (box b, class c) is

    p(b, c) = sum_k  pi_k * F(b; mu_k, gamma_k) * p_k[c]                                  (Eq. 2)
    F(b; mu, gamma) = product over the edges l, t, r, b of a 1-D Cauchy density              (Eq. 3)

and training minimises  NLL + beta * MCM  over all ground truths:

    NLL = -log p(b, c)                                                                     (Eq. 4, 5)
    MCM = -log( max_k pi_k F_k p_k[c] / p(b, c) )                                          (Eq. 6 to 8)

What the paper leaves open follows the authors' released code and is an argument here: pi is multiplied by the
number of ground truths of the image, scales have a floor relative to the predicted box, both logarithms contain
a small likelihood floor, and only F is shielded from the gradient of MCM (Table 7). Everything is computed in
log space: a linear-space product of four densities underflows float32 for ordinary boxes.

Inside, the ground truths of all images stand in one row of M, each with the index of its image, and the components of
all stages side by side as (B, S, K): one computation for all stages and images, with M * S * K numbers.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .density_drmm import DENSITIES, box_log_density, effective_scales, floored, image_index, log_density
from .matching import assign
from .pairwise_drmm import LogClassProbability

STOP_GRADIENTS = ("mixing", "location", "class")
OBJECTIVES = ("nll_mcm", "nll", "nll_max", "nll_mcm_bipartite", "nll_bipartite")

# A log weight of -1e6 is zero in every sum, and finite.
_MIN_LOG_WEIGHT = -1e6

__all__ = [
    "DENSITIES",
    "OBJECTIVES",
    "STOP_GRADIENTS",
    "MixtureLoss",
    "MixtureParameters",
    "box_log_density",
    "confidence_logits",
    "effective_scales",
    "log_mixing_coefficients",
    "mixture_loss",
    "mixture_losses",
    "responsibilities",
]


class MixtureParameters(NamedTuple):
    """The mixture that one stage predicts for each image of a batch.

    Attributes:
        locations: (B, K, 4) mu, the box edges x1, y1, x2, y2 in pixels of the network input.
        scales: (B, K, 4) gamma > 0, pixels, one per edge, before the floor of `effective_scales`.
        class_logits: (B, K, C); p = softmax. There is no background class.
        objectness_logits: (B, K); o = sigmoid.
        log_mixing: (B, K) log pi, or None to derive it from the objectness. It is given where components were
            dropped between stages: the released code does not normalise pi again.
    """

    locations: Tensor
    scales: Tensor
    class_logits: Tensor
    objectness_logits: Tensor
    log_mixing: Tensor | None = None


class MixtureLoss(NamedTuple):
    """Unreduced terms of the objective, (B, N) each, zero where the mask is False.

    The objective of a stage is `(nll + mcm_weight * mcm).sum()`; `mcm_weight` is applied by the caller.
    """

    nll: Tensor
    mcm: Tensor


def log_mixing_coefficients(objectness_logits: Tensor) -> Tensor:
    """log pi_k = log o_k - log sum_k' o_k' for o = sigmoid(objectness_logits), shape (B, K) (Section 3.2)."""
    log_objectness = F.logsigmoid(objectness_logits)
    return log_objectness - log_objectness.logsumexp(dim=-1, keepdim=True)


def mixture_loss(
    parameters: MixtureParameters,
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
    likelihood_floor: float = 1e-12,
    class_weight: float = 1.0,
    stop_gradient: Collection[str] = ("location",),
    objective: str = "nll_mcm",
) -> MixtureLoss:
    """NLL (Eq. 5) and MCM (Eq. 7) of every ground truth under one stage's mixture, for a whole batch at once.

    Runs in float32 (float64 for float64 input) whatever autocast says, without a host synchronisation (the two
    `_bipartite` objectives excepted), and is finite, with finite gradients, for every finite input.

    Args:
        parameters: the stage's `MixtureParameters`, K components.
        boxes: (B, N, 4) ground truths padded to the same N, xyxy in pixels of the network input.
        labels: (B, N) class indices 0..C-1. Masked entries of boxes and labels may hold anything.
        mask: (B, N), True where there is a ground truth; None if all are real.
        density, student_t_dof: see `box_log_density`.
        min_scale_ratio: see `effective_scales`; 0 switches the floor off.
        likelihood_floor: epsilon inside both logarithms (released code: 1e-12); 0 switches it off. The floor bounds
            the loss of a ground truth that no component explains, and fades its gradient out.
        class_weight: exponent of the class probability (released code, `prob_weight`).
        stop_gradient: which factors MCM sends no gradient into: any of "mixing", "location", "class" (Table 7).
        objective: which components the terms are about (Tables 2 and 3). "nll_max": NLL is of the maximal component
            alone. "nll_bipartite": NLL is of the component that bipartite matching gives to the ground truth, with
            the NLL as its cost, so this is no mixture. "nll_mcm_bipartite": MCM's numerator is the matched component
            instead of the maximal one. "nll_mcm" and "nll" are the equations as they stand.

    Returns:
        `MixtureLoss(nll, mcm)`, (B, N) each, zero where masked. An image without ground truths adds nothing. Where
        matching leaves a ground truth without a component (N > K), the term that needs one is zero.

    Raises:
        ValueError: an unknown density, objective or stop_gradient name, or shapes that do not fit together.
    """
    terms = mixture_losses(
        [parameters],
        boxes,
        labels,
        mask,
        density=density,
        student_t_dof=student_t_dof,
        min_scale_ratio=min_scale_ratio,
        likelihood_floor=likelihood_floor,
        class_weight=class_weight,
        stop_gradient=stop_gradient,
        objective=objective,
    )
    return MixtureLoss(terms.nll.view(labels.shape), terms.mcm.view(labels.shape))


def mixture_losses(
    stages: Sequence[MixtureParameters],
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    counts: Sequence[int] | None = None,
    *,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
    likelihood_floor: float = 1e-12,
    class_weight: float = 1.0,
    stop_gradient: Collection[str] = ("location",),
    objective: str = "nll_mcm",
) -> MixtureLoss:
    """`mixture_loss` of S stages in one computation; stages that differ in K are computed K by K.

    Args:
        stages: the `MixtureParameters` of each.
        counts: number of ground truths of each image, the first entries of its row, where the host knows them. Then
            nothing is computed for the padding, which in batches of COCO is most of (B, N).

    The other arguments are those of `mixture_loss`.

    Returns:
        `MixtureLoss(nll, mcm)`, (M, S) each: the ground truths of all images in a row, M = sum of `counts`; without
        `counts` those of (B, N), zero where masked.
    """
    for parameters in stages:
        _check_arguments(parameters, boxes, labels, mask, density, stop_gradient)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is no mixture objective; choose one of {', '.join(OBJECTIVES)}.")
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    if objective.endswith("_bipartite"):
        counts = None  # matching wants the rows of an image side by side
    with torch.autocast(boxes.device.type, enabled=False):
        truths = _ground_truths(boxes, labels, mask, counts)
        terms = []
        for group in _of_equal_size(stages):
            factors = _log_factors(group, truths, density, student_t_dof, min_scale_ratio, class_weight)
            terms.append(_terms(factors, mask, likelihood_floor, stop_gradient, objective))
        nll, mcm = (torch.cat(parts, dim=1) for parts in zip(*terms, strict=True))
        if counts is not None:
            return MixtureLoss(nll, mcm)
        real = mask.view(-1, 1)
        return MixtureLoss(torch.where(real, nll, 0), torch.where(real, mcm, 0))


def _terms(
    factors: tuple[Tensor, Tensor, Tensor], mask: Tensor, floor: float, stop_gradient: Collection[str], objective: str
) -> tuple[Tensor, Tensor]:
    """NLL and MCM (M, S) of the factors of the joint density (M, S, K) each."""
    log_joint = factors[0] + factors[1] + factors[2]
    matched = None
    if objective.endswith("_bipartite"):
        # (B * N, S, K) to (S, B, N, K) and back
        rows = assign(-log_joint.unflatten(0, mask.shape).permute(2, 0, 1, 3), mask)
        matched = rows.flatten(1).T
    log_likelihood = log_joint.logsumexp(dim=-1)
    if objective == "nll_max":
        log_likelihood = log_joint.max(dim=-1).values
    elif objective == "nll_bipartite":
        log_likelihood = _at(log_joint, matched)
    nll = -_log_with_floor(log_likelihood, floor)

    named = zip(STOP_GRADIENTS, factors, strict=True)
    mixing, location, class_ = (t.detach() if name in stop_gradient else t for name, t in named)
    log_joint = mixing + location + class_
    log_evidence = _log_with_floor(log_joint.logsumexp(dim=-1), floor)
    owner = _at(log_joint, matched) if objective == "nll_mcm_bipartite" else log_joint.max(dim=-1).values
    mcm = -_log_with_floor(owner - log_evidence, floor)
    if matched is not None:  # a ground truth may be left without a component
        mcm = torch.where(matched >= 0, mcm, 0)
        nll = torch.where(matched >= 0, nll, 0) if objective == "nll_bipartite" else nll
    return nll, mcm


@torch.no_grad()
def responsibilities(
    parameters: MixtureParameters,
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
    likelihood_floor: float = 1e-12,
    class_weight: float = 1.0,
) -> Tensor:
    """Posterior probability of every component given each ground truth: pi_k F_k p_k / (p(b, c) + floor).

    The arguments are those of `mixture_loss`. A ground truth that no component explains is nobody's: its row sums up
    to less than one because of the floor.

    Returns:
        (B, N, K), without gradient; rows of masked entries hold anything in 0..1.
    """
    truths = _ground_truths(boxes, labels, mask, None)
    factors = _log_factors([parameters], truths, density, student_t_dof, min_scale_ratio, class_weight)
    log_joint = (factors[0] + factors[1] + factors[2]).view(*labels.shape, parameters.objectness_logits.shape[-1])
    return torch.exp(log_joint - _log_with_floor(log_joint.logsumexp(dim=-1, keepdim=True), likelihood_floor))


def confidence_logits(class_logits: Tensor, objectness_logits: Tensor) -> Tensor:
    """Log-odds of the confidence p_c * o (Section 3.4), so that `sigmoid(logits)` is the score.

    1 - p*o is taken as (1 - o) + o * (1 - p), and 1 - p of the likeliest class as the sum of the others, which stays
    exact where the confidence rounds to one.

    Args:
        class_logits: (B, K, C).
        objectness_logits: (B, K).

    Returns:
        (B, K, C), in float32 or wider.
    """
    class_logits, objectness_logits = _at_least_float32(class_logits), _at_least_float32(objectness_logits)
    log_p = class_logits.log_softmax(dim=-1)
    log_o = F.logsigmoid(objectness_logits).unsqueeze(-1)
    log_tiny = math.log(torch.finfo(log_p.dtype).tiny)
    likeliest = class_logits.argmax(dim=-1, keepdim=True)
    others = log_p.scatter(-1, likeliest, log_tiny).logsumexp(dim=-1, keepdim=True)
    log_not_p = torch.log1p(-torch.exp(log_p)).clamp(min=log_tiny).scatter(-1, likeliest, others)
    log_not_o = F.logsigmoid(-objectness_logits).unsqueeze(-1)
    return log_p + log_o - torch.logaddexp(log_not_o, log_o + log_not_p)


class _GroundTruths(NamedTuple):
    """Ground truths of all images in a row: boxes (M, 4), labels and image index (M,); and their number (B,)."""

    boxes: Tensor
    labels: Tensor
    image: Tensor
    num_boxes: Tensor


def _ground_truths(boxes: Tensor, labels: Tensor, mask: Tensor, counts: Sequence[int] | None) -> _GroundTruths:
    batch, width = labels.shape
    num_boxes = mask.sum(dim=-1)
    if counts is None:
        boxes, labels = torch.where(mask.unsqueeze(-1), boxes, 0), torch.where(mask, labels, 0)
        return _GroundTruths(boxes.flatten(0, 1), labels.flatten(), image_index(batch, width, labels.device), num_boxes)
    # ranges and not a list of indices: a list would have to be copied to the device
    rows = [torch.arange(i * width, i * width + n, device=labels.device) for i, n in enumerate(counts)]
    index = torch.cat(rows)
    return _GroundTruths(boxes.flatten(0, 1)[index], labels.flatten()[index], index // max(width, 1), num_boxes)


def _log_factors(
    stages: Sequence[MixtureParameters],
    truths: _GroundTruths,
    density: str,
    student_t_dof: float,
    min_scale_ratio: float,
    class_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of pi times the image's number of ground truths, of F and of p (Eq. 2), (M, S, K) each."""
    # (4, B, S, K): the edges first, because reading every fourth number is several times slower
    locations, scales = (
        _at_least_float32(torch.stack([edges.movedim(-1, 0) for edges in values], dim=2))
        for values in zip(*(stage[:2] for stage in stages), strict=True)
    )
    scales = floored(locations, scales, min_scale_ratio)
    boxes = truths.boxes.T.to(locations.dtype)
    log_location = log_density(boxes, locations, scales, truths.image, density, student_t_dof)

    logits = [_at_least_float32(stage.class_logits).unsqueeze(1) for stage in stages]
    if boxes.device.type != "cpu":  # a CPU has the classes of one stage in its cache, not those of all
        logits = [torch.cat(logits, dim=1)]
    log_class = LogClassProbability.apply(truths.labels, truths.image, *logits).clamp(min=_MIN_LOG_WEIGHT)
    if class_weight != 1.0:
        log_class = log_class * class_weight

    # released code: pi is multiplied by the number of ground truths
    log_number = truths.num_boxes.clamp(min=1).to(locations.dtype).log()[:, None, None]
    log_mixing = torch.stack([_log_mixing(stage) for stage in stages], dim=1)
    log_mixing = (log_mixing.clamp(min=_MIN_LOG_WEIGHT) + log_number).index_select(0, truths.image)
    return log_mixing, log_location, log_class


def _of_equal_size(stages: Sequence[MixtureParameters]) -> list[list[MixtureParameters]]:
    """Runs of stages with the same K; `itertools.groupby` does not compile with sizes."""
    groups: list[list[MixtureParameters]] = []
    for stage in stages:
        if groups and groups[-1][0].objectness_logits.shape[1] == stage.objectness_logits.shape[1]:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _log_mixing(stage: MixtureParameters) -> Tensor:
    if stage.log_mixing is not None:
        return _at_least_float32(stage.log_mixing)
    return log_mixing_coefficients(_at_least_float32(stage.objectness_logits))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _at(log_joint: Tensor, component: Tensor | None) -> Tensor:
    """(M, S, K) at the component (M, S) of each ground truth; an arbitrary one where that is -1."""
    assert component is not None  # only called where there was a matching
    return log_joint.gather(-1, component.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _log_with_floor(log_value: Tensor, floor: float) -> Tensor:
    """log(exp(log_value) + floor) without leaving log space."""
    if floor == 0.0:
        return log_value
    return torch.logaddexp(log_value, log_value.new_full((), math.log(floor)))


def _check_arguments(
    parameters: MixtureParameters,
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    density: str,
    stop_gradient: Collection[str],
) -> None:
    if density not in DENSITIES:
        raise ValueError(f"density={density!r} is unknown; choose one of {', '.join(DENSITIES)}.")
    unknown = set(stop_gradient) - set(STOP_GRADIENTS)
    if isinstance(stop_gradient, str) or unknown:
        raise ValueError(
            f"stop_gradient={stop_gradient!r}: give a collection of names out of {', '.join(STOP_GRADIENTS)}."
        )
    batch, components = parameters.objectness_logits.shape
    expected = {
        "locations": ((batch, components, 4), parameters.locations),
        "scales": ((batch, components, 4), parameters.scales),
        "class_logits": ((batch, components, parameters.class_logits.shape[-1]), parameters.class_logits),
        "boxes": ((batch, labels.shape[-1], 4), boxes),
        "labels": ((batch, labels.shape[-1]), labels),
    }
    if mask is not None:
        expected["mask"] = ((batch, labels.shape[-1]), mask)
    for name, (shape, tensor) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"mixture_loss: {name} has shape {tuple(tensor.shape)}, expected {shape} "
                f"(batch, {'components' if name in ('locations', 'scales', 'class_logits') else 'ground truths'}, ...)."
            )
