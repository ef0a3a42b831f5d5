"""The training objective: labels as transformers' detectors take them, the terms of every stage, and the anchors.

The anchors are not in the paper. The likelihood sees the objectness through pi_k = o_k / sum o alone, so it is blind to
a common factor of all o_k, and an image without objects teaches nothing. Either anchor gives o a level of its own, from
the same mixture, without matching and without a weight to choose.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .configuration_drmm import DrmmConfig, shown
from .matching import set_prediction_loss
from .mixture import MixtureParameters, mixture_losses, responsibilities

MIXTURE_FIELDS = ("density", "student_t_dof", "min_scale_ratio", "likelihood_floor", "class_weight")
"""Fields of the configuration that the NLL depends on."""
# Boxes of clipped annotations can pass 1 by rounding; pixels in place of fractions pass it by far.
_MAX_FRACTION = 1.001


class Targets(NamedTuple):
    """Ground truths of a batch padded to the same number N.

    Attributes:
        boxes: (B, N, 4) xyxy, pixels of the network input.
        labels: (B, N) class indices.
        mask: (B, N) True where there is a ground truth.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor


def pad_targets(
    labels: Sequence[Mapping[str, Tensor]], sizes: Tensor, num_labels: int, compare_sizes: bool = True
) -> Targets:
    """Check the labels of a batch and pad them.

    Args:
        labels: one mapping an image: `class_labels` (n,) int64 in 0..num_labels-1 and `boxes` (n, 4) as fractions
            of the un-padded image, (center x, center y, width, height); where there is `size` (2,), it is compared.
        sizes: (B, 2) width and height of the un-padded images, pixels of the network input.
        num_labels: width of the model's class layer.
        compare_sizes: not for labels of processors that write the size of the padded canvas.

    Raises:
        ValueError: a key is missing, shapes do not fit, a class is out of range, boxes are no fractions, or `size`
            (height, width) is another than that of `sizes`, as where pixel_mask was left out. On a GPU the values
            (not the shapes) are checked by device-side assertions, without a synchronisation.
    """
    if len(labels) != len(sizes):
        raise ValueError(f"labels has {len(labels)} entries for a batch of {len(sizes)} images; give one per image.")
    for i, label in enumerate(labels):
        _check_shapes(i, label)
    boxes = pad_sequence([label["boxes"].to(sizes).reshape(-1, 4) for label in labels], batch_first=True)
    classes = pad_sequence([label["class_labels"].to(sizes.device).long() for label in labels], batch_first=True)
    positions = torch.arange(classes.shape[1], device=sizes.device)
    mask = torch.stack([positions < len(label["class_labels"]) for label in labels])
    if not torch.compiler.is_compiling():
        given = [compare_sizes and "size" in label for label in labels]
        claimed = [label["size"].to(sizes).flip(0) if given[i] else sizes[i] for i, label in enumerate(labels)]
        _check_values(boxes, classes, mask, num_labels, torch.stack(claimed), sizes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat((center - half, center + half), dim=-1) * torch.cat((sizes, sizes), dim=-1).unsqueeze(1)
    return Targets(corners, classes, mask)


def _check_shapes(index: int, label: Mapping[str, Tensor]) -> None:
    label = label if isinstance(label, Mapping) else {}
    for key in ("class_labels", "boxes", *(["size"] if "size" in label else [])):
        value = label.get(key)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"labels[{index}][{key!r}] is {shown(value)}; expected a tensor. DrmmImageProcessor(images, "
                "annotations=...) makes labels of the right form."
            )
        count = label["class_labels"].numel()
        wanted = {"size": (2,), "class_labels": (count,), "boxes": (count, 4)}[key]
        if tuple(value.shape) != wanted and (key == "size" or count or value.numel()):
            raise ValueError(f"labels[{index}][{key!r}] has shape {tuple(value.shape)}; expected {wanted}.")


def _check_values(
    boxes: Tensor, classes: Tensor, mask: Tensor, num_labels: int, claimed: Tensor, sizes: Tensor
) -> None:
    """Refuse classes out of range, boxes that are no fractions and another image size; the one check of such values.

    On a GPU the device asserts, so that the host does not wait for it; a CPU has time for an error that says more.
    """
    checks = {
        "size": (
            (claimed != sizes).any(dim=-1, keepdim=True),
            claimed.flip(1).unsqueeze(1).long(),
            "(height, width) of the image on its canvas, as pixel_mask has it: pass the pixel_mask that the processor "
            "returned with these images, for without it padding counts as image",
        ),
        "class_labels": (
            ((classes < 0) | (classes >= num_labels)) & mask,
            classes,
            f"a class of the model, which has num_labels={num_labels} (0..{num_labels - 1}): build it with the data's "
            "id2label, or map the categories to 0..n-1",
        ),
        "boxes": (
            (~((boxes >= 0) & (boxes <= _MAX_FRACTION))).any(dim=-1) & mask,
            boxes,
            "(center x, center y, width, height) as fractions in [0, 1] of the un-padded image, not pixels and not NaN",
        ),
    }
    for key, (bad, values, expected) in checks.items():
        if bad.device.type != "cpu":
            torch._assert_async(~bad.any(), f"labels[...][{key!r}] must be {expected}.")
        elif bad.any():
            i, j = bad.nonzero()[0].tolist()
            place = f"labels[{i}]['size']" if key == "size" else f"labels[{i}][{key!r}][{j}]"
            raise ValueError(f"{place} is {shown(values[i, j].tolist())}; expected {expected}.")


