"""Small charts as inline SVG: sharp at every size, a few kilobytes each, and in the colours of the page.

Text and lines take their colours from the classes of the page's style sheet (`html_page`), so that a chart follows
light, dark and print. Every text from outside is escaped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH = 360
# Distinct for most colour-blind readers, and of like weight on white and on near-black (after Paul Tol).
SERIES = ("#4477aa", "#cc6677", "#3a9a5b", "#b8862b", "#8a63b5", "#2fa3b5")


@dataclass(frozen=True)
class Line:
    """One line of `line_chart`: (x, y) points in order, and whether it is dashed; `series` chooses its colour."""

    points: Sequence[tuple[float, float]]
    series: int
    dashed: bool = False


def series_color(index: int) -> str:
    """Colour of a checkpoint, the same in every chart."""
    return SERIES[index % len(SERIES)]


def reliability_chart(report: Mapping[str, Any], name: str, series: int) -> str:
    """Precision over confidence with the gap to the diagonal, and the number of detections of each bin below.

    Args:
        report: `CalibrationReport.to_dict()`.
        name: whose it is, for a reader who hears the page.
        series: colour of the bars.
    """
    left, top, side, gap, low = 44.0, 8.0, 300.0, 14.0, 64.0
    edges = report["bin_edges"]
    counts = report["bin_counts"]
    bottom, floor = top + side, top + side + gap + low
    highest = math.log10(1 + max(max(counts), 1))
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - value * side
        parts.append(_grid(left, y, left + side, y) + _text(left - 6, y + 4, f"{value:g}", "end"))
        parts.append(_text(left + value * side, floor + 15, f"{value:g}", "middle"))
    color = series_color(series)
    rows = zip(edges[:-1], edges[1:], counts, report["bin_confidences"], report["bin_accuracies"], strict=True)
    for start, end, count, confidence, precision in rows:
        if not count:
            continue
        x, width = left + start * side + 1, (end - start) * side - 2
        tip = (
            f"score {start:.2g} to {end:.2g}: {count:,} detections, mean score {confidence:.3f}, "
            f"precision {precision:.3f}"
        )
        height = math.log10(1 + count) / highest * low
        y, mean = bottom - precision * side, bottom - confidence * side
        gap_class = "over" if confidence > precision else "under"
        parts.append(
            f"<g><title>{escape(tip)}</title>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{bottom - y:.1f}" fill="{color}" '
            'fill-opacity=".75"/>'
            f'<rect class="{gap_class}" x="{x:.1f}" y="{min(y, mean):.1f}" width="{width:.1f}" '
            f'height="{abs(y - mean):.1f}"/>'
            f'<rect class="count" x="{x:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}"/></g>'
        )
    parts.append(
        f'<line class="ideal" x1="{left}" y1="{bottom}" x2="{left + side}" y2="{top}"/>'
        + _axis(left, bottom, left + side, bottom)
        + _axis(left, floor, left + side, floor)
        + _upright(12, top + side / 2, "precision")
        + _text(left - 6, floor - low + 8, f"{max(counts):,}" if max(counts) else "", "end")
        + _text(left - 6, floor + 1, "0", "end")
        + _text(left + side / 2, floor + 31, "confidence (score); bars below: detections, log scale", "middle")
    )
    return _svg(floor + 38, f"Reliability diagram of {name}", parts)


def line_chart(
    lines: Sequence[Line],
    ticks: Mapping[float, str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    from_zero: bool = True,
    diagonal: bool = False,
) -> str:
    """Lines over the positions of `ticks`; an empty frame where there is nothing to draw.

    Args:
        lines: what to draw; points that are nan are left out.
        ticks: position -> its text on the x axis, in order.
        title: for a reader who hears the page.
        x_label, y_label: of the axes.
        from_zero: whether the y axis has to show 0.
        diagonal: draw y = x, where a perfect line would be.
    """
    right, top, bottom = 350.0, 10.0, 200.0
    known = [[point for point in line.points if math.isfinite(point[1])] for line in lines]
    values = [y for points in known for _, y in points] or [0.0, 1.0]
    values += [0.0] if from_zero else []
    values += list(ticks) if diagonal else []
    scale = nice_ticks(min(values), max(values))
    digits = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9))
    numbers = [f"{value:.{digits}f}".replace("-", "\u2212") for value in scale]
    # room for the label of the axis beside the longest number, of about 6.5 a character
    left = max(50.0, 24 + 6.5 * max(map(len, numbers)))
    first, last = min(ticks), max(ticks)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / ((last - first) or 1.0)
        return left + 8 + across * (right - left - 16), bottom - (y - scale[0]) / (scale[-1] - scale[0]) * (
            bottom - top
        )

    parts = []
    for value, number in zip(scale, numbers, strict=True):
        y = place(first, value)[1]
        draw = _axis if abs(value) < 1e-12 else _grid
        parts.append(draw(left, y, right, y) + _text(left - 6, y + 4, number, "end"))
    parts += [_text(place(x, scale[0])[0], bottom + 16, text, "middle") for x, text in ticks.items()]
    if diagonal:
        (x1, y1), (x2, y2) = place(first, first), place(last, last)
        parts.append(f'<line class="ideal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for line, points in zip(lines, known, strict=True):
        color = series_color(line.series)
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        fill = "var(--page)" if line.dashed else color
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{fill}" stroke="{color}" stroke-width="1.5">'
            f"<title>{point[1]:.4g}</title></circle>"
            for (x, y), point in zip(placed, points, strict=True)
        ]
    parts.append(_text((left + right) / 2, bottom + 33, x_label, "middle"))
    parts.append(_upright(11, (top + bottom) / 2, y_label))
    return _svg(bottom + 40, title, parts)


def bar_chart(rows: Mapping[str, Sequence[float | None]], *, title: str) -> str:
    """Horizontal bars from 0 to 1, one for each checkpoint in each row; no bar for a number that does not exist."""
    thick, gap, top, left, right = 9.0, 9.0, 4.0, 100.0, 322.0
    height = sum(len(values) * thick + gap for values in rows.values())
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * (right - left)
        parts.append(_grid(x, top, x, top + height) + _text(x, top + height + 14, f"{tick:g}", "middle"))
    y = top + gap / 2
    for name, values in rows.items():
        short = name if len(name) <= 15 else name[:14] + "…"
        middle = y + len(values) * thick / 2
        parts.append(f"<g><title>{escape(name)}</title>{_text(left - 7, middle + 4, short, 'end')}</g>")
        for index, value in enumerate(values):
            if value is not None:
                width = max(0.0, min(1.0, value)) * (right - left)
                color = series_color(index)
                parts.append(
                    f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{thick - 1.5}" fill="{color}" rx="1">'
                    f"<title>{value:.3f}</title></rect>"
                )
            y += thick
        y += gap
    return _svg(top + height + 20, title, parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]; their distance is 1, 2 or 5 times a power of ten."""
    span = high - low
    if span < 1e-9:
        high, span = low + 0.01, 0.01
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, stop + 1)]


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _upright(x: float, y: float, text: str) -> str:
    turned = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {turned}>{escape(text)}</text>'


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _axis(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
