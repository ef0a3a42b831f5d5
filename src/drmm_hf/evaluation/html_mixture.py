"""The sections of the HTML report on the mixture: duplicates, likelihood of the stages, uncertainty of the boxes."""

from collections.abc import Mapping
from html import escape
from typing import Any

from .html_page import Better, Cell, Column, Row, figure, legend, table
from .html_shared import Checkpoints, compared, findings_of, key_of, notes_of, pretty, signed
from .svg_charts import Line, line_chart


def duplicates_section(models: Checkpoints) -> str:
    """Duplicates, and what suppressing them changes."""
    names = [str(model["name"]) for model in models]
    counts = [model["duplicates"]["counts"] for model in models]
    levels = [entry["score_threshold"] for entry in counts[0]]
    rows = [
        Row(f"score ≥ {level:g}", [(of_model[place]["per_image"], ".3f") for of_model in counts], better="low")
        for place, level in enumerate(levels)
    ]
    floor = line_chart(
        [
            Line([(place, entry["per_image"]) for place, entry in enumerate(of_model)], index)
            for index, of_model in enumerate(counts)
        ],
        {place: f"{level:g}" for place, level in enumerate(levels)},
        title="Duplicates an image over the score threshold",
        x_label="detections with at least this score",
        y_label="duplicates an image",
    )
    overlaps = [key for key in models[0]["duplicates"]["nms"] if key != "none"]
    lines = [
        Line(
            [
                (place, gain)
                for place, overlap in enumerate(overlaps)
                if (gain := _gain(model, part, overlap)) is not None
            ],
            index,
            part == "winner_takes_all",
        )
        for index, model in enumerate(models)
        for part in ("nms", "winner_takes_all")
    ]
    gains = line_chart(
        lines,
        dict(enumerate(overlaps)),
        title="Change of AP by non-maximum suppression",
        x_label="IoU above which a detection is removed",
        y_label="change of AP",
    )
    columns = [
        Column(title, name, title, "high", index)
        for index, name in enumerate(names)
        for title in ("AP, NMS", "AP, winner takes all")
    ]
    sweep = []
    for overlap in models[0]["duplicates"]["nms"]:
        cells: list[Cell] = []
        for model in models:
            part = model["duplicates"]
            merged = part["winner_takes_all"].get(overlap)
            cells += [(part["nms"][overlap]["AP"], ".3f"), (merged["AP"] if merged else None, ".3f")]
        sweep.append(Row("no suppression" if overlap == "none" else f"IoU > {overlap}", cells))
    dashed = "<span>solid: NMS; dashed: winner takes all</span>"
    return (
        "<p>How often one object is found more than once, and what removing the repeats would change. A gain of AP "
        "from non-maximum suppression (NMS) means that duplicates cost accuracy: apply it, or train longer. No gain, "
        "or a loss, means that the detector needs none. Winner takes all adds the scores of the removed to the one "
        "that stays.</p>"
        + findings_of(_duplicates_finding(model) for model in models)
        + legend(names, dashed)
        + f'<div class="figures">{figure(floor, "Duplicates an image")}{figure(gains, "Change of AP")}</div>'
        + compared(models, rows, "duplicates an image")
        + f'<p class="note">{escape(models[0]["duplicates"]["settings"])}</p>'
        + table(columns, sweep, "suppression")
    )


def likelihood_section(models: Checkpoints) -> str:
    """NLL and share of the best component of each stage."""
    text = (
        "<p>How well the mixture that each decoder stage predicts explains the objects. NLL should fall from stage to "
        "stage; a last stage no better than the one before adds nothing. The share of the best component is 1 where "
        "one proposal explains an object alone, which is what keeps duplicates away.</p>"
    )
    parts = [model["likelihood"] for model in models]
    notes = notes_of(models, [pretty(part.get("settings") or part["note"]) for part in parts])
    stages = max(len(part["stages"]) for part in parts)
    if not stages:
        return text + notes
    titles: tuple[tuple[str, str, Better], ...] = (
        ("nll", "NLL", "low"),
        ("mcm", "MCM", "low"),
        ("max_share", "best share", "high"),
    )
    columns = [
        Column(title, str(model["name"]), title, better, index)
        for index, model in enumerate(models)
        for _, title, better in titles
    ]
    rows = []
    for stage in range(stages):
        cells: list[Cell] = []
        for part in parts:
            entry = part["stages"][stage] if stage < len(part["stages"]) else {}
            cells += [(entry.get(key), ".3f") for key, _, _ in titles]
        rows.append(Row(f"stage {stage + 1}", cells))
    ticks = {float(stage): str(stage) for stage in range(1, stages + 1)}
    charts = ""
    for key, caption in (("nll", "NLL of an object"), ("max_share", "Share of the best component")):
        lines = [
            Line([(n, entry[key]) for n, entry in enumerate(part["stages"], 1) if entry[key] is not None], index)
            for index, part in enumerate(parts)
        ]
        chart = line_chart(lines, ticks, title=caption, x_label="stage", y_label=caption, from_zero=key != "nll")
        charts += figure(chart, caption)
    return text + key_of(models) + f'<div class="figures">{charts}</div>' + table(columns, rows, "stage") + notes


