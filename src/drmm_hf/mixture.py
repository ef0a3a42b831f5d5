"""The mixture density of D-RMM and its training objective: Section 3 of the paper, Equations 2 to 8, top to bottom.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .matching import assign
from .mixture_kernels import MAX_LENGTH, MIN_SCALE, LogClassProbability, LogEdgeTail

# also in the branches of box_log_density, postprocessing.half_width and both configurations
DENSITIES = ("cauchy", "gaussian", "student_t")
STOP_GRADIENTS = ("mixing", "location", "class")
OBJECTIVES = ("nll_mcm", "nll", "nll_max", "nll_mcm_bipartite", "nll_bipartite")

# A log weight of -1e6 is zero in every sum, and finite.
_MIN_LOG_WEIGHT = -1e6
# Keep the squares of the Gaussian finite in float32, far outside of what changes a likelihood that counts.
_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_DEVIATION = 1e8, 1e10


class MixtureParameters(NamedTuple):
    """The mixture that one stage predicts for each image of a batch.

    Attributes:
        locations: (B, K, 4) mu, the box edges x1, y1, x2, y2 in pixels of the network input.
        scales: (B, K, 4) gamma > 0, pixels, one per edge, before the floor of `effective_scales`.
        class_logits: (B, K, C); p = softmax. There is no background class.
        objectness_logits: (B, K); o = sigmoid.
        log_mixing: (B, K) log pi, or None to derive it from the objectness. It is given where components were
            dropped between stages: the released code does not normalise pi again.
        log_rate: (B,) log of the expected number of objects, or None: the sum of o.
    """

    locations: Tensor
    scales: Tensor
    class_logits: Tensor
    objectness_logits: Tensor
    log_mixing: Tensor | None = None
    log_rate: Tensor | None = None


class MixtureLoss(NamedTuple):
    """Unreduced terms of the objective, one entry per ground truth, zero where the mask is False.

    The objective of a stage is `(nll + mcm_weight * mcm).sum()`; `mcm_weight` is applied by the caller.
    """

    nll: Tensor
    mcm: Tensor


# Section 3.2: the factors of one component


def log_mixing_coefficients(objectness_logits: Tensor) -> Tensor:
    """log pi_k = log o_k - log sum_k' o_k' for o = sigmoid(objectness_logits), shape (B, K) (Section 3.2)."""
    log_objectness = F.logsigmoid(_at_least_float32(objectness_logits))
    return log_objectness - log_objectness.logsumexp(dim=-1, keepdim=True)


def score_mixture(log_scores: Tensor, locations: Tensor, scales: Tensor) -> MixtureParameters:
    """The mixture of a detector's own scores q_k[c]: the weight of component k and class c is q_k[c] / sum q.

    With q_k[c] = p_k[c] * o_k that is pi_k * p_k[c] of Section 3.2: the likelihood needs no more than the scores. Their
    sum is the expected number of objects.

    Args:
        log_scores: (B, K, C) log q.
        locations, scales: (B, K, 4) pixels.
    """
    log_objectness = log_scores.logsumexp(dim=-1)  # can be above 0 where the scores of classes are independent
    log_rate = log_objectness.logsumexp(dim=-1)
    log_mixing = log_objectness - log_rate.unsqueeze(-1)
    return MixtureParameters(locations, scales, log_scores, log_objectness, log_mixing, log_rate)


def effective_scales(locations: Tensor, scales: Tensor, min_scale_ratio: float, dim: int = -1) -> Tensor:
    """The scales that the density uses: gamma, but at least `min_scale_ratio` times the predicted box's size.

    The floor of the l and r edges is relative to the width, of t and b to the height (released code,
    `min_sc_ratio`). It is not detached: where it is active the gradient goes to the location. A box of negative
    size (x2 < x1) has no floor.

    Args:
        locations, scales: (..., 4) pixels.
        dim: axis of the four edges.

    Returns:
        (..., 4) pixels.
    """
    low, high = locations.chunk(2, dim=dim)
    size = high - low
    return torch.maximum(scales, min_scale_ratio * torch.cat((size, size), dim=dim))


def box_log_density(
    boxes: Tensor, locations: Tensor, scales: Tensor, image: Tensor, density: str = "cauchy", student_t_dof: float = 1.0
) -> Tensor:
    """log F(b_j; mu_k, gamma_k) of every ground truth j and component k of its image (Eq. 3).

    The edges come first, because reading every fourth number is several times slower.

    Args:
        boxes: (4, M) edges of the ground truths of all images, pixels xyxy.
        locations, scales: (4, B, ..., K) pixels; `scales` as `effective_scales` returns them.
        image: (M,) index of the image of each ground truth.
        density: "cauchy", "gaussian" (scale = standard deviation) or "student_t".
        student_t_dof: degrees of freedom of "student_t"; 1 is the Cauchy density.

    Returns:
        (M, ..., K) log densities in 1/px^4.
    """
    if density == "gaussian":
        return _log_gaussian(boxes, locations, scales.clamp(MIN_SCALE, _MAX_GAUSSIAN_LENGTH), image)
    dof = {"cauchy": 1.0, "student_t": student_t_dof}[density]  # a density without a branch here fails at once
    # with t = sqrt(dof) * s the density is, but for a constant, t^dof / (t^2 + d^2)^((dof + 1) / 2): the square of a
    # ratio d / s overflows, this sum cannot
    scales = (scales if dof == 1.0 else math.sqrt(dof) * scales).clamp(MIN_SCALE, MAX_LENGTH)
    locations, boxes = (t.clamp(-MAX_LENGTH, MAX_LENGTH) for t in (locations, boxes))
    constant = 4.0 * (math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi))
    peak = constant + dof * scales.log().sum(dim=0)
    tail = LogEdgeTail.apply(boxes, locations, scales, image)
    return peak.index_select(0, image) - 0.5 * (dof + 1) * tail


def _log_gaussian(boxes: Tensor, locations: Tensor, scales: Tensor, image: Tensor) -> Tensor:
    peak = -2.0 * math.log(2.0 * math.pi) - scales.log().sum(dim=0)
    exponent = peak.index_select(0, image)
    for edge in range(4):
        target = boxes[edge].view(-1, *[1] * (locations.dim() - 2))
        deviation = (target - locations[edge].index_select(0, image)).clamp(-_MAX_GAUSSIAN_LENGTH, _MAX_GAUSSIAN_LENGTH)
        z = (deviation / scales[edge].index_select(0, image)).clamp(-_MAX_GAUSSIAN_DEVIATION, _MAX_GAUSSIAN_DEVIATION)
        exponent = exponent - 0.5 * z.square()
    return exponent


# Equation 2: the joint density of every ground truth and component


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
        image = torch.arange(batch, device=labels.device).repeat_interleave(width)
        return _GroundTruths(boxes.flatten(0, 1), labels.flatten(), image, num_boxes)
    # ranges and not a list of indices: a list would have to be copied to the device
    index = torch.cat([torch.arange(i * width, i * width + n, device=labels.device) for i, n in enumerate(counts)])
    return _GroundTruths(boxes.flatten(0, 1)[index], labels.flatten()[index], index // max(width, 1), num_boxes)


def _log_factors(
    stages: Sequence[MixtureParameters],
    truths: _GroundTruths,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
    class_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of pi times the image's number of ground truths, of F and of p (Eq. 2), (M, S, K) each."""
    # (4, B, S, K)
    locations, scales = (
        _at_least_float32(torch.stack([edges.movedim(-1, 0) for edges in values], dim=2))
        for values in zip(*(stage[:2] for stage in stages), strict=True)
    )
    scales = effective_scales(locations, scales, min_scale_ratio, dim=0)
    boxes = truths.boxes.T.to(locations.dtype)
    log_location = box_log_density(boxes, locations, scales, truths.image, density, student_t_dof)

    logits = [_at_least_float32(stage.class_logits).unsqueeze(1) for stage in stages]
    if boxes.device.type != "cpu":  # a CPU has the classes of one stage in its cache, not those of all
        logits = [torch.cat(logits, dim=1)]
    log_class = LogClassProbability.apply(truths.labels, truths.image, *logits).clamp(min=_MIN_LOG_WEIGHT)
    if class_weight != 1.0:
        log_class = log_class * class_weight

    # released code: pi is multiplied by the number of ground truths
    log_number = truths.num_boxes.clamp(min=1).to(locations.dtype).log()[:, None, None]
    log_mixing = torch.stack(
        [s.log_mixing if s.log_mixing is not None else log_mixing_coefficients(s.objectness_logits) for s in stages], 1
    )
    log_mixing = (_at_least_float32(log_mixing).clamp(min=_MIN_LOG_WEIGHT) + log_number).index_select(0, truths.image)
    return log_mixing, log_location, log_class


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# Equations 4 to 8, and the objectives of Tables 2 and 3


