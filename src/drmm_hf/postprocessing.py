"""Model outputs to detections: a threshold and a top-k, nothing else; and the intervals of box edges."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torchvision.ops import box_convert

from .mixture import DENSITIES


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

    No NMS and no clipping; one box can stand for several classes. The released code keeps 100 pairs and has no
    threshold: for COCO evaluation pass `threshold=0.0`.

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
    outputs = outputs if isinstance(outputs, Mapping) else vars(outputs)
    needed = ("logits", "pred_boxes") if interval_level is None else ("logits", "pred_boxes", "pred_scales")
    if missing := [name for name in needed if outputs.get(name) is None]:
        raise ValueError(
            f"outputs have no {missing[0]}: pass what the model's forward returned"
            + (", or leave out interval_level." if missing[0] == "pred_scales" else ".")
        )
    logits = outputs["logits"].float()
    batch, device = logits.shape[0], logits.device
    thresholds = _one_per_image(threshold, "threshold", batch).to(device, torch.float32)
    limits = _one_per_image(top_k, "top_k", batch)
    if limits.is_floating_point() or int(limits.min()) < 1:
        raise ValueError(f"top_k is {top_k}: give a whole number of at least 1, or one per image.")

    scores, labels, components = best_pairs(logits, int(limits.max()))
    boxes = box_convert(outputs["pred_boxes"].float().gather(1, components), "cxcywh", "xyxy")
    results = {"scores": scores, "labels": labels, "boxes": boxes}
    if outputs.get("pred_scales") is not None:
        results["scales"] = outputs["pred_scales"].float().gather(1, components)
    if outputs.get("objectness_logits") is not None:
        results["objectness"] = outputs["objectness_logits"].float().sigmoid().gather(1, components[..., 0])
    if target_sizes is not None:
        sizes = target_sizes if isinstance(target_sizes, torch.Tensor) else list(map(torch.as_tensor, target_sizes))
        if len(sizes) != batch or any(size.shape != (2,) for size in sizes):
            raise ValueError(f"target_sizes has {len(sizes)} entries for {batch} images: give one (height, width) each")
        sizes = sizes if isinstance(sizes, torch.Tensor) else torch.stack(sizes)
        pixels = sizes.to(device, torch.float32).flip(1).repeat(1, 2)[:, None]
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


def box_intervals(
    boxes: torch.Tensor, scales: torch.Tensor, level: float, density: str = "cauchy", student_t_dof: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Central intervals that hold each true edge with probability `level`, if the predicted density is right.

    The edges are independent in the density (Eq. 3): all four lie in their intervals with probability level⁴.

    Args:
        boxes: (..., 4) predicted edges μ, xyxy, pixels of any frame.
        scales: (..., 4) γ of the edges l, t, r, b in the same frame, as `post_process_object_detection` returns
            them: with the floor of the density.
        level: probability in (0, 1).
        density, student_t_dof: `config.density` and `config.student_t_dof` of the model.

    Returns:
        Lower and upper end of the interval of each edge, (..., 4) each, not clipped to the image.

    Raises:
        ValueError: shapes that differ, or a setting out of range.
        ImportError: "student_t" with other than 1 degree of freedom needs scipy; the message names the extra.
    """
    if boxes.shape != scales.shape or boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes {tuple(boxes.shape)} and scales {tuple(scales.shape)}: both must be (..., 4)")
    reach = half_width(level, density, student_t_dof) * scales
    return boxes - reach, boxes + reach


def half_width(level: float, density: str = "cauchy", student_t_dof: float = 1.0) -> float:
    """Half the width of the central interval of probability `level`, in units of γ.

    Cauchy: tan(π·level/2), so 1 at 50%, 3.08 at 80% and 6.31 at 90%. Arguments and errors as in `box_intervals`.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), not {level}; 0.8 asks for 80% intervals")
    if density not in DENSITIES:
        raise ValueError(f"density={density!r} is unknown; choose one of {', '.join(DENSITIES)}")
    if density == "gaussian":
        return NormalDist().inv_cdf((1.0 + level) / 2.0)
    dof = {"cauchy": 1.0, "student_t": student_t_dof}[density]
    if dof == 1.0:
        return math.tan(math.pi * level / 2.0)
    if not dof > 0.0:
        raise ValueError(f"student_t_dof must be positive, not {dof}")
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise ImportError("Student-t intervals need scipy: pip install 'drmm-hf[baselines]'") from error
    return float(stdtrit(dof, (1.0 + level) / 2.0))


def _one_per_image(value: Any, name: str, batch: int) -> torch.Tensor:
    values = torch.as_tensor(value)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} for {batch} images: give one number, or one per image."
        )
    return values.expand(batch)
