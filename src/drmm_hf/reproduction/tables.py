"""The paper's tables and figures: which settings each compares, and what the paper has."""

from functools import partial

from . import measurements
from .cells import Cell, Table
from .figures import draw_lines, draw_reliability
from .measurements import part_reports
from .paper import PAPER

# The cells that many tables share. The head and losses of Sparse R-CNN and AdaMixer, and the paper's objectives:
SET_PREDICTION = Cell("set_prediction", "set_prediction", baseline=True)
NLL_BIPARTITE = Cell("nll_bipartite", "nll_bipartite", {"objective": "nll_bipartite"})
NLL = Cell("nll", "nll", {"objective": "nll"})
NLL_MAX = Cell("nll_max", "nll_max", {"objective": "nll_max"})
NLL_MCM_BIPARTITE = Cell("nll_mcm_bipartite", "nll_mcm_bipartite", {"objective": "nll_mcm_bipartite"})
NLL_MCM = Cell("nll_mcm", "nll_mcm", {"objective": "nll_mcm"})

_OBJECTIVES = (
    "set_prediction is the baseline (focal, L1 and GIoU of matched boxes), nll_bipartite the likelihood of matched "
    "components, nll the likelihood of the mixture, nll_mcm_bipartite with MCM of the matched component, nll_mcm D-RMM."
)
_NMS = f"NMS and winner takes all (WTA) at IoU {measurements.NMS_IOU:g}; the paper does not say its threshold."
_DUPLICATES = "Duplicates: detections an image of score 0.1 or more on an object that a higher-scored one has already."
_ECE = "ECE: IoU 0.5, 10 bins, all detections (at most 100 an image and class)."
_D_ECE = "D-ECE: the same for detections of score 0.3 or more."
_BETA = "The drmm-sparse-rcnn-tiny preset has β = 1, twice the paper's."

_OTHER_STOPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("none", ()),
    ("F and P", ("location", "class")),
    ("π", ("mixing",)),
    ("π and F", ("mixing", "location")),
)
_BETAS = {"coco": (0.4, 0.5, 0.6, 0.7), "small": (0.25, 0.5, 1.0, 2.0)}
_PROPOSALS = {"coco": (100, 300, 500, 1000), "small": (32, 64, 128)}
_TOP_K = {"coco": ((300, 500, 1000, 2000), (1.0, 0.9, 0.8, 0.7)), "small": ((64, 128), (1.0, 0.9, 0.7, 0.5))}
_GROUPS = {"coco": 12, "small": 4}


def _stops(scale: str) -> tuple[Cell, ...]:
    cells = [Cell("nll_mcm", "F (D-RMM)", NLL_MCM.config)]
    for label, names in _OTHER_STOPS:
        config = {"objective": "nll_mcm", "stop_gradient": list(names)}
        cells.append(Cell("-".join(("stop", *(names or ("none",)))), label, config))
    return tuple(cells)


def _weights(scale: str) -> tuple[Cell, ...]:
    return tuple(
        Cell(f"beta{beta:g}-k{number}", f"β {beta:g} | K {number}", {"mcm_weight": beta, "num_proposals": number})
        for number in _PROPOSALS[scale]
        for beta in _BETAS[scale]
    )


def _ratios(scale: str) -> tuple[Cell, ...]:
    numbers, ratios = _TOP_K[scale]
    return tuple(
        Cell(
            f"top{ratio:g}-k{number}",
            f"ratio {ratio:g} | K {number}",
            # None keeps all, as the cells of Table 8 do, which then are the same trainings
            {"top_k_ratio": None if ratio == 1 else ratio, "num_proposals": number},
        )
        for number in numbers
        for ratio in ratios
    )


def _copies(scale: str) -> tuple[Cell, ...]:
    more = [
        Cell(f"set_prediction-copies{n}", f"{n} copies", {"num_target_copies": n}, baseline=True) for n in (2, 3, 4)
    ]
    return (Cell("set_prediction", "1 copy", baseline=True), *more, Cell("nll_mcm", "nll_mcm", NLL_MCM.config))


def _groups(scale: str) -> tuple[Cell, ...]:
    groups = _GROUPS[scale]
    cells = []
    for decoder in ("sparse-rcnn", "adamixer"):
        for name, label, config in (
            ("set_prediction", "default", {}),
            (f"set_prediction-groups{groups}", "with groups", {"num_query_groups": groups}),
        ):
            cells.append(Cell(f"{decoder}-{name}", f"{decoder} {label}", config, baseline=True, decoder=decoder))
        cells.append(Cell(f"{decoder}-nll_mcm", f"{decoder} nll_mcm", NLL_MCM.config, decoder=decoder))
    return tuple(cells)


def _anchors(scale: str) -> tuple[Cell, ...]:
    # the recipes for COCO leave out the images without boxes, of which an anchor learns
    training = {"skip_empty_images": False} if scale == "coco" else {}
    none = Cell("nll_mcm" if scale == "small" else "anchor-none", "none (D-RMM)", NLL_MCM.config, training)
    others = (
        Cell(f"anchor-{kind}", kind, {"objective": "nll_mcm", "objectness_anchor": kind}, training)
        for kind in ("poisson", "bernoulli")
    )
    return (none, *others)


def _fixed(*cells: Cell):
    return lambda scale: cells


