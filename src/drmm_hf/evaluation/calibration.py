"""How far confidences are from precision and from the fit of the boxes: ECE, LaECE and Brier score, and a diagram.

Every function matches results to ground truth with `match_detections`, or takes the matches as they are; scores must
lie in [0, 1]. A `FileNotFoundError` or `ValueError` names the file and field, or the setting, that is wrong.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from .coco_input import Results
from .matching import Matchable, Matches, MatchOptions, MatchReport, iou_text, match_detections, mean_of_known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("score", "class_probability", "objectness")
BAR, OVER, UNDER, INK, FAINT = "#a9c6e3", "#d1495b", "#1f6f8b", "#333333", "#8a8a8a"


@dataclass(frozen=True, kw_only=True)
class BinnedReport(MatchReport):
    """A report of equal-width score bins over [0, 1]; a bin holds its lower edge, the last bin also 1.

    Attributes:
        num_bins: the number of bins.
        num_detections: n, the detections that were counted.
        num_ignored: detections left out because they lie on a crowd region.
    """

    num_bins: int
    num_detections: int
    num_ignored: int

    @property
    def settings(self) -> str:
        """The settings in words, to print next to the value."""
        return (
            f"{iou_text(self.iou_threshold)}, {self.num_bins} bins, score >= {self.score_threshold:g}, "
            f"maxDets {self.max_detections}"
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationReport(BinnedReport):
    """Expected calibration error together with everything it depends on.

    Attributes:
        ece: Σ_m |B_m|/n · |acc(B_m) - conf(B_m)|, in [0, 1]; nan if there are no detections, since 0 would
            read as perfectly calibrated.
        bin_edges: the `num_bins` + 1 edges.
        bin_counts: detections per bin.
        bin_confidences: mean score per bin; nan if empty.
        bin_accuracies: precision per bin; nan if empty.
    """

    ece: float
    bin_edges: tuple[float, ...]
    bin_counts: tuple[int, ...]
    bin_confidences: tuple[float, ...]
    bin_accuracies: tuple[float, ...]


def calibration_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    **options: Unpack[MatchOptions],
) -> CalibrationReport:
    """Expected calibration error of detections (Eq. 9 of the D-RMM paper).

    A detection is right if `match_detections` gives it an object; classes are pooled.

    The paper gives neither the number of bins nor a score threshold. The defaults are ten equal-width bins
    over all detections; nearly all of 100 detections an image have tiny scores, so the lowest bin then
    carries most of the weight. `score_threshold=0.3` gives D-ECE as Küppers et al. (CVPRW 2020) report it.

    Args:
        ground_truth, results, options: of `match_detections`.
        num_bins: number of equal-width score bins.
        score_threshold: count detections with at least this score.
    """
    kept = match_detections(ground_truth, results, **options).above(score_threshold)
    scores, bins = kept.scores, score_bins(kept.scores, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    score_sums = np.bincount(bins, weights=scores, minlength=num_bins)
    correct_sums = np.bincount(bins, weights=kept.correct, minlength=num_bins)
    divisor = np.where(counts > 0, counts, np.nan)
    return CalibrationReport(
        # |B|/n · |acc - conf| = |Σ correct - Σ score| / n: no division by an empty bin.
        ece=float(np.abs(correct_sums - score_sums).sum() / scores.size) if scores.size else math.nan,
        bin_edges=tuple((np.arange(num_bins + 1) / num_bins).tolist()),
        bin_counts=tuple(counts.tolist()),
        bin_confidences=tuple((score_sums / divisor).tolist()),
        bin_accuracies=tuple((correct_sums / divisor).tolist()),
        **_binned(kept, num_bins),
    )


def part_calibration_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    **options: Unpack[MatchOptions],
) -> dict[str, CalibrationReport]:
    """ECE of the score p·o, of p alone and of o alone (Fig. 9 of the D-RMM paper).

    The detections are the same in all three, and so is which of them are right: those of `calibration_report`, matched
    in the order of the score p·o. Only the confidence that is compared with the precision differs.

    Args:
        ground_truth, num_bins, options: as in `calibration_report`.
        results: COCO results with `objectness`, as `predict_dataset(..., with_parts=True)` returns them.
        score_threshold: count detections whose score p·o is at least this.

    Returns:
        "score", "class_probability" and "objectness" -> the report.
    """
    kept = match_detections(ground_truth, results, **options).above(score_threshold)
    own = kept.results.objectness[kept.rows]
    # Rounding can put p just above 1; where o has underflowed, so has the score.
    share = np.divide(kept.scores, own, out=np.zeros_like(kept.scores), where=own > 0.0).clip(max=1.0)
    confidences = zip(PARTS, (kept.scores, share, own), strict=True)
    return {name: calibration_report(replace(kept, scores=values), num_bins=num_bins) for name, values in confidences}


@dataclass(frozen=True)
class ClassLocalizationCalibration:
    """LaECE and LaACE of one class; nan without detections."""

    laece: float
    laace: float
    num_detections: int


@dataclass(frozen=True, kw_only=True)
class LocalizationCalibrationReport(BinnedReport):
    """Localisation-aware calibration errors together with everything they depend on.

    Attributes:
        laece: mean over the classes with detections of Σ_b n_b/N · |conf_b - Σ_TP IoU / n_b|, in [0, 1];
            nan if there are no detections. At `iou_threshold` 0 it is LaECE_0.
        laace: mean over the same classes of the mean of |score - IoU|, a false positive having IoU 0. At
            `iou_threshold` 0 it is LaACE_0; it has no bins, and is never below `laece`.
        per_class: category name -> the same for each class.
    """

    laece: float
    laace: float
    per_class: dict[str, ClassLocalizationCalibration]


def localization_calibration_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    num_bins: int = 25,
    score_threshold: float = 0.0,
    **options: Unpack[MatchOptions],
) -> LocalizationCalibrationReport:
    """Localisation-aware calibration errors: a score should say how well the box fits, not only that it is right.

    The default is LaECE (Oksuz et al., Towards building self-aware object detectors, CVPR 2023: IoU 0.10, 25
    bins). `iou_threshold=0` gives LaECE_0 and LaACE_0 (Kuzucu et al., On calibration of object detectors, ECCV
    2024), where any overlap with a box that is still free makes a true positive.

    Both papers keep only detections above an operating threshold: `score_threshold`, or the LRP-optimal one of
    each class (`keep_above(results, lrp_report(...).thresholds)`).

    Args:
        ground_truth, results, options: of `match_detections`, with `iou_threshold` 0.1 unless given.
        num_bins, score_threshold: as in `calibration_report`.
    """
    options.setdefault("iou_threshold", 0.1)
    kept = match_detections(ground_truth, results, **options).above(score_threshold)
    names = kept.truth.class_names
    bins = kept.classes * num_bins + score_bins(kept.scores, num_bins)
    gaps = kept.scores - kept.ious
    counts = np.bincount(kept.classes, minlength=len(names))
    divisor = np.where(counts > 0, counts, np.nan)
    # n_b/N · |conf_b - ΣIoU/n_b| = |Σ (score - IoU)| / N: no division by an empty bin.
    bin_gaps = np.bincount(bins, weights=gaps, minlength=len(names) * num_bins).reshape(len(names), num_bins)
    laece = np.abs(bin_gaps).sum(axis=1) / divisor
    laace = np.bincount(kept.classes, weights=np.abs(gaps), minlength=len(names)) / divisor
    rows = zip(names, laece.tolist(), laace.tolist(), counts.tolist(), strict=True)
    return LocalizationCalibrationReport(
        laece=mean_of_known(laece),
        laace=mean_of_known(laace),
        per_class={name: ClassLocalizationCalibration(*values) for name, *values in rows},
        **_binned(kept, num_bins),
    )


@dataclass(frozen=True, kw_only=True)
class BrierReport(BinnedReport):
    """Brier score of detections together with everything it depends on.

    Attributes:
        brier: mean of (score - correct)², in [0, 1]; nan if there are no detections.
        reliability: Σ_b n_b/n (conf_b - acc_b)²: lower is better calibrated.
        resolution: Σ_b n_b/n (acc_b - acc)²: higher tells right from wrong better.
        uncertainty: acc (1 - acc) over all detections, which no score can change.
        within_bin: what is left, brier - (reliability - resolution + uncertainty): the spread of scores inside
            the bins; 0 if each bin holds one score. `brier` and `uncertainty` do not depend on the bins.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bin: float


