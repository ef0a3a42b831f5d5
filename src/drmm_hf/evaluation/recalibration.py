"""Post-hoc calibration of scores: isotonic regression and temperature scaling, fitted on held-out images.

The fair baseline of every claim about calibration: a model that is badly calibrated but can be cured by a
one-dimensional fit is not worse than one that is calibrated from the start, only less convenient (Kuzucu et al.,
On calibration of object detectors: pitfalls, evaluation and baselines, ECCV 2024).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, Unpack, get_args

import numpy as np

from .calibration import calibration_measures
from .coco import rescored
from .coco_input import Results
from .matches import Matchable, MatchOptions, Report, halve_images, match_detections

Method: TypeAlias = Literal["isotonic", "temperature"]

# Scores of float32 sigmoids reach 0 and 1, whose log-odds are infinite.
MARGIN = float(np.finfo(np.float32).eps)
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class IsotonicCurve:
    """Non-decreasing, piecewise linear map of scores, constant outside of the fitted ones."""

    scores: tuple[float, ...]  # increasing (m,)
    values: tuple[float, ...]  # non-decreasing (m,) calibrated scores at them

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) calibrated scores."""
        return np.interp(scores, self.scores, self.values).clip(0.0, 1.0)


@dataclass(frozen=True)
class TemperatureCurve:
    """σ(logit(s) / `temperature`): above 1 it draws scores towards 0.5, below 1 away from it."""

    temperature: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) calibrated scores."""
        return _sigmoid(_logit(scores) / self.temperature)


@dataclass(frozen=True)
class ScoreCalibration(Report):
    """A fitted map from scores to calibrated scores, of all classes together; `ScoreCalibration.fit` makes one."""

    curve: IsotonicCurve | TemperatureCurve
    iou_threshold: float
    max_detections: int
    num_detections: int  # that it was fitted on

    @classmethod
    def fit(
        cls,
        ground_truth: Matchable,
        results: Results | None = None,
        *,
        method: Method = "isotonic",
        **options: Unpack[MatchOptions],
    ) -> "ScoreCalibration":
        """Fit the probability of a true positive to matched detections; use images that nothing is reported on.

        Args:
            ground_truth, results, options: of `match_detections`; scores must lie in [0, 1].
            method: "isotonic" (least squares among all non-decreasing maps) or "temperature" (Guo et al., On
                calibration of modern neural networks, ICML 2017, for one logit: T minimises the negative
                log-likelihood).

        Raises:
            FileNotFoundError, ValueError: bad input, or no detections to fit to.
        """
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
        matches = match_detections(ground_truth, results, **options).above(0.0)
        if not len(matches):
            raise ValueError("results: no detections on these images; calibration needs some to fit to")
        fitted = fit_isotonic if method == "isotonic" else fit_temperature
        curve = fitted(matches.scores, matches.correct.astype(float))
        return cls(curve, matches.iou_threshold, matches.max_detections, len(matches))

    def apply(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """COCO results with calibrated scores: new dicts without `objectness`, from the highest old score down.

        Isotonic regression gives many detections the same score, and COCO ranks equal scores as they stand in
        the list: this order keeps the matching that they had.
        """
        ranked = sorted(results, key=lambda result: -result["score"])
        scores = self.curve(np.array([result["score"] for result in ranked], dtype=float))
        return [rescored(result, score) for result, score in zip(ranked, scores.tolist(), strict=True)]


def fit_isotonic(scores: np.ndarray, targets: np.ndarray) -> IsotonicCurve:
    """Least-squares non-decreasing map of (n,) scores to (n,) targets in [0, 1]; equal scores count as one.

    By pool adjacent violators: the mean of each score joins those before it for as long as it is not above theirs.
    """
    levels, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    totals = np.bincount(index, weights=targets)
    pools: list[tuple[float, int, int, int]] = []  # sum and number of targets, first and last level
    for place, (total, count) in enumerate(zip(totals.tolist(), counts.tolist(), strict=True)):
        pools.append((total, count, place, place))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count, _, last = pools.pop()
            more, others, first, _ = pools.pop()
            pools.append((total + more, count + others, first, last))
    # The ends of each constant piece are all that interpolation needs.
    ends = [(levels[i].item(), total / count) for total, count, *piece in pools for i in sorted(set(piece))]
    return IsotonicCurve(*zip(*ends, strict=True))


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> TemperatureCurve:
    """T of least -Σ t log σ(z/T) + (1-t) log σ(-z/T), z = logit(s), for (n,) scores and targets in [0, 1].

    The sum is convex in 1/T, so its slope is bisected; T stays in [1/100, 100], which right scores alone (T = 0)
    or scores below chance (T < 0) would leave.
    """
    logits = _logit(scores)
    low, high = -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(60):
        middle = (low + high) / 2
        slope = float(np.mean((_sigmoid(logits * math.exp(middle)) - targets) * logits))
        if slope == 0.0:
            break
        low, high = (low, middle) if slope > 0 else (middle, high)
    return TemperatureCurve(math.exp(-middle))


@dataclass(frozen=True)
class SplitHalfReport(Report):
    """Calibration errors before and after fits on the other half of the images; names are "raw" and the methods."""

    values: dict[str, dict[str, float]]  # name -> metric -> mean of the two directions
    metric_settings: dict[str, str]  # metric -> its settings in words
    fit_settings: str  # those of the fits in words
    num_images: tuple[int, int]  # of the two halves


def split_half_report(ground_truth: Matchable, results: Results | None = None) -> SplitHalfReport:
    """Split the images in two at random, fit on one half, report on the other, both ways, and average.

    The metrics, each before ("raw") and after both methods, are those of `calibration_measures`. The fit moves
    detections across the 0.3 of D-ECE, so that this one is not over the same detections before and after.

    Args:
        ground_truth, results: of `match_detections`; scores must lie in [0, 1].

    Raises:
        FileNotFoundError, ValueError: bad input, fewer than two images, or a half without detections to fit to.
    """
    matches = match_detections(ground_truth, results)
    halves = halve_images(matches.truth)
    # A fit keeps the order of the scores, and so the matches.
    whole = [matches, *matches.loose]
    raw = [[one.select(np.isin(one.images, half)) for one in whole] for half in halves]
    measured = {"raw": [calibration_measures(*located) for located in raw]}
    for method in get_args(Method):
        fits = [ScoreCalibration.fit(located[0], method=method) for located in reversed(raw)]
        measured[method] = [
            calibration_measures(*(replace(one, scores=fit.curve(one.scores)) for one in located))
            for fit, located in zip(fits, raw, strict=True)
        ]
    return SplitHalfReport(
        values={
            name: {metric: (first[metric][0] + second[metric][0]) / 2 for metric in first}
            for name, (first, second) in measured.items()
        },
        metric_settings={metric: report.settings for metric, (_, report) in measured["raw"][0].items()},
        fit_settings=f"fitted pooled to precision at IoU {matches.iou_threshold:g}, maxDets {matches.max_detections}",
        num_images=(len(halves[0]), len(halves[1])),
    )


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, MARGIN, 1.0 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