def drmm_loss(
    stages: Sequence[Any],
    targets: Targets,
    config: DrmmConfig,
    image_sizes: Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The configured objective over all stages, each with weight 1.

    Args:
        stages: the `MixtureParameters`, or for `set_prediction` the `SetPrediction`, of each stage.
        targets: padded ground truths.
        config: the fields of the objective.
        image_sizes: (B, 2) width and height of the un-padded images, pixels; `set_prediction` needs them.
        counts: number of ground truths of each image, where the host knows it: the mixture objectives are then not
            computed for the padding of the targets.

    Returns:
        The loss, and a dict of its detached terms per stage (i from 1). For a mixture `nll_stage_i` and `mcm_stage_i`,
        unweighted, under the same reduction: `loss = sum_i (nll_stage_i + mcm_weight * mcm_stage_i)`, with weight 0
        for the objectives without MCM; `anchor_stage_i` of weight 1 where `config.objectness_anchor` is set. For
        `set_prediction` `focal_stage_i`, `l1_stage_i` and `giou_stage_i`, weighted.
    """
    if config.objective == "set_prediction":
        if image_sizes is None:
            raise ValueError("objective='set_prediction' needs image_sizes.")
        groups, copies = stages[0].locations.shape[1] // config.num_proposals, config.num_target_copies
        terms = set_prediction_loss(stages, *targets, image_sizes, num_groups=groups, num_copies=copies)._asdict()
    else:
        terms = _mixture_terms(stages, targets, config, counts)
    weights = {"mcm": config.mcm_weight if "mcm" in config.objective else 0.0}
    total = torch.stack([weights.get(name, 1.0) * values.sum() for name, values in terms.items()]).sum()
    per_stage = {name: values.detach().unbind() for name, values in terms.items()}
    return total, {f"{name}_stage_{i + 1}": v[i] for i in range(len(stages)) for name, v in per_stage.items()}


def _mixture_terms(
    stages: Sequence[MixtureParameters], targets: Targets, config: DrmmConfig, counts: Sequence[int] | None
) -> dict[str, Tensor]:
    """The terms (S,) of a mixture objective, reduced over the ground truths of the batch."""
    options = {name: getattr(config, name) for name in MIXTURE_FIELDS}
    every = mixture_losses(
        stages, *targets, counts, stop_gradient=config.stop_gradient, objective=config.objective, **options
    )
    terms = {name: values.sum(dim=0) for name, values in every._asdict().items()}
    if config.objectness_anchor != "none":
        anchors = [objectness_anchor(config.objectness_anchor, stage, *targets, **options).sum() for stage in stages]
        terms["anchor"] = torch.stack(anchors)
    if config.loss_reduction == "mean":
        share = 1.0 / targets.mask.sum().clamp(min=1)
        terms = {name: values * share for name, values in terms.items()}
    return terms


def objectness_anchor(
    kind: str, parameters: MixtureParameters, boxes: Tensor, labels: Tensor, mask: Tensor, **options: Any
) -> Tensor:
    """The term `config.objectness_anchor` of one stage, (B,) in float32 or wider.

    Args:
        kind: "poisson" or "bernoulli".
        parameters, boxes, labels, mask: see `mixture.mixture_loss`.
        options: of the mixture, see `mixture.responsibilities`.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        logits = parameters.objectness_logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if kind == "poisson":
            log_rate = parameters.log_rate
            if log_rate is None:
                log_rate = F.logsigmoid(logits).logsumexp(dim=-1)
            return poisson_anchor(log_rate, mask.sum(dim=-1))
        return bernoulli_anchor(logits, responsibilities(parameters, boxes, labels, mask, **options), mask)


def poisson_anchor(log_rate: Tensor, num_boxes: Tensor) -> Tensor:
    """Lambda - n log Lambda with Lambda = sum_k o_k, the expected number of objects of the image.

    Added to the NLL (Eq. 4) it makes the negative log-likelihood, up to log n!, of a Poisson point process whose
    intensity is sum_k o_k F_k p_k: the number of objects is Poisson with mean Lambda, each is drawn from the mixture.

    Args:
        log_rate: (B,) log Lambda.
        num_boxes: (B,) number n of ground truths.

    Returns:
        (B,) the term of each image; it can be negative. Its minimum is at Lambda = n.
    """
    return log_rate.exp() - num_boxes * log_rate


def bernoulli_anchor(objectness_logits: Tensor, responsibility: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of o_k against the probability that component k is responsible for any object.

    Args:
        objectness_logits: (B, K).
        responsibility: (B, N, K) posterior of component k given ground truth j; no gradient goes into it.
        mask: (B, N) True where there is a ground truth.

    Returns:
        (B,) sum over the components of each image.
    """
    none = torch.where(mask.unsqueeze(-1), 1.0 - responsibility.detach(), 1.0).prod(dim=1)
    return F.binary_cross_entropy_with_logits(objectness_logits, 1.0 - none, reduction="none").sum(dim=-1)