def brier_report(
    ground_truth: Matchable,
    results: Results | None = None,
    *,
    num_bins: int = 10,
    score_threshold: float = 0.0,
    **options: Unpack[MatchOptions],
) -> BrierReport:
    """Brier score of detections and Murphy's decomposition of it; arguments as in `calibration_report`.

    Brier, Verification of forecasts expressed in terms of probability, 1950; Murphy, A new vector partition of
    the probability score, 1973. A detection is right or wrong as in `calibration_report`; classes are pooled.
    """
    kept = match_detections(ground_truth, results, **options).above(score_threshold)
    scores, correct = kept.scores, kept.correct.astype(float)
    bins = score_bins(scores, num_bins)
    brier = reliability = resolution = uncertainty = math.nan
    if scores.size:
        counts = np.bincount(bins, minlength=num_bins)
        filled = counts > 0
        weights = counts[filled] / scores.size
        confidence = np.bincount(bins, weights=scores, minlength=num_bins)[filled] / counts[filled]
        accuracy = np.bincount(bins, weights=correct, minlength=num_bins)[filled] / counts[filled]
        precision = float(correct.mean())
        brier = float(np.mean((scores - correct) ** 2))
        reliability = float(weights @ (confidence - accuracy) ** 2)
        resolution = float(weights @ (accuracy - precision) ** 2)
        uncertainty = precision * (1.0 - precision)
    return BrierReport(
        brier=brier,
        reliability=reliability,
        resolution=resolution,
        uncertainty=uncertainty,
        within_bin=brier - (reliability - resolution + uncertainty),
        **_binned(kept, num_bins),
    )


