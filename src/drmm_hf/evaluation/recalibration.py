"""Post-hoc calibration of scores: isotonic regression and temperature scaling, fitted on held-out images.

The fair baseline of every claim about calibration: a model that is badly calibrated but can be cured by a
one-dimensional fit is not worse than one that is calibrated from the start, only less convenient (Kuzucu et al.,
On calibration of object detectors: pitfalls, evaluation and baselines, ECCV 2024).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from ..files import to_plain
from .calibration import CalibrationReport, report_from_matches
from .calibration_parts import with_score
from .coco import MatchedEvaluation, run_coco_eval
from .coco_input import CocoGroundTruth, GroundTruth, Results, prepare_ground_truth, prepare_results
from .localization_calibration import localization_report_from_matches
from .matches import ANY_OVERLAP, Matches, Report, check_overlap, iou_text, match_detections, matches_at
from .scoring_rules import brier_report_from_matches

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
class ScoreCalibration:
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
        ground_truth: GroundTruth,
        results: Results,
        *,
        method: Method = "isotonic",
        per_class: bool = False,
        target: Target = "precision",
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        image_ids: Sequence[int] | None = None,
    ) -> "ScoreCalibration":
        """Fit to matched detections; use images that nothing is reported on.

        Args:
            ground_truth, results, max_detections, image_ids: as in `calibration_report`.
            method: "isotonic" (least squares among all non-decreasing maps, by pool adjacent violators; needs
                scipy) or "temperature" (Guo et al., On calibration of modern neural networks, ICML 2017, for one
                logit: T minimises the negative log-likelihood).
            per_class: a curve for each class. A class without detections here uses the pooled curve.
            target: what a score shall say: "precision", the probability of a true positive (ECE, D-ECE), or
                "iou", the expected IoU, 0 for a false positive (LaECE).
            iou_threshold: smallest IoU of a true positive, in [0, 1]; at 0 any overlap.

        Raises:
            FileNotFoundError, ValueError: bad input, or no detections to fit to.
            ImportError: scipy is missing; the message names the extra.
        """
        matches = match_detections(
            ground_truth,
            results,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            image_ids=image_ids,
        )
        return fit_to_matches(matches, method=method, per_class=per_class, target=target)

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
        return [with_score(result, score) for result, score in zip(ranked, calibrated.tolist(), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return to_plain(asdict(self))

    @property
    def settings(self) -> str:
        """The settings in words, to print next to a value."""
        return (
            f"{self.method}, {'per class' if self.per_class else 'pooled'}, fitted to {self.target} at "
            f"{iou_text(self.iou_threshold)}, maxDets {self.max_detections}, {self.num_detections} detections"
        )


def fit_to_matches(
    matches: Matches, *, method: Method = "isotonic", per_class: bool = False, target: Target = "precision"
) -> ScoreCalibration:
    """`ScoreCalibration.fit` from detections that are matched already."""
    for name, value, known in (("method", method, get_args(Method)), ("target", target, get_args(Target))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    matches = matches.above(0.0)
    if not matches.scores.size:
        raise ValueError("results: no detections on these images; calibration needs some to fit to")
    fit_curve = fit_isotonic if method == "isotonic" else fit_temperature

    def fitted(part: Matches) -> Curve:
        return fit_curve(part.scores, part.ious if target == "iou" else part.correct.astype(float))

    return ScoreCalibration(
        pooled=fitted(matches),
        per_class={
            matches.category_ids[index]: fitted(matches.select(matches.classes == index))
            for index in (np.unique(matches.classes).tolist() if per_class else ())
        },
        method=method,
        target=target,
        iou_threshold=matches.iou_threshold,
        max_detections=matches.max_detections,
        num_detections=int(matches.scores.size),
    )


def fit_isotonic(scores: np.ndarray, targets: np.ndarray) -> IsotonicCurve:
    """Least-squares non-decreasing map of (n,) scores to (n,) targets in [0, 1]; equal scores count as one.

    Raises:
        ImportError: scipy is missing; the message names the extra.
    """
    try:
        from scipy.optimize import isotonic_regression
    except ImportError as error:
        raise ImportError("Isotonic regression needs scipy: pip install 'drmm-hf[baselines]'") from error
    levels, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=targets) / counts
    values = isotonic_regression(means, weights=counts.astype(float)).x
    # The ends of each constant piece are all that interpolation needs.
    change = values[1:] != values[:-1]
    ends = np.append(True, change) | np.append(change, True)
    return IsotonicCurve(tuple(levels[ends].tolist()), tuple(values[ends].tolist()))


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
        ground_truth, results, image_ids: as in `evaluate_coco`; scores must lie in [0, 1].
        seed: of the split.
        methods: which of "isotonic" and "temperature".
        per_class, target, iou_threshold, max_detections: as in `ScoreCalibration.fit`; `iou_threshold` must be
            above 0.
        num_bins: of ECE and of the Brier decomposition.

    Raises:
        FileNotFoundError, ValueError: bad input, fewer than two images, or a half without detections to fit to.
        ImportError: scipy is missing; the message names the extra.
    """
    check_overlap("iou_threshold", iou_threshold)
    truth = prepare_ground_truth(ground_truth)
    images = sorted(truth.image_ids if image_ids is None else set(image_ids), key=str)
    if len(images) < 2:
        raise ValueError(f"image_ids: {len(images)} images cannot be halved; give at least two")
    order = np.random.default_rng(seed).permutation(len(images))
    halves = [{images[i] for i in part} for part in np.array_split(order, 2)]
    rows = list(prepare_results(results, truth).anns.values())
    rows_of = [[row for row in rows if row["image_id"] in half] for half in halves]

    def match(part: int, changed: Results) -> MatchedEvaluation:
        return run_coco_eval(
            truth,
            changed,
            max_detections=(max_detections,),
            image_ids=list(halves[part]),
            iou_thresholds=sorted({ANY_OVERLAP, 0.1, 0.5, iou_threshold}),
            areas=("all",),
        )

    raw = [match(part, rows_of[part]) for part in (0, 1)]
    measured: dict[str, list[_Measured]] = {"raw": [_measure(half, truth, iou_threshold, num_bins) for half in raw]}
    for report_half, fit_half in ((0, 1), (1, 0)):
        matches = matches_at(raw[fit_half], truth, iou_threshold)
        for method in dict.fromkeys(methods):
            calibration = fit_to_matches(matches, method=method, per_class=per_class, target=target)
            evaluation = match(report_half, calibration.apply(rows_of[report_half]))
            measured.setdefault(method, []).append(_measure(evaluation, truth, iou_threshold, num_bins))
    return SplitHalfReport(
        values={
            name: {metric: (first.values[metric] + second.values[metric]) / 2 for metric in first.values}
            for name, (first, second) in measured.items()
        },
        metric_settings=measured["raw"][0].settings,
        fit_settings=(
            f"fitted {'per class' if per_class else 'pooled'} to {target} at IoU {iou_threshold:g}, "
            f"maxDets {max_detections}"
        ),
        reports={name: (first.ece, second.ece) for name, (first, second) in measured.items()},
        num_images=(len(halves[0]), len(halves[1])),
        seed=seed,
    )


