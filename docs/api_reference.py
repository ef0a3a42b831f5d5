"""Everything that is written from the docstrings: `docs/api.md`, and with `make docs` all pages as HTML.

python docs/api_reference.py               # docs/api.md
python docs/api_reference.py build/docs    # and the pages; needs pdoc, the extra `docs`
"""

import argparse
import importlib
import inspect
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OVERVIEW = ROOT / "docs" / "api.md"
FIRST_PAGES = (ROOT / "README.md", ROOT / "docs" / "index.md", OVERVIEW)
# Title and module, in the order of the page. A name stands at the last module that has it.
GROUPS = (
    ("Model, configuration, image processor", "drmm_hf"),
    ("The mixture and its loss", "drmm_hf.mixture"),
    ("Named configurations", "drmm_hf.presets"),
    ("Training", "drmm_hf.training"),
    ("Data", "drmm_hf.data"),
    ("Evaluation and calibration", "drmm_hf.evaluation"),
    ("Drawing", "drmm_hf.visualization"),
    ("Export", "drmm_hf.export"),
    ("Model cards and the Hub", "drmm_hf.hub"),
    ("Released checkpoints", "drmm_hf.conversion"),
    ("Demo", "drmm_hf.demo"),
    ("Tables and figures of the paper", "drmm_hf.reproduction"),
    ("Speed and memory", "drmm_hf.benchmark"),
)
INTRODUCTION = """# API reference
Every public class and function with the first lines of its docstring, written by `make docs`: change the docstring, not
this page. The whole docstrings, with shapes, units, coordinate frames and errors, are in the pages that `make docs`
writes to build/docs, and in `help(NAME)`.

Import a name from the module in the title above it. Whatever else a module holds may change without notice.
"""


def public_names(module_name: str) -> list[str]:
    """`__all__` of a module; where it has none, the public classes and functions that it defines."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_code(value) and value.__module__ == module_name
    ]


def _is_code(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def summary(value: Any) -> str:
    """The first paragraph of a docstring in one line of Markdown."""
    line = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.sub(r"\[(`[^`]+`)\](?!\()", r"\1", line).replace("|", "\\|")


def own_methods(value: Any) -> Iterator[str]:
    """Names of the public methods that a class adds to its base classes, and `forward`."""
    for name, method in vars(value).items():
        function = getattr(method, "__func__", method)
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != value.__module__:
            continue
        if name == "forward" or not any(hasattr(base, name) for base in value.__bases__):
            yield name


def overview(to_pages: bool = False) -> str:
    """The content of `docs/api.md`, its links to the sources, or to the HTML pages."""
    home = {}
    for _, module_name in GROUPS:
        for name in public_names(module_name):
            value = getattr(importlib.import_module(module_name), name)
            if _is_code(value):
                home[value] = (module_name, name)
    parts = [INTRODUCTION]
    for title, module_name in GROUPS:
        rows = []
        for value, (home_name, name) in home.items():
            if home_name == module_name:
                methods = own_methods(value) if inspect.isclass(value) else ()
                members = {name: value, **{f"{name}.{method}": getattr(value, method) for method in methods}}
                source = f"src/{value.__module__.replace('.', '/')}.py"
                page = f"{module_name.replace('.', '/')}.html"
                for label, member in members.items():
                    target = f"{page}#{label}" if to_pages else source
                    rows.append(f"| [`{label}`](../{target}) | {summary(member)} |")
        table = "\n".join(["| name | what it is |", "|---|---|", *rows])
        parts.append(f"## {title} (`{module_name}`)\n{table}\n")
    return "\n".join(parts)


def write_site(folder: Path) -> None:
    """Write the reference of every module of `GROUPS` and the Markdown pages as HTML.

    Args:
        folder: what an earlier call left there is replaced.

    Raises:
        ImportError: pdoc is missing; the message names the extra.
        FileExistsError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "drmm_hf.html").exists():
        raise FileExistsError(f"{folder}: holds something else than an earlier reference; name another folder")
    try:
        import pdoc
        import pdoc.render
    except ImportError as error:
        raise ImportError("The pages need pdoc: pip install -e '.[docs]'") from error
    shutil.rmtree(folder, ignore_errors=True)
    pdoc.render.configure(docformat="google", template_directory=ROOT / "docs" / "templates")
    # the lower-level modules have no page: `__all__` shows what they define at the place to import it from
    pdoc.pdoc(*(module for _, module in GROUPS), r"!drmm_hf\.\w+\.", output_directory=folder)
    _write_pages(folder)
    shutil.copy(folder / "README.html", folder / "index.html")


def _write_pages(folder: Path) -> None:
    """The Markdown pages that can be reached from the first ones, and the files that they show or link to."""
    from pdoc.render import env

    template = env.get_template("page.html.jinja2")
    waiting, done = list(FIRST_PAGES), set()
    while waiting:
        path = waiting.pop()
        if path in done or not path.is_file():
            continue
        done.add(path)
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copy(path, place)
            continue
        text = path.read_text(encoding="utf-8") if path != OVERVIEW else overview(to_pages=True)
        waiting += [(path.parent / target).resolve() for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", text)]
        text = re.sub(r"(\]\([^):]+)\.md(#[^)]*)?\)", r"\1.html\2)", text)
        to_top = "../" * (len(place.relative_to(folder).parts) - 1)
        page = template.render(title=text.splitlines()[0].lstrip("# "), text=text, to_top=to_top)
        place.with_suffix(".html").write_text(page, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write `docs/api.md` and, where a folder is given, the pages."""
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings, and all pages as HTML.")
    parser.add_argument("folder", nargs="?", type=Path, help="where to write the HTML pages; none without it")
    arguments = parser.parse_args(argv)
    OVERVIEW.write_text(overview(), encoding="utf-8")
    print(f"wrote {OVERVIEW.relative_to(ROOT)}")
    if arguments.folder is not None:
        try:
            write_site(arguments.folder)
        except (ImportError, OSError) as error:
            parser.error(str(error))
        print(f"wrote {arguments.folder}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
