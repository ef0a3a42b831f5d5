"""Intervals of box edges: what a predicted scale γ says about where the true edge lies."""

import math
from statistics import NormalDist

import torch

from .mixture import DENSITIES


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
    if density == "cauchy" or student_t_dof == 1.0:
        return math.tan(math.pi * level / 2.0)
    if not student_t_dof > 0.0:
        raise ValueError(f"student_t_dof must be positive, not {student_t_dof}")
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise ImportError("Student-t intervals need scipy: pip install 'drmm-hf[baselines]'") from error
    return float(stdtrit(student_t_dof, (1.0 + level) / 2.0))