@dataclass(frozen=True)
class _Measured:
    values: dict[str, float]
    settings: dict[str, str]
    ece: CalibrationReport


def _measure(evaluation: MatchedEvaluation, truth: CocoGroundTruth, iou_threshold: float, num_bins: int) -> _Measured:
    matches = matches_at(evaluation, truth, iou_threshold)
    ece = report_from_matches(matches, num_bins=num_bins)
    d_ece = report_from_matches(matches_at(evaluation, truth, 0.5), score_threshold=0.3)
    brier = brier_report_from_matches(matches, num_bins=num_bins)
    laece = localization_report_from_matches(matches_at(evaluation, truth, 0.1))
    any_overlap = localization_report_from_matches(matches_at(evaluation, truth, 0.0))
    return _Measured(
        values={
            "ECE": ece.ece,
            "D-ECE": d_ece.ece,
            "LaECE": laece.laece,
            "LaECE_0": any_overlap.laece,
            "LaACE_0": any_overlap.laace,
            "Brier": brier.brier,
        },
        settings={
            "ECE": ece.settings,
            "D-ECE": d_ece.settings,
            "LaECE": laece.settings,
            "LaECE_0": any_overlap.settings,
            "LaACE_0": any_overlap.settings,
            "Brier": brier.settings,
        },
        ece=ece,
    )


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, MARGIN, 1.0 - MARGIN)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
