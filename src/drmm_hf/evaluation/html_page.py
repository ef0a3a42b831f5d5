"""The pieces that the HTML report is made of: the page with its style sheet, tables, figures, pictures."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypeAlias

from PIL import Image

from .svg_charts import series_color

DASH = "–"
Better: TypeAlias = Literal["high", "low"] | None

STYLE = """
:root { --page: #fdfdfb; --ink: #26292d; --soft: #676d75; --line: #e2e3df; --band: #f4f4f0; --best: #1f5f8b;
  --warn: #c0504d; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #1b1d20; --ink: #dcdedf; --soft: #9aa0a7; --line: #34383d; --band: #24272b; --best: #8fc1e8;
    --warn: #e08b86; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; font-weight: 600; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; font-weight: 600; margin: 3rem 0 .4rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.8rem 0 .3rem; overflow-wrap: anywhere; }
p { max-width: 44rem; margin: .4rem 0 .8rem; }
a { color: var(--best); }
.soft, .note, figcaption { color: var(--soft); font-size: .875rem; }
.soft, .note { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.2rem 0; font-size: .92rem; }
nav a { text-decoration: none; }
.finding { border-left: 3px solid var(--best); background: var(--band); padding: .5rem .85rem; max-width: 44rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1.1rem; min-width: 0; }
.card h3 { margin: 0 0 .5rem; }
.card dl { display: grid; grid-template-columns: 1fr auto; gap: .15rem 1rem; margin: 0; }
.card dt { color: var(--soft); } .card dd { margin: 0; text-align: right; }
.card p { margin: .6rem 0 0; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .45em; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .875rem; color: var(--soft);
  margin: .8rem 0 .2rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
td, th, dd { font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
thead tr:last-child th { border-bottom: 1px solid var(--soft); }
thead th.group { text-align: center; color: var(--ink); font-weight: 600; border-left: 1px solid var(--line); }
td.first { border-left: 1px solid var(--line); }
th:first-child { text-align: left; font-weight: 500; white-space: normal; min-width: 7rem; max-width: 24rem;
  position: sticky; left: 0; background: var(--page); overflow-wrap: anywhere; padding-left: 0; }
tbody th small { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; line-height: 1.35; }
td.best { color: var(--best); font-weight: 650; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.4rem;
  margin: .8rem 0; }
figure { margin: 0; min-width: 0; max-width: 32rem; break-inside: avoid; }
figcaption { margin: 0 0 .3rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .ideal { stroke: var(--ink); stroke-dasharray: 4 4; }
svg .over { fill: none; stroke: var(--warn); stroke-width: 1.5; }
svg .under { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg .count { fill: var(--soft); fill-opacity: .55; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .8rem;
  margin: .5rem 0 1.6rem; }
.pictures figure { max-width: 36rem; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; }
@media (max-width: 40rem) {
  main { padding: 1.2rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  th, td { padding: .34rem .4rem; }
  thead th { max-width: 7rem; white-space: normal; }
  th:first-child { max-width: 12.5rem; } }
@media print {
  :root { --page: #fff; }
  body { font-size: 10.5pt; background: #fff; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; } tr, .card, .pictures { break-inside: avoid; }
  th, td { padding: .2rem .45rem; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
""".strip()


@dataclass(frozen=True)
class Column:
    """A column of `table`.

    Attributes:
        title: its heading.
        group: heading above it, shared with the columns beside it; "" for none.
        compare: columns with the same text are compared in each row; "" compares with none.
        better: which of the compared is the best; a `Row` may say otherwise.
        series: index of the checkpoint whose colour the heading shows, or None.
    """

    title: str
    group: str = ""
    compare: str = ""
    better: Better = None
    series: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of `table`: its heading, a note in small print, a cell for each column, and what is best in it.

    A cell is text, or a number and its format such as ".3f"; None and nan show as a dash.
    """

    title: str
    cells: Sequence["Cell"]
    note: str = ""
    better: Better = None


Cell: TypeAlias = str | tuple[float | None, str] | None


def page(title: str, body: str) -> str:
    """A whole HTML document that needs no other file; `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def table(columns: Sequence[Column], rows: Sequence[Row], corner: str = "") -> str:
    """A table with a heading for each row and column; the best of what is compared is emphasised."""
    first = [index == 0 or column.group != columns[index - 1].group for index, column in enumerate(columns)]
    head = ""
    if any(column.group for column in columns):
        head += "<tr><th></th>"
        for index, column in enumerate(columns):
            if first[index]:
                following = (place for place in range(index + 1, len(columns)) if first[place])
                span = next(following, len(columns)) - index
                style = ' class="group"' if column.group else ""
                head += f'<th{style} colspan="{span}">{swatch(column.series if column.group else None)}'
                head += f"{escape(column.group)}</th>"
        head += "</tr>"
    titles = "".join(
        f"<th>{'' if column.group else swatch(column.series)}{escape(column.title)}</th>" for column in columns
    )
    head += f"<tr><th>{escape(corner)}</th>{titles}</tr>"
    body = []
    for row in rows:
        best = _best(columns, row)
        cells = ""
        for index, cell in enumerate(row.cells):
            classes = " ".join(
                name for name, on in (("first", first[index] and columns[index].group), ("best", index in best)) if on
            )
            cells += f'<td class="{classes}">' if classes else "<td>"
            cells += escape(cell_text(cell)) + "</td>"
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        body.append(f"<tr><th>{escape(row.title)}{note}</th>{cells}</tr>")
    lines = "\n".join(body)
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'


def cell_text(cell: Cell) -> str:
    """What a cell shows: numbers with a true minus sign, a dash for one that does not exist."""
    if isinstance(cell, tuple):
        value, form = cell
        return DASH if value is None or math.isnan(value) else format(value, form).replace("-", "\u2212")
    return DASH if cell is None else cell


def legend(names: Sequence[str], extra: str = "") -> str:
    """The checkpoints and their colours; `extra` is HTML that follows."""
    entries = "".join(f"<span>{swatch(index)}{escape(name)}</span>" for index, name in enumerate(names))
    return f'<div class="legend">{entries}{extra}</div>'


def figure(chart: str, caption: str, note: str = "") -> str:
    """A chart (HTML) below its caption and a note in the softer colour (both text)."""
    return f"<figure><figcaption><b>{escape(caption)}</b> {escape(note)}</figcaption>{chart}</figure>"


def picture(image: Image.Image, caption: str) -> str:
    """A photograph below its caption, stored in the page itself."""
    memory = io.BytesIO()
    # Full colour resolution, since thin coloured lines smear without it.
    image.save(memory, "JPEG", quality=85, subsampling=0, optimize=True)
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    text = escape(caption, quote=True)
    return (
        f'<figure><figcaption>{text}</figcaption><img alt="{text}" width="{image.width}" height="{image.height}" '
        f'src="data:image/jpeg;base64,{data}"></figure>'
    )


def swatch(series: int | None) -> str:
    """A small square in the colour of a checkpoint."""
    return "" if series is None else f'<span class="swatch" style="background:{series_color(series)}"></span>'


def _best(columns: Sequence[Column], row: Row) -> set[int]:
    best: set[int] = set()
    for key in {column.compare for column in columns if column.compare}:
        places = [index for index, column in enumerate(columns) if column.compare == key]
        better = row.better or columns[places[0]].better
        known = {}
        for index in places:
            cell = row.cells[index]
            if isinstance(cell, tuple) and cell[0] is not None and not math.isnan(cell[0]):
                known[index] = cell[0]
        if better and len(known) > 1:
            winner = max(known.values()) if better == "high" else min(known.values())
            best |= {index for index, value in known.items() if value == winner}
    return best
