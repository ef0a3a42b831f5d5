"""How far confidences are from precision and from the fit of the boxes: ECE, LaECE, Brier score, OCE, and a diagram.

Every function takes ground truth and results, or the matches of both (`match_detections`), and the keywords of
`match_detections` as `options`. Scores must lie in [0, 1], and those of at least `score_threshold` count (0 unless
given). Reports hold the value together with everything it depends on; a value of no detections is nan, since 0 would
read as perfect. A `FileNotFoundError` or `ValueError` names the file and field, or the setting, that is wrong.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..files import require
from .coco_input import CocoResults, GroundTruth, Results, prepare_ground_truth, prepare_results
from .matches import (
    Matchable,
    Matches,
    MatchOptions,
    MatchReport,
    Report,
    box_iou,
    check_scores,
    match_detections,
    mean_or_nan,
    pairs,
    ranked_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR, OVER, UNDER, COUNT = "#a9c6e3", "#d1495b", "#1f6f8b", "#c4c4c4"
INK, FAINT, GRID = "#333333", "#8a8a8a", "#ececec"


@dataclass(frozen=True, kw_only=True)
class BinnedReport(MatchReport):
    """A report of equal-width score bins over [0, 1]; a bin holds its lower edge, the last bin also 1."""

    num_bins: int
    num_detections: int  # n, those that were counted
    num_ignored: int  # left out because they lie on a crowd region


@dataclass(frozen=True, kw_only=True)
class CalibrationReport(BinnedReport):
    """Expected calibration error, and what its diagram shows."""

    ece: float  # Σ_m |B_m|/n · |acc(B_m) - conf(B_m)|, in [0, 1]
    bin_edges: tuple[float, ...]  # num_bins + 1
    bin_counts: tuple[int, ...]
    bin_confidences: tuple[float, ...]  # mean score; nan if empty
    bin_accuracies: tuple[float, ...]  # precision; nan if empty

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CalibrationReport":
        """The report of what `to_dict` has written."""
        listed = {name: value for name, value in values.items() if isinstance(value, list)}
        tuples = {name: tuple(math.nan if one is None else one for one in value) for name, value in listed.items()}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class ClassLocalizationCalibration:
    """LaECE and LaACE of one class."""

    laece: float
    laace: float
    num_detections: int


@dataclass(frozen=True, kw_only=True)
class LocalizationCalibrationReport(BinnedReport):
    """Localisation-aware calibration errors: means over the classes with detections, and by category name."""

    laece: float  # Σ_b n_b/N · |conf_b - Σ_TP IoU / n_b|, in [0, 1]; LaECE_0 at `iou_threshold` 0
    laace: float  # mean of |score - IoU|, a false positive having IoU 0; has no bins, and is never below `laece`
    per_class: dict[str, ClassLocalizationCalibration]


@dataclass(frozen=True, kw_only=True)
class BrierReport(MatchReport):
    """Brier score of detections; it has no bins."""

    brier: float  # mean of (score - correct)², in [0, 1]
    num_detections: int  # those that were counted
    num_ignored: int  # left out because they lie on a crowd region


@dataclass(frozen=True, kw_only=True)
class ObjectCalibrationReport(Report):
    """Object-level calibration error; it has no bins."""

    oce: float  # mean of `per_threshold`; nan without objects
    per_threshold: tuple[float, ...]  # mean Brier score of the objects at each of `iou_thresholds`
    num_objects: int  # ground-truth boxes that are no crowd
    iou_thresholds: tuple[float, ...] = (0.5, 0.75)
    score_threshold: float = 0.3  # about where the authors find the optimum
    max_detections: int = 100


def calibration_report(
    ground_truth: Matchable, results: Results | None = None, *, num_bins: int = 10, **options: Unpack[MatchOptions]
) -> CalibrationReport:
    """Expected calibration error of detections (Eq. 9 of the D-RMM paper).

    A detection is right if `match_detections` gives it an object; classes are pooled.

    The paper gives neither the number of bins nor a score threshold. The defaults are ten equal-width bins over all
    detections; nearly all of 100 detections an image have tiny scores, so the lowest bin then carries most of the
    weight. `d_ece_report` leaves those out.
    """
    kept = match_detections(ground_truth, results, **options).above(0.0)
    bins = score_bins(kept.scores, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    score_sums = np.bincount(bins, weights=kept.scores, minlength=num_bins)
    correct_sums = np.bincount(bins, weights=kept.correct, minlength=num_bins)
    divisor = np.where(counts > 0, counts, np.nan)
    return CalibrationReport(
        # |B|/n · |acc - conf| = |Σ correct - Σ score| / n: no division by an empty bin.
        ece=float(np.abs(correct_sums - score_sums).sum() / len(kept)) if len(kept) else math.nan,
        bin_edges=tuple((np.arange(num_bins + 1) / num_bins).tolist()),
        bin_counts=tuple(counts.tolist()),
        bin_confidences=tuple((score_sums / divisor).tolist()),
        bin_accuracies=tuple((correct_sums / divisor).tolist()),
        **_binned(kept, num_bins),
    )


def d_ece_report(matches: Matches) -> CalibrationReport:
    """D-ECE of matches at IoU 0.5 as Küppers et al. (CVPRW 2020) report it: ECE in ten bins of scores from 0.3."""
    return calibration_report(matches, score_threshold=0.3)


def part_calibration_report(
    ground_truth: Matchable, results: Results | None = None, *, num_bins: int = 10, **options: Unpack[MatchOptions]
) -> dict[str, CalibrationReport]:
    """ECE of the score p·o, of p alone and of o alone (Fig. 9 of the D-RMM paper).

    The detections are the same in all three, and so is which of them are right: those of `calibration_report`, matched
    and cut by the score p·o. The results need `objectness`, as `predict_dataset(..., with_parts=True)` returns it; the
    names of the reports are "score", "class_probability" and "objectness".
    """
    kept = match_detections(ground_truth, results, **options).above(0.0)
    own = kept.results.objectness[kept.rows]
    # Rounding can put p just above 1; where o has underflowed, so has the score.
    share = np.divide(kept.scores, own, out=np.zeros_like(kept.scores), where=own > 0.0).clip(max=1.0)
    confidences = {"score": kept.scores, "class_probability": share, "objectness": own}
    return {
        name: calibration_report(replace(kept, scores=values), num_bins=num_bins)
        for name, values in confidences.items()
    }


def localization_calibration_report(
    ground_truth: Matchable, results: Results | None = None, *, num_bins: int = 25, **options: Unpack[MatchOptions]
) -> LocalizationCalibrationReport:
    """Localisation-aware calibration errors: a score should say how well the box fits, not only that it is right.

    The default is LaECE (Oksuz et al., Towards building self-aware object detectors, CVPR 2023: IoU 0.10, 25
    bins). `iou_threshold=0` gives LaECE_0 and LaACE_0 (Kuzucu et al., On calibration of object detectors, ECCV
    2024), where any overlap with a box that is still free makes a true positive.

    Both papers keep only detections above an operating threshold: `score_threshold`, or the LRP-optimal one of
    each class (`keep_above(results, lrp_report(...).thresholds)`).
    """
    options.setdefault("iou_threshold", 0.1)
    kept = match_detections(ground_truth, results, **options).above(0.0)
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
        laece=mean_or_nan(laece),
        laace=mean_or_nan(laace),
        per_class={name: ClassLocalizationCalibration(*values) for name, *values in rows},
        **_binned(kept, num_bins),
    )


def brier_report(
    ground_truth: Matchable, results: Results | None = None, **options: Unpack[MatchOptions]
) -> BrierReport:
    """Brier score of detections (Brier, Verification of forecasts expressed in terms of probability, 1950), right and
    wrong as in `calibration_report`.
    """
    kept = match_detections(ground_truth, results, **options).above(0.0)
    return BrierReport(
        brier=mean_or_nan((kept.scores - kept.correct) ** 2),
        num_detections=len(kept),
        num_ignored=len(kept.ignored_scores),
        **kept.settings,
    )


def calibration_measures(at_half: Matches, at_tenth: Matches, at_any: Matches) -> dict[str, tuple[float, Any]]:
    """The usual measures of matches at IoU 0.5, at 0.1 and at any overlap: name -> value and the report it is from.

    ECE, D-ECE and Brier score are of the first, LaECE of the second, LaECE_0 and LaACE_0 of the last.
    """
    laece, any_overlap = localization_calibration_report(at_tenth), localization_calibration_report(at_any)
    ece, d_ece, brier = calibration_report(at_half), d_ece_report(at_half), brier_report(at_half)
    return {
        "ECE": (ece.ece, ece),
        "D-ECE": (d_ece.ece, d_ece),
        "LaECE": (laece.laece, laece),
        "LaECE_0": (any_overlap.laece, any_overlap),
        "LaACE_0": (any_overlap.laace, any_overlap),
        "Brier": (brier.brier, brier),
    }


def object_calibration_report(ground_truth: GroundTruth, results: Results) -> ObjectCalibrationReport:
    """OCE: the Brier score of what the detections around each object say about its class.

    Park et al., Uncertainty quantification in detection transformers: object-level calibration and image-level
    reliability, TPAMI 2026 (arXiv 2412.01782). The class vectors of all detections with IoU >= τ to an object,
    whatever their class, are averaged; the object scores Σ_c (mean_c - [c is its class])², or 1 if there is no
    such detection; OCE is the mean over objects and over τ = 0.5 and 0.75. So it penalises misses, which D-ECE does
    not, and duplicates with low scores. Nothing is matched one to one, and crowd regions are no objects. A detection
    counts, with its whole class vector, if its best class has a score of 0.3 or more.

    COCO results hold one class a row, so the class vector of a detection is put together from the rows of its
    image with the same box; classes without a row count 0. Where a box stands twice with the same class, these
    are two detections. Results of many classes that were cut at 100 rows an image lose the low entries of the
    vectors, which barely count in a square. `ground_truth` and `results` are as in `match_detections`.
    """
    settings = ObjectCalibrationReport
    thresholds = np.array(settings.iou_thresholds)[:, None, None]
    truth = prepare_ground_truth(ground_truth)
    found = prepare_results(results, truth)
    check_scores(found.scores, found.source)
    classes = np.eye(len(truth.category_ids))
    briers = [np.zeros((len(thresholds), 0))]
    for seen, present in pairs(found, ranked_rows(found, settings.max_detections), by_class=False):
        present = present[~truth.crowd[present]]
        boxes, vectors = _class_vectors(found, seen)
        kept = vectors.max(axis=1, initial=0.0) >= settings.score_threshold
        near = box_iou(truth.boxes[present], boxes[kept]) >= thresholds  # (τ, object, detection)
        count = near.sum(axis=-1)
        mean = near @ vectors[kept] / np.maximum(count, 1)[..., None]
        # A missed object has the vector 0, whose score is the 1 of the definition.
        briers.append(((mean - classes[truth.classes[present]]) ** 2).sum(axis=-1))
    brier = np.concatenate(briers, axis=1)
    num_objects = brier.shape[1]
    per_threshold = brier.sum(axis=1) / (num_objects or math.nan)
    return ObjectCalibrationReport(
        oce=float(per_threshold.mean()), per_threshold=tuple(per_threshold.tolist()), num_objects=num_objects
    )


def _class_vectors(found: CocoResults, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image's detections, from the highest score of each class down, to n boxes (n, 4) and class scores (n, C)."""
    num_classes = len(found.truth.category_ids)
    vectors: dict[tuple[Any, ...], np.ndarray] = {}
    times: Counter[Any] = Counter()
    for row in rows.tolist():
        label, box = int(found.classes[row]), found.boxes[row].tolist()
        times[label, *box] += 1
        vectors.setdefault((times[label, *box], *box), np.zeros(num_classes))[label] = found.scores[row]
    boxes = np.array([key[1:] for key in vectors], dtype=float).reshape(-1, 4)
    return boxes, np.array(list(vectors.values())).reshape(len(vectors), num_classes)


