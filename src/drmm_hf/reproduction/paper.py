"""The numbers of the paper (arXiv 2205.08714, ICML version) on COCO val2017: table -> row -> column -> value.

AP, AR and shares are fractions of 1. Rows and columns have the names of `tables.py`.
"""

from collections.abc import Mapping, Sequence

from .measurements import NMS_BEST, NMS_IOU, NMS_NONE

Numbers = dict[str, dict[str, float]]


def _rows(columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> Numbers:
    return {row: dict(zip(columns, values, strict=True)) for row, values in rows.items()}


_PROPOSALS = (100, 300, 500, 1000)
# AP and AP50 for each number of proposals
_TABLE8 = {
    "β 0.4": (0.439, 0.618, 0.468, 0.642, 0.471, 0.645, 0.475, 0.647),
    "β 0.5": (0.439, 0.619, 0.470, 0.648, 0.471, 0.647, 0.477, 0.650),
    "β 0.6": (0.439, 0.618, 0.468, 0.648, 0.473, 0.652, 0.477, 0.652),
    "β 0.7": (0.435, 0.616, 0.467, 0.647, 0.472, 0.651, 0.476, 0.654),
}
_TABLE9 = {
    "stage 1 of 6": (17.904, 0.804, 17.607, 0.759),
    "stage 2 of 6": (16.185, 0.794, 15.961, 0.685),
    "stage 3 of 6": (15.715, 0.828, 15.576, 0.636),
    "stage 4 of 6": (15.528, 0.874, 15.449, 0.609),
    "stage 5 of 6": (15.434, 0.895, 15.398, 0.596),
    "stage 6 of 6": (15.391, 0.892, 15.374, 0.590),
    "last stage": (15.391, 0.892, 15.374, 0.590),
}

PAPER: dict[str, Numbers] = {
    "table2": _rows(
        ("AP",),
        {
            "set_prediction": (0.450,),
            "nll_bipartite": (0.463,),
            "nll": (0.356,),
            "nll_mcm_bipartite": (0.469,),
            "nll_mcm": (0.470,),
        },
    ),
    "table3": _rows(
        ("AP", "AR100"),
        {
            "nll": (0.356, 0.651),
            "nll + NMS": (0.427, 0.650),
            "nll + WTA": (0.458, 0.650),
            "nll_max": (0.457, 0.637),
            "nll_mcm": (0.470, 0.653),
        },
    ),
    "table7": _rows(
        ("AP", "AP50", "AP75"),
        {
            "F (D-RMM)": (0.470, 0.648, 0.516),
            "none": (0.468, 0.647, 0.513),
            "F and P": (0.467, 0.645, 0.513),
        },
    ),
    "table8": _rows([f"{name} K {number}" for number in _PROPOSALS for name in ("AP", "AP50")], _TABLE8),
    "table9": _rows(
        ("NLL with MCM", "exp(-MCM) with MCM", "NLL without MCM", "exp(-MCM) without MCM"),
        _TABLE9,
    ),
    "table10": _rows(
        ("AP", f"AP with NMS {NMS_IOU:g}"),
        {
            "1 copy": (0.450, 0.452),
            "2 copies": (0.285, 0.461),
            "3 copies": (0.211, 0.456),
            "4 copies": (0.174, 0.453),
            "nll_mcm": (0.470, 0.472),
        },
    ),
    "table11": _rows(
        ("AP", "parameters (M)", "training memory (GB)", "multiply-adds (G)"),
        {
            "sparse-rcnn default": (0.450, 106.1, 7, 165.5),
            "sparse-rcnn with groups": (0.459, 107.0, 21, 165.5),
            "sparse-rcnn nll_mcm": (0.470, 106.1, 7, 165.5),
            "adamixer default": (0.466, 134.6, 9, 124.6),
            "adamixer with groups": (0.474, 135.5, 35, 124.6),
            "adamixer nll_mcm": (0.484, 134.6, 9, 124.6),
        },
    ),
    # without NMS Table 2, the best of the figure Tables 3 and 10
    "fig7": _rows(
        ("set_prediction", "nll", "nll_mcm"),
        {NMS_NONE: (0.450, 0.356, 0.470), NMS_BEST: (0.452, 0.427, 0.472)},
    ),
    # the figure's values at ratio 1 are Table 8's
    "fig11": _rows(("AP K 300", "AP K 500", "AP K 1000"), {"ratio 1": (0.470, 0.471, 0.477)}),
    "fig2": _rows(("AP",), {"set_prediction": (0.450,), "nll_mcm": (0.470,)}),
    "fig8": _rows(
        ("AP",),
        {"nll": (0.356,), "nll + NMS": (0.427,), "nll + WTA": (0.458,), "nll_mcm": (0.470,)},
    ),
}
