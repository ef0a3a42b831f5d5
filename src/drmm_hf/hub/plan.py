"""Which files of a checkpoint folder are published, and which are not."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import ModelCard

from ..files import read_json as read_any_json
from ..files import write_json
from ..loading import load_checkpoint
from .export_code import CONFIG, PROCESSOR, code_files, export_with_code, read_json

CARD = "README.md"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_KNOWN = re.compile(
    rf"{re.escape(CONFIG)}|{re.escape(PROCESSOR)}|{re.escape(CARD)}|LICENSE|{WEIGHTS.pattern}"
    r"|(metrics|results|analysis)\.json"
    r"|(images/)?[^/.][^/]*\.(png|jpe?g|svg|webp)"
)


_MEASURED = ("metrics.json", "analysis.json")


@dataclass(frozen=True)
class UploadPlan:
    """What goes into a repository.

    Attributes:
        source: folder that the user named.
        staged: folder with exactly the files to publish, some of them links into `source`.
        files: their paths inside `staged`, "/" between folders, in alphabetical order.
        left_out: paths inside `source` that are not published, a folder as one entry that ends with "/".
        with_code: whether the modules of the model are among the files.
    """

    source: Path
    staged: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    with_code: bool

    def size(self, name: str) -> int:
        """Bytes of a file of the plan."""
        return (self.staged / name).stat().st_size

    @property
    def card(self) -> str:
        """Text of the model card."""
        return (self.staged / CARD).read_text(encoding="utf-8")


@contextmanager
def plan_upload(folder: str | Path, with_code: bool = False) -> Iterator[UploadPlan]:
    """The files of a checkpoint folder that are published, checked and laid out in a temporary folder.

    Known files only: configuration, image processor, safetensors weights, README.md, LICENSE, metrics.json,
    results.json, analysis.json, and pictures in the folder or in its images/. Optimizer states, pickles, logs and all
    else stay. Of the folders that metrics and analysis name, only the last part is published: the rest tells of the
    machine. A folder that carries code is published with the code of this package, written anew.

    Args:
        folder: checkpoint with a README.md.
        with_code: add the code of the model, see `export_with_code`.

    Raises:
        FileNotFoundError: the folder, or one of the files that a published model needs, is missing.
        ValueError: the checkpoint cannot be loaded, README.md is no model card, or a measurement no JSON.
    """
    source = Path(folder)
    load_checkpoint(str(source.resolve()))  # a folder only, never a name on the Hub
    _check_card(source / CARD)
    with_code = with_code or "auto_map" in read_json(source / CONFIG)
    code = set(code_files()) if with_code else set()
    left_out = tuple(_left_out(source, code))
    with TemporaryDirectory(prefix="publish-") as temporary:
        staged = Path(temporary)
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_file() and _KNOWN.fullmatch(name):
                (staged / name).parent.mkdir(exist_ok=True)
                if name in _MEASURED:
                    write_json(staged / name, _without_folders(read_any_json(path)))
                else:
                    # links, because weights are large; the temporary folder may lie on another disk
                    _link(path.resolve(), staged / name)
        if with_code:
            export_with_code(staged)
        files = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        yield UploadPlan(source, staged, tuple(files), left_out, with_code)


def _left_out(source: Path, code: set[str]) -> Iterator[str]:
    """Paths not published; old copies of the modules are replaced by new ones, not left out."""
    for path in sorted(source.iterdir()):
        if path.is_dir():
            inside = [file.relative_to(source).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
            unknown = [name for name in inside if not _KNOWN.fullmatch(name)]
            yield from [f"{path.name}/"] if inside and len(unknown) == len(inside) else unknown
        elif not _KNOWN.fullmatch(path.name) and path.name not in code:
            yield path.name


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _link(target: Path, place: Path) -> None:
    try:
        place.symlink_to(target)
    except OSError:  # file systems without links
        shutil.copyfile(target, place)


def _check_card(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; a published model needs a model card; scripts/cards.py writes one"
        )
    try:
        data = ModelCard.load(path).data
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a model card: {' '.join(str(error).split())}") from error
    if not data.license:
        raise ValueError(f"{path}: the card's header has no field license; add one, such as license: apache-2.0")