def uncertainty_section(models: Checkpoints) -> str:
    """Coverage of the intervals of the edges."""
    text = (
        "<p>The predicted scale γ of each edge gives an interval for it. Intervals of 80% should hold 80% of the true "
        "edges: more means that they are too wide, less that they are too sure of themselves. The factor corrects γ; "
        "the coverage after it is measured on images that it was not fitted on.</p>"
    )
    parts = [model["uncertainty"] for model in models]
    settings = notes_of(models, [pretty(part["settings"] or part["note"]) for part in parts])
    known = next((part for part in parts if part["levels"]), None)
    if known is None:
        return text + settings
    titles = ("coverage", "after factor", "median width, px")
    columns = [
        Column(title, str(model["name"]), series=index) for index, model in enumerate(models) for title in titles
    ]
    rows = []
    for place, level in enumerate(known["levels"]):
        cells: list[Cell] = []
        for part in parts:
            for key, form in (("coverage", ".3f"), ("coverage_after", ".3f"), ("median_width", ".1f")):
                cells.append((part[key][place] if part[key] else None, form))
        rows.append(Row(f"{level:.0%} intervals", cells))
    ordered = [
        Row("factor on γ", [(part["factor"], ".3f") for part in parts], "below 1: the intervals are too wide"),
        Row(
            "rank correlation of γ and error",
            [(part["rank_correlation"], ".3f") for part in parts],
            "1: γ tells which edges are wrong; 0: it does not",
            "high",
        ),
        Row(
            "the same, relative to the size of the box",
            [(part["relative_rank_correlation"], ".3f") for part in parts],
            "large boxes have large errors anyway; this is what is left",
            "high",
        ),
        Row(
            "share of the edges at the floor of γ",
            [(part["floor_share"], ".3f") for part in parts],
            "their intervals only say how large the box is",
        ),
        Row("true positives", [(part["detections"], ",.0f") for part in parts]),
    ]
    coverage = line_chart(
        [
            Line([(x, y) for x, y in zip(part["levels"], part["coverage"], strict=True) if y is not None], index)
            for index, part in enumerate(parts)
        ],
        {level: f"{level:.0%}" for level in known["levels"]},
        title="Coverage of the intervals",
        x_label="asked for (the dashed line is where it should be)",
        y_label="edges inside",
        diagonal=True,
    )
    errors = line_chart(
        [
            Line([(n, y) for n, y in enumerate(part["quintile_errors"], 1) if y is not None], index)
            for index, part in enumerate(parts)
        ],
        {n: str(n) for n in range(1, 6)},
        title="Error of the edges over their predicted scale",
        x_label="fifths of the edges, from small γ to large",
        y_label="mean error, px",
    )
    return (
        text
        + key_of(models)
        + f'<div class="figures">{figure(coverage, "Coverage")}{figure(errors, "Error over predicted scale")}</div>'
        + table(columns, rows)
        + compared(models, ordered)
        + settings
    )


def _duplicates_finding(model: Mapping[str, Any]) -> str:
    overlaps = [key for key in model["duplicates"]["nms"] if key != "none"]
    known = {key: gain for key in overlaps if (gain := _gain(model, "nms", key)) is not None}
    if not known:
        return ""
    best = max(known, key=lambda key: known[key])
    change = signed(known[best], 3)
    if known[best] < 0.002:
        return f"{model['name']}: NMS brings no AP (at best {change}, at IoU {best}); none is needed."
    return f"{model['name']}: NMS at IoU {best} changes AP by {change}: that is what duplicates cost."


def _gain(model: Mapping[str, Any], part: str, overlap: str) -> float | None:
    before, after = model["duplicates"]["nms"]["none"]["AP"], model["duplicates"][part][overlap]["AP"]
    return None if before is None or after is None else after - before
