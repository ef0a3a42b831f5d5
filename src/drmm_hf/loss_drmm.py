"""The training objective: labels as transformers' detectors take them, and the mixture terms of every stage."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .configuration_drmm import DrmmConfig
from .matching import SetPrediction, set_prediction_loss
from .mixture import MixtureParameters, mixture_losses
from .objectness_anchor import objectness_anchor

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


def pad_targets(labels: Sequence[Mapping[str, Tensor]], sizes: Tensor, num_labels: int) -> Targets:
    """Check the labels of a batch and pad them.

    Args:
        labels: one mapping an image: `class_labels` (n,) int64 in 0..num_labels-1 and `boxes` (n, 4) as fractions
            of the un-padded image, (center x, center y, width, height).
        sizes: (B, 2) width and height of the un-padded images, pixels of the network input.

    Raises:
        ValueError: a key is missing, shapes do not fit, a class is out of range, or boxes are no fractions. On a
            GPU the values (not the shapes) are checked by device-side assertions, without a synchronisation.
    """
    if len(labels) != len(sizes):
        raise ValueError(f"labels has {len(labels)} entries for a batch of {len(sizes)} images; give one per image.")
    for i, label in enumerate(labels):
        _check_label_shapes(i, label)
    counts = [len(label["class_labels"]) for label in labels]
    boxes = pad_sequence([label["boxes"].to(sizes).reshape(-1, 4) for label in labels], batch_first=True)
    classes = pad_sequence([label["class_labels"].to(sizes.device).long() for label in labels], batch_first=True)
    positions = torch.arange(classes.shape[1], device=sizes.device)
    mask = torch.stack([positions < n for n in counts])
    if not torch.compiler.is_compiling():
        check = _check_values if sizes.device.type == "cpu" else _assert_values
        check(boxes, classes, mask, num_labels)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    corners = torch.cat((center - half, center + half), dim=-1) * torch.cat((sizes, sizes), dim=-1).unsqueeze(1)
    return Targets(corners, classes, mask)


def drmm_loss(
    stages: Sequence[MixtureParameters] | Sequence[SetPrediction],
    targets: Targets,
    config: DrmmConfig,
    image_sizes: Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The configured objective over all stages, each with weight 1.

    Args:
        stages: what each stage predicts.
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
        return _set_prediction_objective(stages, targets, config, image_sizes)
    return _mixture_objective(stages, targets, config, counts)


def _mixture_objective(
    stages: Sequence[Any], targets: Targets, config: DrmmConfig, counts: Sequence[int] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    mcm_weight = config.mcm_weight if "mcm" in config.objective else 0.0
    scale: Tensor | float = 1.0
    if config.loss_reduction == "mean":
        scale = 1.0 / targets.mask.sum().clamp(min=1)
    options = {
        name: getattr(config, name)
        for name in ("density", "student_t_dof", "min_scale_ratio", "likelihood_floor", "class_weight")
    }
    terms = mixture_losses(
        stages, *targets, counts, stop_gradient=config.stop_gradient, objective=config.objective, **options
    )
    summed = {"nll": terms.nll.sum(dim=0) * scale, "mcm": terms.mcm.sum(dim=0) * scale}
    total = summed["nll"].sum() + mcm_weight * summed["mcm"].sum()
    if config.objectness_anchor != "none":
        anchors = [
            objectness_anchor(config.objectness_anchor, parameters, *targets, **options).sum() for parameters in stages
        ]
        summed["anchor"] = torch.stack(anchors) * scale
        total = total + summed["anchor"].sum()
    per_stage = {name: values.detach().unbind() for name, values in summed.items()}
    loss_dict = {f"{name}_stage_{i + 1}": values[i] for i in range(len(stages)) for name, values in per_stage.items()}
    return total, loss_dict


def _set_prediction_objective(
    stages: Sequence[Any], targets: Targets, config: DrmmConfig, image_sizes: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    if image_sizes is None:
        raise ValueError("objective='set_prediction' needs image_sizes.")
    num_groups = stages[0].locations.shape[1] // config.num_proposals
    terms = set_prediction_loss(
        stages, *targets, image_sizes, num_groups=num_groups, num_copies=config.num_target_copies
    )
    loss_dict = {
        f"{name}_stage_{i}": value.detach()
        for i, stage in enumerate(terms, start=1)
        for name, value in stage._asdict().items()
    }
    return torch.stack([value for stage in terms for value in stage]).sum(), loss_dict


def _check_label_shapes(index: int, label: Mapping[str, Tensor]) -> None:
    if not isinstance(label, Mapping):
        raise ValueError(f"labels[{index}] is a {type(label).__name__}; expected a dict with class_labels and boxes.")
    for key in ("class_labels", "boxes"):
        if key not in label:
            raise ValueError(
                f"labels[{index}] has no {key!r} (it has {sorted(label)}); DrmmImageProcessor(images, annotations=...) "
                "makes labels of the right form."
            )
        if not isinstance(label[key], Tensor):
            raise ValueError(f"labels[{index}][{key!r}] is a {type(label[key]).__name__}; expected a tensor.")
    if label["class_labels"].dim() != 1:
        shape = tuple(label["class_labels"].shape)
        raise ValueError(f"labels[{index}]['class_labels'] has shape {shape}; expected one dimension (n,).")
    num_labels, shape = len(label["class_labels"]), tuple(label["boxes"].shape)
    if shape != (num_labels, 4) and not (num_labels == 0 and label["boxes"].numel() == 0):
        raise ValueError(
            f"labels[{index}]['boxes'] has shape {shape} beside {num_labels} class_labels; expected ({num_labels}, 4)."
        )


def _bad_values(boxes: Tensor, classes: Tensor, mask: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """(B, N) each: classes out of range, and boxes that are no fractions."""
    bad_class = ((classes < 0) | (classes >= num_labels)) & mask
    return bad_class, (~((boxes >= 0) & (boxes <= _MAX_FRACTION))).any(dim=-1) & mask


def _assert_values(boxes: Tensor, classes: Tensor, mask: Tensor, num_labels: int) -> None:
    """What `_check_values` does, by assertions of the device, so that the host does not wait for it."""
    bad_class, bad_box = _bad_values(boxes, classes, mask, num_labels)
    torch._assert_async(~bad_class.any(), f"a class label is outside 0..{num_labels - 1}")
    torch._assert_async(~bad_box.any(), "a box is not in fractions (cx, cy, w, h) of the image")


def _check_values(boxes: Tensor, classes: Tensor, mask: Tensor, num_labels: int) -> None:
    bad_class, bad_box = _bad_values(boxes, classes, mask, num_labels)
    if bad_class.any():
        i, j = bad_class.nonzero()[0].tolist()
        raise ValueError(
            f"labels[{i}]['class_labels'][{j}] is {classes[i, j].item()}, but the model has num_labels={num_labels} "
            f"classes (0..{num_labels - 1}). Build it with the data's id2label, or map the categories to 0..n-1."
        )
    if bad_box.any():
        i, j = bad_box.nonzero()[0].tolist()
        raise ValueError(
            f"labels[{i}]['boxes'][{j}] is {[round(v, 4) for v in boxes[i, j].tolist()]}; expected (center x, "
            "center y, width, height) as fractions in [0, 1] of the un-padded image, not pixels and not NaN."
        )
