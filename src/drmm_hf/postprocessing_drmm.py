"""Model outputs to detections: a threshold and a top-k, nothing else."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchvision.ops import box_convert

from .intervals_drmm import box_intervals


def select_detections(
    outputs: Any,
    threshold: float | Sequence[float] | torch.Tensor = 0.5,
    target_sizes: torch.Tensor | Sequence[Any] | None = None,
    top_k: int | Sequence[int] = 100,
    *,
    interval_level: float | None = None,
    scale_factor: float = 1.0,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
) -> list[dict[str, torch.Tensor]]:
    """Detections of each image: the `top_k` best (component, class) pairs above `threshold`.

    No NMS and no clipping; one box can stand for several classes. This is the inference of the released code,
    which keeps 100 pairs and no threshold: for COCO evaluation pass `threshold=0.0`.

    Args:
        outputs: `logits` (B, K, C), log-odds of the confidence p_c·o; `pred_boxes` (B, K, 4) cxcywh and,
            if there, `pred_scales` (B, K, 4) γ of the left, top, right and bottom edge, both normalized by
            the image without padding; if there, `objectness_logits` (B, K). Half precision is computed in float32. NaN
            counts as no detection.
        threshold: detections have a larger score; one number, or one per image.
        target_sizes: (B, 2) or a list of (height, width), original sizes in pixels. Without it boxes and
            scales stay normalized.
        top_k: the most detections of an image; one number, or one per image.
        interval_level: also give intervals that hold each edge with this probability, such as 0.8.
        scale_factor: γ of the intervals is multiplied by it; `drmm_hf.evaluation.fit_scale_factor` finds one.
        density, student_t_dof: `config.density` and `config.student_t_dof` of the model; only for the intervals.

    Returns:
        One dict per image, best first: scores (n,), labels (n,) int64, boxes (n, 4) xyxy in pixels of the
        original image, scales (n, 4) γ per edge in its pixels (only if the outputs have `pred_scales`), objectness (n,)
        the factor o of the score p_c·o (only if they have `objectness_logits`), and with `interval_level`
        box_intervals (n, 2, 4): lower and upper end of the interval of each edge, in the frame of the boxes.

    Raises:
        ValueError: if `threshold`, `target_sizes` or `top_k` do not fit the batch, or a setting of the intervals is
            out of its range.
        ImportError: as in `box_intervals`.
    """
    logits = _field(outputs, "logits").float()
    batch = logits.shape[0]
    device = logits.device
    thresholds = _one_per_image(threshold, "threshold", batch).to(device, torch.float32)
    limits = _one_per_image(top_k, "top_k", batch)
    if limits.is_floating_point() or int(limits.min()) < 1:
        raise ValueError(f"top_k is {top_k}: give a whole number of at least 1, or one per image.")

    scores, labels, components = best_pairs(logits, int(limits.max()))
    results = {
        "scores": scores,
        "labels": labels,
        "boxes": box_convert(_field(outputs, "pred_boxes").float().gather(1, components), "cxcywh", "xyxy"),
    }
    scales = _field(outputs, "pred_scales", required=False)
    if scales is not None:
        results["scales"] = scales.float().gather(1, components)
    elif interval_level is not None:
        raise ValueError("outputs have no pred_scales, so there are no intervals: leave out interval_level.")
    objectness = _field(outputs, "objectness_logits", required=False)
    if objectness is not None:
        results["objectness"] = objectness.float().sigmoid().gather(1, components[..., 0])
    if target_sizes is not None:
        pixels = _target_sizes(target_sizes, batch).to(device, torch.float32).flip(1).repeat(1, 2)[:, None]
        results |= {name: results[name] * pixels for name in ("boxes", "scales") if name in results}

    if interval_level is not None:
        if not 0.0 < scale_factor < math.inf:
            raise ValueError(f"scale_factor must be a positive number, not {scale_factor}")
        wider = scale_factor * results["scales"]
        ends = box_intervals(results["boxes"], wider, interval_level, density, student_t_dof)
        results["box_intervals"] = torch.stack(ends, dim=2)

    # Scores are sorted, so what is kept is a prefix: B lengths go to the host instead of B boolean masks.
    ranks = torch.arange(scores.shape[1], device=device)
    kept = ((scores > thresholds[:, None]) & (ranks < limits.to(device)[:, None])).sum(1).tolist()
    return [{name: value[i, :n] for name, value in results.items()} for i, n in enumerate(kept)]


def best_pairs(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` best (component, class) pairs of each image, best first, of all B·K·C log-odds (B, K, C).

    Returns:
        scores (B, k), classes (B, k) and, to gather boxes with, components (B, k, 4); k is at most K·C.
    """
    num_components, num_classes = logits.shape[1:]
    # topk ranks NaN first, and what a threshold keeps has to be a prefix
    logits = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranked, flat = logits.flatten(1).topk(min(top_k, num_components * num_classes), dim=1)
    return ranked.sigmoid(), flat % num_classes, (flat // num_classes)[..., None].expand(-1, -1, 4)


def _field(outputs: Any, name: str, required: bool = True) -> Any:
    value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
    if value is None and required:
        raise ValueError(f"outputs have no {name}: pass what the model's forward returned.")
    return value


def _one_per_image(value: Any, name: str, batch: int) -> torch.Tensor:
    values = torch.as_tensor(value)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} for {batch} images: give one number, or one per image."
        )
    return values.expand(batch)


def _target_sizes(target_sizes: Any, batch: int) -> torch.Tensor:
    sizes = target_sizes if isinstance(target_sizes, torch.Tensor) else list(map(torch.as_tensor, target_sizes))
    if len(sizes) != batch or any(size.shape != (2,) for size in sizes):
        raise ValueError(
            f"target_sizes has {len(sizes)} entries for {batch} images: give one (height, width) per image."
        )
    return sizes if isinstance(sizes, torch.Tensor) else torch.stack(sizes)
