"""The predicted scale γ as the uncertainty of each box edge: intervals, their coverage, and one factor to correct it.

D-RMM predicts a location μ and a scale γ for each edge of a box (Eq. 3 of the paper). The density that the loss fits
has a floor under γ (`config.min_scale_ratio`, 0.04 of the predicted width for the left and right edge, of the height
for top and bottom), and so have the `scales` that post-processing returns: intervals are those of the density that was
trained. Where the floor is active they say no more than how large the box is, and are too wide if the model locates
better than that; `interval_report` counts how often. With `model.config.min_scale_ratio = 0.0` at prediction the scales
are without the floor, but below it the loss has not seen them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np

from ..postprocessing import half_width
from .coco_input import Results
from .matches import Matchable, Matches, MatchOptions, MatchReport, halve_images, match_detections, mean_or_nan

LEVELS = (0.5, 0.8, 0.9)
SMALLEST_FACTOR = 1e-6  # for boxes without an error: an interval without a width is none


class Edges(NamedTuple):
    """Edges of n true positives, (n, 4) each in pixels of the original image and in the order l, t, r, b."""

    errors: np.ndarray  # |true - predicted|
    scales: np.ndarray  # γ
    sizes: np.ndarray  # the predicted width, height, width, height
    ratios: np.ndarray  # errors / scales; where both are zero, zero


def match_edges(ground_truth: Matchable, results: Results | None, options: MatchOptions) -> tuple[Matches, Edges]:
    """The true positives from a score of 0.3 if no other is given, and their edges."""
    options.setdefault("score_threshold", 0.3)
    matches = match_detections(ground_truth, results, **options)
    right = matches.select(matches.correct)
    boxes, objects = right.results.boxes[right.rows], right.truth.boxes[right.objects]
    predicted, true = (np.concatenate([one[:, :2], one[:, :2] + one[:, 2:]], axis=1) for one in (boxes, objects))
    errors, scales = np.abs(true - predicted), right.results.scales[right.rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(errors > 0, errors / scales, 0.0)
    return right, Edges(errors, scales, np.tile(predicted[:, 2:] - predicted[:, :2], 2), ratios)


@dataclass(frozen=True, kw_only=True)
class IntervalReport(MatchReport):
    """How often predicted intervals hold the true edge; nan without true positives."""

    levels: tuple[float, ...]  # what the coverage should be
    coverage: tuple[float, ...]  # share of all edges in their interval, for each level
    median_width: tuple[float, ...]  # of the whole intervals in pixels, for each level
    # Spearman's, of interval width and |error| over all edges: whether γ tells which edges are wrong. It is the same at
    # every level; nan if either does not vary.
    rank_correlation: float
    # The same with both divided by the predicted width (l, r) or height (t, b): what is left when large boxes have
    # large errors anyway.
    relative_rank_correlation: float
    # Mean γ and mean |error| in pixels of the fifth of the edges with the smallest γ, and so on to the largest; nan
    # where there are fewer than five edges.
    quintile_scales: tuple[float, ...]
    quintile_errors: tuple[float, ...]
    # Share of the edges whose γ is the floor of the density, `min_scale_ratio` times the predicted width or height.
    floor_share: float
    num_detections: int  # true positives; each has four edges
    density: str
    student_t_dof: float
    min_scale_ratio: float

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the values."""
        return (
            f"true positives at {super().settings}, {density_text(self.density, self.student_t_dof)}, "
            f"floor {self.min_scale_ratio:g} of the box"
        )


def interval_report(
    ground_truth: Matchable,
    results: Results | None = None,
    levels: Sequence[float] = LEVELS,
    *,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    min_scale_ratio: float = 0.04,
    **options: Unpack[MatchOptions],
) -> IntervalReport:
    """Coverage and width of the predicted intervals of the edges of true positives.

    True positives are a selection: a box far off is none, so that the far tail of a heavy-tailed density is cut, and
    coverage may exceed the level for this reason alone. A lower `iou_threshold` cuts less.

    Args:
        ground_truth, options: of `match_detections`; detections count from a `score_threshold` of 0.3 unless given.
        results: COCO results with `scales`, as `predict_dataset(..., with_scales=True)` returns them.
        levels: probabilities in (0, 1).
        density, student_t_dof: as in `box_intervals`, which may raise an ImportError.
        min_scale_ratio: `config.min_scale_ratio` of the model; only `floor_share` depends on it.
    """
    reaches = np.array([half_width(level, density, student_t_dof) for level in levels])
    right, edges = match_edges(ground_truth, results, options)
    inside = edges.ratios <= reaches[:, None, None]  # (levels, n, 4)
    errors, scales = edges.errors.ravel(), edges.scales.ravel()
    relative = 1.0 / np.maximum(edges.sizes, np.finfo(float).tiny).ravel()
    # Scales and boxes come from float32; the floor is met to about 1e-6.
    at_floor = edges.scales <= min_scale_ratio * edges.sizes * (1.0 + 1e-3)
    fifths = np.array_split(np.argsort(scales, kind="stable"), 5)
    median = float(np.median(scales)) if len(right) else math.nan
    return IntervalReport(
        levels=tuple(float(level) for level in levels),
        coverage=tuple(map(mean_or_nan, inside)),
        median_width=tuple((2.0 * reaches * median).tolist()),
        rank_correlation=_rank_correlation(scales, errors),
        relative_rank_correlation=_rank_correlation(scales * relative, errors * relative),
        quintile_scales=tuple(mean_or_nan(scales[part]) for part in fifths),
        quintile_errors=tuple(mean_or_nan(errors[part]) for part in fifths),
        floor_share=mean_or_nan(at_floor),
        num_detections=len(right),
        density=density,
        student_t_dof=float(student_t_dof),
        min_scale_ratio=float(min_scale_ratio),
        **right.settings,
    )