def score_bins(scores: np.ndarray, num_bins: int) -> np.ndarray:
    """(n,) scores in [0, 1] to the (n,) equal-width bin of each, as `BinnedReport` has them."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    edges = np.arange(num_bins + 1) / num_bins
    return np.minimum(np.searchsorted(edges, scores, side="right") - 1, num_bins - 1)


def _binned(kept: Matches, num_bins: int) -> dict[str, Any]:
    """The fields of `BinnedReport`."""
    counts = {"num_detections": len(kept), "num_ignored": len(kept.ignored_scores)}
    return {**counts, "num_bins": num_bins, **kept.settings}


def reliability_figure(reports: Mapping[str, CalibrationReport], d_ece: bool = True) -> "Figure":
    """Reliability diagrams of named reports, from left to right, as in Figs. 2, 8 and 9 of the D-RMM paper.

    Each column shows, over the confidence, the precision of the detections of each bin (bar), how far it is from
    their mean confidence (hatched), and the number of detections on a logarithmic axis. The title has the name,
    the ECE and its settings, and before it, if the report has all detections in its bins, D-ECE and their number;
    with `d_ece=False` never, since a part of the score cuts other detections off.
    """
    figure: Figure = require("matplotlib.figure", "plots").Figure((1.0 + 3.0 * len(reports), 5.2), layout="constrained")
    axes = figure.subplots(2, len(reports), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (name, report), (top, bottom) in zip(reports.items(), axes.T, strict=True):
        edges = np.array(report.bin_edges)
        place: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
        precision = np.array(report.bin_accuracies)
        top.bar(height=precision, color=BAR, edgecolor="white", label="precision", **place)
        gap = np.array(report.bin_confidences) - precision
        for label, color, wrong in (("too confident", OVER, gap > 0), ("not confident enough", UNDER, gap < 0)):
            # nan draws nothing, and leaves the legend its patch
            height, style = np.where(wrong, gap, np.nan), {"facecolor": "none", "linewidth": 0.6, "hatch": "////"}
            top.bar(height=height, bottom=precision, edgecolor=color, label=label, **style, **place)
        top.plot((0, 1), (0, 1), "--", color=INK, linewidth=1, label="perfectly calibrated")
        top.set(xlim=(0, 1), ylim=(0, 1))
        title = f"ECE {report.ece:.3f}"
        shown = np.array(report.bin_counts[3:])  # from 0.3 on, where there are ten bins: those of D-ECE
        if d_ece and (report.iou_threshold, report.score_threshold, report.num_bins) == (0.5, 0.0, 10) and shown.any():
            error = np.nansum(shown * abs(gap[3:])) / shown.sum()
            title = f"D-ECE {error:.3f} of {shown.sum():,}, {title}"
        top.set_title(f"{name}\n{title}", fontsize=11, color=INK, pad=28)
        settings = report.settings.replace(", score", ",\nscore").replace(">=", "≥")
        top.text(0.5, 1.02, settings, fontsize=8, color=FAINT, transform=top.transAxes, ha="center", va="bottom")
        bottom.bar(height=report.bin_counts, color=COUNT, edgecolor="white", **place)
        # linear below 1, so that a bin of one detection has a height and an empty one has none
        bottom.set_yscale("symlog", linthresh=1)
        bottom.set_ylim(bottom=0)
        bottom.yaxis.set_major_formatter("{x:,.0f}")
        # short numbers, since the last of one column stands next to the first of the next
        bottom.xaxis.set_major_formatter("{x:g}")
        bottom.set_xlabel("confidence (score)", color=INK)
        for one in (top, bottom):
            one.spines[["top", "right"]].set_visible(False)
            one.spines[["left", "bottom"]].set_color(FAINT)
            one.tick_params(colors=INK, labelsize=8, length=3)
            one.grid(axis="y", color=GRID, linewidth=0.8)
            one.set_axisbelow(True)
    axes[0, 0].set_ylabel("precision (fraction right)", color=INK)
    axes[1, 0].set_ylabel("detections", color=INK)
    legend: dict[str, Any] = {"fontsize": 8.5, "frameon": False, "labelcolor": INK, "ncols": min(4, 2 * len(reports))}
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", **legend)
    return figure


def save_reliability_diagram(path: str | PathLike[str], reports: Mapping[str, CalibrationReport]) -> "Figure":
    """Draw `reliability_figure`, save it and return it; the ending of `path` chooses PNG, SVG or PDF.

    An ImportError names the extra where matplotlib is missing.
    """
    figure = reliability_figure(reports)
    figure.savefig(path, dpi=160, facecolor="white")
    return figure