def mixture_loss(
    parameters: MixtureParameters, boxes: Tensor, labels: Tensor, mask: Tensor | None = None, **options: Any
) -> MixtureLoss:
    """NLL (Eq. 5) and MCM (Eq. 7) of every ground truth under one stage's mixture, for a whole batch at once.

    Args:
        parameters: the stage's `MixtureParameters`, K components.
        boxes: (B, N, 4) ground truths padded to the same N, xyxy in pixels of the network input.
        labels: (B, N) class indices 0..C-1. Masked entries of boxes and labels may hold anything.
        mask: (B, N), True where there is a ground truth; None if all are real.
        options: `density`, `student_t_dof`, `min_scale_ratio`, `likelihood_floor`, `class_weight`, `stop_gradient` and
            `objective` of `mixture_losses`.

    Returns:
        `MixtureLoss(nll, mcm)`, (B, N) each, zero where masked. An image without ground truths adds nothing. Where
        matching leaves a ground truth without a component (N > K), the term that needs one is zero.

    Raises:
        ValueError: an unknown density, objective or stop_gradient name, or shapes that do not fit together.
    """
    terms = mixture_losses([parameters], boxes, labels, mask, **options)
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
    """`mixture_loss` of S stages in one computation; stages that differ in K are computed one by one.

    Runs in float32 (float64 for float64 input) whatever autocast says, without a host synchronisation (the two
    `_bipartite` objectives excepted), and is finite, with finite gradients, for every finite input.

    Args:
        stages: the `MixtureParameters` of each.
        boxes, labels, mask: see `mixture_loss`.
        counts: number of ground truths of each image, the first entries of its row, where the host knows them. Then
            nothing is computed for the padding, which in batches of COCO is most of (B, N).
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
        `MixtureLoss(nll, mcm)`, (M, S) each: the ground truths of all images in a row, M = sum of `counts`; without
        `counts` those of (B, N), zero where masked.
    """
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    for stage in stages:
        _check_shapes(stage, boxes, labels, mask)
    _check_names("density", [density], DENSITIES)
    _check_names("objective", [objective], OBJECTIVES)
    _check_names("stop_gradient", stop_gradient, STOP_GRADIENTS)
    if objective.endswith("_bipartite"):
        counts = None  # matching wants the rows of an image side by side
    alike = all(stage.objectness_logits.shape == stages[0].objectness_logits.shape for stage in stages)
    with torch.autocast(boxes.device.type, enabled=False):
        truths = _ground_truths(boxes, labels, mask, counts)
        terms = []
        for group in [stages] if alike else [[stage] for stage in stages]:
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
        matched = assign(-log_joint.unflatten(0, mask.shape).permute(2, 0, 1, 3), mask).flatten(1).T
    log_likelihood = log_joint.logsumexp(dim=-1)  # Eq. 2
    if objective == "nll_max":
        log_likelihood = log_joint.max(dim=-1).values
    elif objective == "nll_bipartite":
        log_likelihood = _at(log_joint, matched)
    nll = -_log_with_floor(log_likelihood, floor)  # Eq. 5

    named = zip(STOP_GRADIENTS, factors, strict=True)
    mixing, location, class_ = (t.detach() if name in stop_gradient else t for name, t in named)
    log_joint = mixing + location + class_
    log_evidence = _log_with_floor(log_joint.logsumexp(dim=-1), floor)
    owner = _at(log_joint, matched) if objective == "nll_mcm_bipartite" else log_joint.max(dim=-1).values
    mcm = -_log_with_floor(owner - log_evidence, floor)  # Eq. 7
    if matched is not None:  # a ground truth may be left without a component
        mcm = torch.where(matched >= 0, mcm, 0)
        nll = torch.where(matched >= 0, nll, 0) if objective == "nll_bipartite" else nll
    return nll, mcm