_ALL = (
    Table(
        "table2",
        "objectives",
        "Table 2",
        _fixed(SET_PREDICTION, NLL_BIPARTITE, NLL, NLL_MCM_BIPARTITE, NLL_MCM),
        measurements.objectives,
        PAPER["table2"],
        (_OBJECTIVES, _DUPLICATES, _ECE, _BETA),
    ),
    Table(
        "table3",
        "merging duplicates by hand against MCM",
        "Table 3",
        _fixed(NLL, NLL_MAX, NLL_MCM),
        measurements.merging,
        PAPER["table3"],
        (_NMS, "nll_max is the likelihood of the largest component alone.", _ECE, _BETA),
    ),
    Table(
        "table7",
        "where MCM's gradient stops",
        "Table 7",
        _stops,
        measurements.accuracy,
        PAPER["table7"],
        ("π mixing coefficients, F density of the box, P class probability; the rows with π are not in the paper.",),
    ),
    Table(
        "table8",
        "weight of MCM and number of proposals",
        "Table 8",
        _weights,
        measurements.grid,
        PAPER["table8"],
    ),
    Table(
        "table9",
        "likelihood with and without MCM",
        "Tables 4 and 9",
        _fixed(Cell("nll_mcm", "with MCM", NLL_MCM.config), Cell("nll", "without MCM", NLL.config)),
        measurements.likelihood,
        PAPER["table9"],
        (
            "Per object of the evaluation split. NLL is a log density over boxes in pixels of the network input: it "
            "compares models of one input size, not with the paper's.",
        ),
    ),
    Table(
        "table10",
        "copies of the ground truths for the baseline",
        "Table 10",
        _copies,
        measurements.copies,
        PAPER["table10"],
        (_NMS,),
    ),
    Table(
        "table11",
        "query groups for the baselines",
        "Table 11",
        _groups,
        measurements.cost,
        PAPER["table11"],
        (
            f"With groups: {_GROUPS['coco']} groups of queries at COCO scale, as the paper, {_GROUPS['small']} at "
            "small scale. Parameters are those trained, the queries of all groups among them.",
            "Training memory of two images in float32 with AdamW: the peak on a GPU; without one what is kept for the "
            "backward pass, weights, gradients and AdamW's moments.",
        ),
    ),
    Table(
        "fig7",
        "AP over the threshold of NMS",
        "Fig. 7",
        _fixed(SET_PREDICTION, NLL, NLL_MCM),
        measurements.nms_thresholds,
        PAPER["fig7"],
        ("The paper's best values stand in its Tables 3 and 10; those of the figure cannot be read off exactly.",),
        draw_lines,
    ),
    Table(
        "fig11",
        "share of the proposals that every stage keeps",
        "Fig. 11",
        _ratios,
        measurements.grid,
        PAPER["fig11"],
        ("The paper's values at ratio 1 stand in its Table 8; those of the figure cannot be read off exactly.",),
        draw_lines,
    ),
    Table(
        "fig2",
        "confidence against precision",
        "Fig. 2",
        _fixed(SET_PREDICTION, NLL_MCM),
        measurements.reliability,
        PAPER["fig2"],
        (_ECE, _D_ECE, "The paper also shows DETR and Deformable DETR, which are other models."),
        draw_reliability,
    ),
    Table(
        "fig8",
        "confidence against precision, by the way duplicates are removed",
        "Fig. 8",
        _fixed(NLL, NLL_MCM),
        measurements.reliability,
        PAPER["fig8"],
        (_NMS, _ECE, _D_ECE),
        draw_reliability,
    ),
    Table(
        "fig9",
        "calibration of class probability, objectness and their product",
        "Fig. 9",
        _fixed(NLL_MCM),
        measurements.parts,
        notes=("p class probability, o objectness, p·o confidence: the same detections, ranked by p·o.", _ECE),
        draw=partial(draw_reliability, reports_of=part_reports),
    ),
    Table(
        "recalibration",
        "calibration errors, as they are and after a fit",
        "not in the paper",
        _fixed(SET_PREDICTION, NLL, NLL_MCM),
        measurements.recalibration,
        notes=(
            "Isotonic regression and temperature are fitted on one half of the validation images and measured on the "
            "other, both ways, and averaged; so are the errors without a fit.",
            _ECE,
            _D_ECE,
        ),
    ),
    Table(
        "duplicates",
        "duplicates an image over the lowest score that counts",
        "not in the paper",
        _fixed(SET_PREDICTION, NLL, NLL_MCM),
        measurements.duplicates,
        notes=(
            "Duplicates: detections on an object that a higher-scored one has already, at IoU 0.5, any score floor.",
        ),
        draw=partial(draw_lines, unit="duplicates an image"),
    ),
    Table(
        "ranking",
        "AP if the order of the detections were right",
        "not in the paper",
        _fixed(SET_PREDICTION, NLL, NLL_MCM),
        measurements.ranking,
        notes=(
            "The ground truth corrects the order, boxes and classes stay. Without duplicates: without the detections "
            "of an object that was given to another. True positives first: those of IoU 0.5 before every other "
            "detection. And by IoU: true positives in the order of their IoU instead of that of their scores.",
        ),
    ),
    Table(
        "anchor",
        "terms that tie the level of the objectness to the number of objects",
        "not in the paper",
        _anchors,
        measurements.anchors,
        notes=(
            "False positives: detections of at least this score per validation image without objects; a data set "
            "without such images has no number there.",
            "OCE: mean over IoU 0.5 and 0.75, score 0.3 or more, at most 100 detections an image and class.",
            _ECE,
            _D_ECE,
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}