@dataclass(frozen=True, kw_only=True)
class ScaleFactorReport(MatchReport):
    """One factor on γ, and whether it helps on images that it was not fitted on."""

    factor: float  # fitted on all images, for `post_process_object_detection`; below 1 γ was too wide
    levels: tuple[float, ...]  # where coverage is reported; `level` is one of them
    coverage_before: tuple[float, ...]  # share of edges inside, for each level, mean of the two halves
    coverage_after: tuple[float, ...]  # with the factor of the other half
    num_detections: tuple[int, int]  # true positives in the two halves
    num_images: tuple[int, int]
    level: float
    density: str
    student_t_dof: float


def fit_scale_factor(
    ground_truth: Matchable,
    results: Results | None = None,
    level: float = 0.8,
    *,
    density: str = "cauchy",
    student_t_dof: float = 1.0,
    **options: Unpack[MatchOptions],
) -> ScaleFactorReport:
    """Fit the factor on γ that gives intervals the right coverage at one level, and check it on other images.

    The smallest factor, of at least `SMALLEST_FACTOR`, for which the intervals of `level` hold at least that share of
    the edges. The images are split in two at random; each half is measured with the factor of the other. One factor
    cannot correct the shape of the density: the coverage at other levels tells whether it had to.

    Args:
        ground_truth, results, density, student_t_dof, options: as in `interval_report`.
        level: probability in (0, 1) that is fitted.

    Raises:
        FileNotFoundError, ValueError: bad input, fewer than two images, or a half without true positives.
    """
    reach = half_width(level, density, student_t_dof)
    reported = tuple(sorted({float(level), *LEVELS}))
    reaches = np.array([half_width(one, density, student_t_dof) for one in reported])[:, None]
    right, edges = match_edges(ground_truth, results, options)
    halves = halve_images(right.truth)
    of_half = [edges.ratios[np.isin(right.images, half)].ravel() for half in halves]
    if not all(part.size for part in of_half):
        raise ValueError(
            f"results: no true positive with score >= {right.score_threshold:g} in one half of the images; "
            "lower score_threshold or give more images"
        )

    def fitted(ratios: np.ndarray) -> float:
        # The product of a level such as 0.9 with a count can round to just above a whole number.
        rank = max(1, math.ceil(level * ratios.size - 1e-9))
        return max(float(np.partition(ratios, rank - 1)[rank - 1]) / reach, SMALLEST_FACTOR)

    factors = [fitted(part) for part in of_half]
    before, after = (
        np.mean([(part <= one * reaches).mean(axis=1) for part, one in zip(of_half, used, strict=True)], axis=0)
        for used in ((1.0, 1.0), factors[::-1])
    )
    return ScaleFactorReport(
        factor=fitted(edges.ratios.ravel()),
        levels=reported,
        coverage_before=tuple(before.tolist()),
        coverage_after=tuple(after.tolist()),
        num_detections=(of_half[0].size // 4, of_half[1].size // 4),
        num_images=(len(halves[0]), len(halves[1])),
        level=float(level),
        density=density,
        student_t_dof=float(student_t_dof),
        **right.settings,
    )


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; nan if either is constant."""
    ranks = []
    for values in (first, second):
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2.0)[index]
        ranks.append(rank - rank.mean() if rank.size else rank)
    norm = math.sqrt(float((ranks[0] ** 2).sum()) * float((ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0.0 else math.nan


def density_text(density: str, student_t_dof: float) -> str:
    """A density in words."""
    return f"student_t with {student_t_dof:g} degrees of freedom" if density == "student_t" else density
