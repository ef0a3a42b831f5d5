"""Documents name what exists, and what is public is documented."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (folder / target).exists(), f"{document} links to {target}"
    for name in re.findall(r"`((?:tests|scripts|docs|src)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{document} names {name}"


def test_names_of_the_map_from_the_paper_to_the_code_exist() -> None:
    """Functions, classes and fields that docs/equations.md names; table2, fig5 and the like are commands."""
    text = (ROOT / "docs/equations.md").read_text()
    sources = "\n".join(path.read_text() for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py"))
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    names |= {part for row in rows for name in re.findall(r"`(Drmm\w+\.\w+)`", row) for part in name.split(".")}
    assert len(names) > 30
    for name in sorted(names - {"min_sc_ratio"}):  # its name in the released code
        if not re.fullmatch(r"(table|fig)\d+", name):
            assert re.search(rf"\b(def|class) {name}\b|\b{name}: |\"{name}\"", sources), name


@pytest.mark.parametrize("module", ["", ".conversion", ".data", ".evaluation", ".export", ".hub", ".training"])
def test_every_public_name_has_a_docstring(module: str) -> None:
    package = importlib.import_module(f"drmm_hf{module}")
    assert package.__doc__
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue  # a constant
        text = inspect.getdoc(value) or ""
        # a dataclass without a docstring gets its signature as one
        assert text, f"drmm_hf{module}.{name}"
        assert not text.startswith(f"{name}("), f"drmm_hf{module}.{name}"
