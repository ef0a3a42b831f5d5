"""Post-hoc calibration of scores: isotonic regression and temperature scaling, fitted on held-out images.

The fair baseline of every claim about calibration: a model that is badly calibrated but can be cured by a
one-dimensional fit is not worse than one that is calibrated from the start, only less convenient (Kuzucu et al.,
On calibration of object detectors: pitfalls, evaluation and baselines, ECCV 2024).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Unpack, get_args

import numpy as np

from .calibration import BinnedReport, CalibrationReport, brier_report, calibration_report
from .calibration import localization_calibration_report as localization_report
from .coco import rescored
from .coco_input import GroundTruth, Results, prepare_ground_truth, prepare_results
from .matching import Matchable, Matches, MatchOptions, Report, halve_images, iou_text, match_detections

Method: TypeAlias = Literal["isotonic", "temperature"]
Target: TypeAlias = Literal["precision", "iou"]

# Scores of float32 sigmoids reach 0 and 1, whose log-odds are infinite.
MARGIN = float(np.finfo(np.float32).eps)
MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class IsotonicCurve:
    """Non-decreasing, piecewise linear map of scores, constant outside of the fitted ones.

    Attributes:
        scores: increasing (m,); values: non-decreasing (m,) calibrated scores at them.
    """

    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) calibrated scores."""
        return np.interp(scores, self.scores, self.values)


@dataclass(frozen=True)
class TemperatureCurve:
    """σ(logit(s) / `temperature`): above 1 it draws scores towards 0.5, below 1 away from it."""

    temperature: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(n,) scores to (n,) calibrated scores."""
        return _sigmoid(_logit(scores) / self.temperature)


Curve: TypeAlias = IsotonicCurve | TemperatureCurve


@dataclass(frozen=True)
class ScoreCalibration(Report):
    """A fitted map from scores to calibrated scores; `ScoreCalibration.fit` makes one.

    Attributes:
        pooled: the curve of all classes together, for classes that have none of their own.
        per_class: original category id -> curve; empty if fitted pooled.
        method, target, iou_threshold, max_detections: the settings it was fitted with.
        num_detections: detections it was fitted on.
    """

    pooled: Curve
    per_class: dict[Any, Curve]
    method: Method
    target: Target
    iou_threshold: float
    max_detections: int
    num_detections: int

    @classmethod
    def fit(
        cls,
        ground_truth: Matchable,
        results: Results | None = None,
        *,
        method: Method = "isotonic",
        per_class: bool = False,
        target: Target = "precision",
        **options: Unpack[MatchOptions],
    ) -> "ScoreCalibration":
        """Fit to matched detections; use images that nothing is reported on.

        Args:
            ground_truth, results, options: of `match_detections`; scores must lie in [0, 1].
            method: "isotonic" (least squares among all non-decreasing maps) or "temperature" (Guo et al., On
                calibration of modern neural networks, ICML 2017, for one logit: T minimises the negative
                log-likelihood).
            per_class: a curve for each class. A class without detections here uses the pooled curve.
            target: what a score shall say: "precision", the probability of a true positive (ECE, D-ECE), or
                "iou", the expected IoU, 0 for a false positive (LaECE).

        Raises:
            FileNotFoundError, ValueError: bad input, or no detections to fit to.
        """
        for name, value, known in (("method", method, get_args(Method)), ("target", target, get_args(Target))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        matches = match_detections(ground_truth, results, **options).above(0.0)
        if not matches.scores.size:
            raise ValueError("results: no detections on these images; calibration needs some to fit to")
        fit_curve = fit_isotonic if method == "isotonic" else fit_temperature

        def fitted(part: Matches) -> Curve:
            return fit_curve(part.scores, part.ious if target == "iou" else part.correct.astype(float))

        classes = np.unique(matches.classes).tolist() if per_class else []
        return cls(
            pooled=fitted(matches),
            per_class={
                matches.truth.category_ids[index]: fitted(matches.select(matches.classes == index)) for index in classes
            },
            method=method,
            target=target,
            iou_threshold=matches.iou_threshold,
            max_detections=matches.max_detections,
            num_detections=int(matches.scores.size),
        )

    def apply(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """COCO results with calibrated scores: new dicts without `objectness`, from the highest old score down.

        Isotonic regression gives many detections the same score, and COCO ranks equal scores as they stand in
        the list: this order keeps the matching that they had.
        """
        ranked = sorted(results, key=lambda result: -result["score"])
        scores = np.array([result["score"] for result in ranked], dtype=float)
        calibrated = self.pooled(scores)
        category_ids = np.array([result["category_id"] for result in ranked])
        for category_id, curve in self.per_class.items():
            of_class = category_ids == category_id
            calibrated[of_class] = curve(scores[of_class])
        # An IoU of 1, which a curve can be fitted to, can be above it by rounding.
        calibrated = calibrated.clip(0.0, 1.0)
        return [rescored(result, score) for result, score in zip(ranked, calibrated.tolist(), strict=True)]

    @property
    def settings(self) -> str:
        """The settings in words, to print next to a value."""
        return (
            f"{self.method}, {'per class' if self.per_class else 'pooled'}, fitted to {self.target} at "
            f"{iou_text(self.iou_threshold)}, maxDets {self.max_detections}, {self.num_detections} detections"
        )


def fit_isotonic(scores: np.ndarray, targets: np.ndarray) -> IsotonicCurve:
    """Least-squares non-decreasing map of (n,) scores to (n,) targets in [0, 1]; equal scores count as one.

    By pool adjacent violators: the mean of each score joins those before it for as long as it is not above theirs.
    """
    levels, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    totals = np.bincount(index, weights=targets)
    values: list[float] = []
    pools: list[tuple[float, int, int]] = []  # sum and number of targets, and the place of the first level
    for place, (total, count) in enumerate(zip(totals.tolist(), counts.tolist(), strict=True)):
        start = place
        while values and values[-1] >= total / count:
            values.pop()
            more, others, start = pools.pop()
            total, count = total + more, count + others
        values.append(total / count)
        pools.append((total, count, start))
    # The ends of each constant piece are all that interpolation needs.
    starts = [start for *_, start in pools]
    pieces = list(zip(starts, [*starts[1:], len(levels)], values, strict=True))
    ends = [(levels[i].item(), value) for first, stop, value in pieces for i in sorted({first, stop - 1})]
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
    """Calibration errors before and after fits on the other half of the images.

    Attributes:
        values: "raw" and each method -> metric -> mean of the two directions; nan if a half has no detections.
        metric_settings: metric -> its settings in words.
        fit_settings: the settings of the fits in words.
        reports: "raw" and each method -> the reports of ECE on the first and on the second half, for diagrams.
        num_images: images of the two halves.
        seed: of the split.
    """

    values: dict[str, dict[str, float]]
    metric_settings: dict[str, str]
    fit_settings: str
    reports: dict[str, tuple[CalibrationReport, CalibrationReport]]
    num_images: tuple[int, int]
    seed: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the values."""
        metrics = "; ".join(f"{metric}: {settings}" for metric, settings in self.metric_settings.items())
        halves = f"halves of {self.num_images[0]} and {self.num_images[1]} images, seed {self.seed}"
        return f"{self.fit_settings}; {halves}; {metrics}"


