"""docs/api.md is what the docstrings say, the docstrings say something, and the HTML pages hang together."""

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

import drmm_hf

ROOT = Path(__file__).parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "docs" / "api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()
MODULES = [module for _, module in reference.GROUPS]
# what a docstring says instead of repeating the arguments of another one
REFERS = r"[Aa]s (in|for|of) `|[Ss]ee `|`mixture_loss` of S stages|arguments are those of `"


def public_code(module_name: str) -> list[tuple[str, Any]]:
    module = importlib.import_module(module_name)
    values = [(name, getattr(module, name)) for name in reference.public_names(module_name)]
    return [(name, value) for name, value in values if inspect.isclass(value) or inspect.isfunction(value)]


def arguments(value: Any) -> list[str]:
    """What a docstring has to explain: parameters of a function, fields of a tuple or of a dataclass without help."""
    if inspect.isfunction(value):
        return [name for name in inspect.signature(value).parameters if name != "argv"]  # --help explains the options
    if dataclasses.is_dataclass(value):
        own = inspect.get_annotations(value)
        return [field.name for field in dataclasses.fields(value) if field.name in own and "help" not in field.metadata]
    return list(getattr(value, "_fields", ()))


def test_the_overview_is_what_the_docstrings_say() -> None:
    assert (ROOT / "docs" / "api.md").read_text() == reference.overview(), "docs/api.md is out of date: run `make docs`"


def test_every_package_has_a_place_in_the_reference() -> None:
    packages = {f"drmm_hf.{module.name}" for module in pkgutil.iter_modules(drmm_hf.__path__) if module.ispkg}
    assert packages
    assert packages <= set(MODULES)


@pytest.mark.parametrize("module_name", MODULES)
def test_public_docstrings_have_content(module_name: str) -> None:
    assert importlib.import_module(module_name).__doc__
    found = public_code(module_name)
    assert found
    for name, value in found:
        text = inspect.getdoc(value) or ""
        # a dataclass or a named tuple without a docstring gets its signature as one
        assert text, f"{name} has no docstring"
        assert not text.startswith(f"{name}("), f"{name} has no docstring of its own"
        assert re.match(r".*\w{2,}.*[.:](\n|$)", text, flags=re.DOTALL), f"{name}: {text!r} is no sentence"
        missing = [argument for argument in arguments(value) if not re.search(rf"\b{argument}\b", text)]
        assert not missing or re.search(REFERS, text), f"{module_name}.{name} does not explain {missing}"
        for method in reference.own_methods(value) if inspect.isclass(value) else ():
            assert getattr(value, method).__doc__, f"{name}.{method} has no docstring"


def test_another_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds something else than an earlier reference; name another folder"):
        reference.write_site(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_pages_lead_to_each_other(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="the extra `docs` is not installed")
    site = tmp_path / "site"
    reference.write_site(site)
    pages = sorted(site.rglob("*.html"))
    names = {str(page.relative_to(site)) for page in pages}
    assert {"index.html", "docs/index.html", "docs/api.html", "drmm_hf.html", "drmm_hf/evaluation.html"} <= names
    assert "calibration_report" in (site / "drmm_hf" / "evaluation.html").read_text()
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            if "${" in target:  # filled in by the script of the search
                continue
            inside = (page.parent / unquote(target)).resolve()
            assert inside.exists(), f"{page.relative_to(site)} links to {target}"