def _at(log_joint: Tensor, component: Tensor | None) -> Tensor:
    """(M, S, K) at the component (M, S) of each ground truth; an arbitrary one where that is -1."""
    assert component is not None  # only called where there was a matching
    return log_joint.gather(-1, component.clamp(min=0).unsqueeze(-1)).squeeze(-1)


def _log_with_floor(log_value: Tensor, floor: float) -> Tensor:
    """log(exp(log_value) + floor) without leaving log space."""
    if floor == 0.0:
        return log_value
    return torch.logaddexp(log_value, log_value.new_full((), math.log(floor)))


def _check_names(argument: str, names: Collection[str], known: Sequence[str]) -> None:
    if isinstance(names, str) or not set(names) <= set(known):
        raise ValueError(f"{argument}: {names!r} is not out of {', '.join(known)}.")


def _check_shapes(stage: MixtureParameters, boxes: Tensor, labels: Tensor, mask: Tensor) -> None:
    (batch, components), width = stage.objectness_logits.shape, labels.shape[-1]
    fields = {"boxes": boxes, "labels": labels, "mask": mask, **stage._asdict()}
    expected: dict[str, tuple[int, ...]] = {
        **{name: (batch, components, 4) for name in ("locations", "scales")},
        "class_logits": (batch, components, stage.class_logits.shape[-1]),
        "boxes": (batch, width, 4),
        **{name: (batch, width) for name in ("labels", "mask")},
    }
    for name, shape in expected.items():
        if tuple(fields[name].shape) != shape:
            raise ValueError(f"mixture_loss: {name} has shape {tuple(fields[name].shape)}, expected {shape}.")


@torch.no_grad()
def responsibilities(
    parameters: MixtureParameters,
    boxes: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    likelihood_floor: float = 1e-12,
    **options: Any,
) -> Tensor:
    """Posterior probability of every component given each ground truth: pi_k F_k p_k / (p(b, c) + floor).

    Arguments and options (density, student_t_dof, min_scale_ratio, class_weight) are those of `mixture_loss`. A ground
    truth that no component explains is nobody's: its row sums up to less than one because of the floor.

    Returns:
        (B, N, K), without gradient; rows of masked entries hold anything in 0..1.
    """
    factors = _log_factors([parameters], _ground_truths(boxes, labels, mask, None), **options)
    log_joint = (factors[0] + factors[1] + factors[2]).view(*labels.shape, parameters.objectness_logits.shape[-1])
    return torch.exp(log_joint - _log_with_floor(log_joint.logsumexp(dim=-1, keepdim=True), likelihood_floor))


# Section 3.4: what is read off a mixture at inference


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
