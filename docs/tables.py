"""Write the tables of the pages anew from the files of results: `python docs/tables.py`, or `make docs`.

A page marks the place of a table, and names its files relative to docs/results/:

    <!-- table: small-scale/adamixer/table2.json -->
    ...
    <!-- end -->

What `scripts/reproduce.py` wrote becomes its rows with mean ± standard deviation over the seeds, and the numbers of the
paper in columns of their own. Several `metrics.json` become a row each (a pattern with * is one row, the mean of its
files), with the columns that `columns=AP,ECE` names.
"""

import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent / "scripts"))

from markdown_table import markdown_table, reproduced_table, spread  # noqa: E402

RESULTS = DOCS / "results"
MARKED = re.compile(r"(<!-- table: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Rewrite every marked table; 1 with `--check` if one is not what its file says."""
    check, stale = "--check" in sys.argv, []
    for page in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda found: found[1] + table(found[2].split()) + found[3], text)
        if new != text:
            stale.append(str(page.relative_to(DOCS.parent)))
            if not check:
                page.write_text(new, encoding="utf-8")
    print("\n".join(stale))
    return int(check and bool(stale))


def table(words: list[str]) -> str:
    """The Markdown table that a mark asks for."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    sources = [word for word in words if "=" not in word]
    first = json.loads((RESULTS / sources[0]).read_text()) if "*" not in sources[0] else {}
    text = reproduced_table(first) if "rows" in first else of_runs(sources, options["columns"].split(","))
    return f"{text}\n"


def of_runs(sources: list[str], columns: list[str]) -> str:
    """A row for each file of metrics, or the mean of those that a pattern names."""
    lines = []
    for source in sources:
        runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(source))]
        name = Path(source).stem.replace("-seed*", "")
        lines.append([name, str(len(runs)), *(spread([run[column] for run in runs]) for column in columns)])
    return markdown_table(["run", "seeds", *columns], lines)


if __name__ == "__main__":
    raise SystemExit(main())