def score_bins(scores: np.ndarray, num_bins: int) -> np.ndarray:
    """(n,) scores in [0, 1] to the (n,) equal-width bin of each, as `BinnedReport` has them."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    edges = np.arange(num_bins + 1) / num_bins
    return np.minimum(np.searchsorted(edges, scores, side="right") - 1, num_bins - 1)


def _binned(kept: Matches, num_bins: int) -> dict[str, Any]:
    """The fields of `BinnedReport`."""
    counts = {"num_detections": len(kept.scores), "num_ignored": len(kept.ignored_scores)}
    return {**counts, "num_bins": num_bins, **kept.settings}


def reliability_figure(reports: Mapping[str, CalibrationReport]) -> "Figure":
    """Reliability diagrams side by side, as in Figs. 2, 8 and 9 of the D-RMM paper.

    Each column shows, over the confidence, the precision of the detections of each bin (bar), how far it is from
    their mean confidence (hatched), and the number of detections on a logarithmic axis. The title has the name,
    the ECE and its settings.

    Args:
        reports: name -> report of `calibration_report`, from left to right.

    Raises:
        ValueError: there are no reports.
        ImportError: matplotlib is missing; the message names the extra.
    """
    if not reports:
        raise ValueError("reports is empty; give at least one name and its CalibrationReport")
    try:
        # Not pyplot: it would keep every figure, and choose a window system.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Reliability diagrams need matplotlib: pip install 'drmm-hf[plots]'") from error
    figure = Figure(figsize=(1.0 + 3.0 * len(reports), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2, len(reports), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": (3, 1)}
    )
    for (name, report), (top, bottom) in zip(reports.items(), axes.T, strict=True):
        edges = np.array(report.bin_edges)
        place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
        precision, confidence = np.array(report.bin_accuracies), np.array(report.bin_confidences)
        top.bar(height=precision, color=BAR, edgecolor="white", label="precision", **place)
        gap = confidence - precision
        for label, color, wrong in (("too confident", OVER, gap > 0), ("not confident enough", UNDER, gap < 0)):
            # nan draws nothing, and leaves the legend its patch
            height, style = np.where(wrong, gap, np.nan), {"facecolor": "none", "linewidth": 0.6, "hatch": "////"}
            top.bar(height=height, bottom=precision, edgecolor=color, label=label, **style, **place)
        top.plot((0, 1), (0, 1), "--", color=INK, linewidth=1, label="perfectly calibrated")
        top.set(xlim=(0, 1), ylim=(0, 1))
        top.set_title(f"{name}\nECE {report.ece:.3f}", fontsize=11, color=INK, pad=28)
        settings = report.settings.replace(", score", ",\nscore").replace(">=", "≥")
        top.text(0.5, 1.02, settings, fontsize=8, color=FAINT, transform=top.transAxes, ha="center", va="bottom")
        bottom.bar(height=report.bin_counts, color="#c4c4c4", edgecolor="white", **place)
        # linear below 1, so that a bin of one detection has a height and an empty one has none
        bottom.set_yscale("symlog", linthresh=1)
        bottom.set_ylim(bottom=0)
        bottom.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        # short numbers, since the last of one column stands next to the first of the next
        bottom.xaxis.set_major_formatter("{x:g}")
        bottom.set_xlabel("confidence (score)", color=INK)
        for one in (top, bottom):
            one.spines[["top", "right"]].set_visible(False)
            one.spines[["left", "bottom"]].set_color(FAINT)
            one.tick_params(colors=INK, labelsize=8, length=3)
            one.grid(axis="y", color="#ececec", linewidth=0.8)
            one.set_axisbelow(True)
    axes[0, 0].set_ylabel("precision (fraction right)", color=INK)
    axes[1, 0].set_ylabel("detections", color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(4, 2 * len(reports))
    legend: dict[str, Any] = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "ncols": columns}
    figure.legend(handles, labels, loc="outside lower center", **legend)
    return figure


def save_reliability_diagram(path: str | PathLike[str], reports: Mapping[str, CalibrationReport]) -> "Figure":
    """Draw `reliability_figure`, save it and return it; the ending of `path` chooses PNG, SVG or PDF.

    Raises:
        ValueError: there are no reports, or matplotlib cannot write that kind of file.
        ImportError: matplotlib is missing; the message names the extra.
    """
    figure = reliability_figure(reports)
    figure.savefig(path, dpi=160, facecolor="white")
    return figure