def split_half_report(
    ground_truth: GroundTruth,
    results: Results,
    seed: int = 0,
    *,
    methods: Sequence[Method] = get_args(Method),
    per_class: bool = False,
    target: Target = "precision",
    iou_threshold: float = 0.5,
    num_bins: int = 10,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> SplitHalfReport:
    """Split the images in two at random, fit on one half, report on the other, both ways, and average.

    The metrics, each before ("raw") and after:

    - ECE, Brier: all detections, at `iou_threshold` with `num_bins` bins.
    - D-ECE: score at least 0.3, IoU 0.5, 10 bins. The fit moves detections across 0.3, so it is not over the
      same detections before and after.
    - LaECE (IoU 0.1), LaECE_0 and LaACE_0 (any overlap): all detections, 25 bins.

    Args:
        ground_truth, results, max_detections, image_ids: as in `match_detections`; scores must lie in [0, 1].
        seed: of the split.
        methods: which of "isotonic" and "temperature".
        per_class, target, iou_threshold: as in `ScoreCalibration.fit`.
        num_bins: of ECE and of the Brier decomposition.

    Raises:
        FileNotFoundError, ValueError: bad input, fewer than two images, or a half without detections to fit to.
    """
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    halves = halve_images(truth, image_ids, seed)
    rows_of = [[row for row in found.rows if row["image_id"] in half] for half in halves]

    def match(part: int, rows: Results, iou: float) -> Matches:
        return match_detections(
            truth, rows, iou_threshold=iou, max_detections=max_detections, image_ids=list(halves[part])
        )

    def measure(part: int, rows: Results) -> tuple[CalibrationReport, dict[str, tuple[float, BinnedReport]]]:
        rows = prepare_results(rows, truth)
        matches, any_overlap = match(part, rows, iou_threshold), localization_report(match(part, rows, 0.0))
        ece, brier = calibration_report(matches, num_bins=num_bins), brier_report(matches, num_bins=num_bins)
        d_ece = calibration_report(match(part, rows, 0.5), score_threshold=0.3)
        laece = localization_report(match(part, rows, 0.1))
        return ece, {
            "ECE": (ece.ece, ece),
            "D-ECE": (d_ece.ece, d_ece),
            "LaECE": (laece.laece, laece),
            "LaECE_0": (any_overlap.laece, any_overlap),
            "LaACE_0": (any_overlap.laace, any_overlap),
            "Brier": (brier.brier, brier),
        }

    measured = {"raw": [measure(part, rows_of[part]) for part in (0, 1)]}
    for report_half, fit_half in ((0, 1), (1, 0)):
        matches = match(fit_half, rows_of[fit_half], iou_threshold)
        for method in dict.fromkeys(methods):
            calibration = ScoreCalibration.fit(matches, method=method, per_class=per_class, target=target)
            calibrated = calibration.apply(rows_of[report_half])
            measured.setdefault(method, []).append(measure(report_half, calibrated))
    return SplitHalfReport(
        values={
            name: {metric: (first[metric][0] + second[metric][0]) / 2 for metric in first}
            for name, ((_, first), (_, second)) in measured.items()
        },
        metric_settings={metric: report.settings for metric, (_, report) in measured["raw"][0][1].items()},
        fit_settings=(
            f"fitted {'per class' if per_class else 'pooled'} to {target} at IoU {iou_threshold:g}, "
            f"maxDets {max_detections}"
        ),
        reports={name: (first, second) for name, ((first, _), (second, _)) in measured.items()},
        num_images=(len(halves[0]), len(halves[1])),
        seed=seed,
    )


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, MARGIN, 1.0 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
