"""The mixture density of D-RMM and its two training terms: the paper's Equations 2 to 8 in one file.

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
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .matching import assign

DENSITIES = ("cauchy", "gaussian", "student_t")
STOP_GRADIENTS = ("mixing", "location", "class")
OBJECTIVES = ("nll_mcm", "nll", "nll_max", "nll_mcm_bipartite", "nll_bipartite")

# Bounds that keep every value and gradient finite in float32; far outside of what changes a likelihood that
# counts: 1e-15 px is below any scale the released code was run with, and a log weight of -1e6 is zero.
_MIN_SCALE, _MAX_LENGTH = 1e-15, 1e15
_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_DEVIATION = 1e8, 1e10
_MIN_LOG_WEIGHT = -1e6


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


def effective_scales(locations: Tensor, scales: Tensor, min_scale_ratio: float) -> Tensor:
    """The scales that the density uses: gamma, but at least `min_scale_ratio` times the predicted box's size.

    The floor of the l and r edges is relative to the width, of t and b to the height (released code,
    `min_sc_ratio`). It is not detached: where it is active the gradient goes to the location. A box of negative
    size (x2 < x1) has no floor.

    Args:
        locations, scales: (..., 4) pixels.

    Returns:
        (..., 4) pixels.
    """
    size = locations[..., 2:] - locations[..., :2]
    return torch.maximum(scales, min_scale_ratio * torch.cat((size, size), dim=-1))


def box_log_density(
    boxes: Tensor, locations: Tensor, scales: Tensor, density: str = "cauchy", student_t_dof: float = 1.0
) -> Tensor:
    """log F(b_j; mu_k, gamma_k) for every ground truth j and component k (Eq. 3).

    Args:
        boxes: (B, N, 4) ground-truth edges, pixels xyxy.
        locations, scales: (B, K, 4) pixels; `scales` as `effective_scales` returns them.
        density: "cauchy", "gaussian" (scale = standard deviation) or "student_t".
        student_t_dof: degrees of freedom of "student_t"; 1 is the Cauchy density.

    Returns:
        (B, N, K) log densities in 1/px^4.
    """
    scales = scales.clamp(_MIN_SCALE, _MAX_LENGTH).unsqueeze(1)
    deviation = boxes.unsqueeze(2) - locations.unsqueeze(1)
    if density == "gaussian":
        deviation = deviation.clamp(-_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_LENGTH)
        z = (deviation / scales).clamp(-_MAX_GAUSSIAN_DEVIATION, _MAX_GAUSSIAN_DEVIATION)
        return (-0.5 * z.square() - scales.log()).sum(dim=-1) - 2.0 * math.log(2.0 * math.pi)

    dof = 1.0 if density == "cauchy" else student_t_dof
    constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    constant += 0.5 * (dof + 1) * math.log(dof)
    # log(dof * s^2 + d^2) instead of log(1 + (d/s)^2): the square of a ratio overflows, this sum cannot.
    deviation = deviation.clamp(-_MAX_LENGTH, _MAX_LENGTH)
    tail = torch.log(dof * scales.square() + deviation.square())
    return (dof * scales.log() - 0.5 * (dof + 1) * tail).sum(dim=-1) + 4.0 * constant


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
    _check_arguments(parameters, boxes, labels, mask, density, stop_gradient)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is no mixture objective; choose one of {', '.join(OBJECTIVES)}.")
    with torch.autocast(boxes.device.type, enabled=False):
        if mask is None:
            mask = torch.ones_like(labels, dtype=torch.bool)
        log_mixing, log_location, log_class = _log_factors(
            parameters, boxes, labels, mask, density, student_t_dof, min_scale_ratio, class_weight
        )
        log_joint = log_mixing + log_location + log_class
        matched = assign(-log_joint, mask) if objective.endswith("_bipartite") else None
        log_likelihood = log_joint.logsumexp(dim=-1)
        if objective == "nll_max":
            log_likelihood = log_joint.max(dim=-1).values
        elif objective == "nll_bipartite":
            log_likelihood = _at(log_joint, matched)
        nll = -_log_with_floor(log_likelihood, likelihood_floor)

        factors = zip(STOP_GRADIENTS, (log_mixing, log_location, log_class), strict=True)
        mixing, location, class_ = (t.detach() if name in stop_gradient else t for name, t in factors)
        log_joint = mixing + location + class_
        log_evidence = _log_with_floor(log_joint.logsumexp(dim=-1), likelihood_floor)
        owner = _at(log_joint, matched) if objective == "nll_mcm_bipartite" else log_joint.max(dim=-1).values
        mcm = -_log_with_floor(owner - log_evidence, likelihood_floor)
        has_owner = mask if matched is None else matched >= 0
        explained = has_owner if objective == "nll_bipartite" else mask
        return MixtureLoss(torch.where(explained, nll, 0), torch.where(has_owner, mcm, 0))


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
    log_joint = sum(
        _log_factors(parameters, boxes, labels, mask, density, student_t_dof, min_scale_ratio, class_weight),
        start=boxes.new_zeros(()),
    )
    return torch.exp(log_joint - _log_with_floor(log_joint.logsumexp(dim=-1, keepdim=True), likelihood_floor))


def log_confidence(class_logits: Tensor, objectness_logits: Tensor) -> Tensor:
    """log(p_c * o): the log of the confidence of every component and class (Section 3.4).

    Args:
        class_logits: (B, K, C).
        objectness_logits: (B, K).

    Returns:
        (B, K, C), in float32 or wider.
    """
    class_logits, objectness_logits = _at_least_float32(class_logits), _at_least_float32(objectness_logits)
    return class_logits.log_softmax(dim=-1) + F.logsigmoid(objectness_logits).unsqueeze(-1)


def confidence_logits(class_logits: Tensor, objectness_logits: Tensor) -> Tensor:
    """Log-odds of the confidence p_c * o, so that `sigmoid(logits)` is the score. Shapes as `log_confidence`.

    1 - p*o is taken as (1 - o) + o * (1 - p), which stays exact where the confidence rounds to one.
    """
    class_logits, objectness_logits = _at_least_float32(class_logits), _at_least_float32(objectness_logits)
    log_p = class_logits.log_softmax(dim=-1)
    log_o = F.logsigmoid(objectness_logits).unsqueeze(-1)
    log_not_p = torch.log((-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny))
    log_not_o = F.logsigmoid(-objectness_logits).unsqueeze(-1)
    return log_p + log_o - torch.logaddexp(log_not_o, log_o + log_not_p)


def _log_factors(
    parameters: MixtureParameters,
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor,
    density: str,
    student_t_dof: float,
    min_scale_ratio: float,
    class_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of pi times the number of ground truths (B, 1, K), F (B, N, K) and p (B, N, K) (Eq. 2)."""
    locations, scales, class_logits, objectness_logits = map(_at_least_float32, parameters[:4])
    boxes = torch.where(mask.unsqueeze(-1), boxes, 0).to(locations.dtype)
    labels = torch.where(mask, labels, 0)
    scales = effective_scales(locations, scales, min_scale_ratio)
    log_location = box_log_density(boxes, locations, scales, density, student_t_dof)
    log_class = _log_class_probability(class_logits, labels) * class_weight
    if parameters.log_mixing is None:
        log_mixing = log_mixing_coefficients(objectness_logits)
    else:
        log_mixing = _at_least_float32(parameters.log_mixing)
    num_boxes = mask.sum(dim=-1, keepdim=True).clamp(min=1)  # released code: pi is multiplied by N
    return (log_mixing.clamp(min=_MIN_LOG_WEIGHT) + num_boxes.log()).unsqueeze(1), log_location, log_class


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _log_class_probability(class_logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, C), (B, N) -> (B, N, K) log p_k[label_j], gathered so that no (N, K, C) tensor exists."""
    log_probs = class_logits.log_softmax(dim=-1).clamp(min=_MIN_LOG_WEIGHT).transpose(1, 2)
    index = labels.unsqueeze(-1).expand(-1, -1, log_probs.shape[-1])
    return log_probs.gather(1, index)


def _at(log_joint: Tensor, component: Tensor | None) -> Tensor:
    """(B, N, K) at the component (B, N) of each ground truth; an arbitrary one where that is -1."""
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
