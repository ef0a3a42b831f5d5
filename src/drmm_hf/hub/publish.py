"""What of a checkpoint folder is published and what is not, code that travels with it, and the upload in one commit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_drmm import DrmmConfig
from ..files import json_text, read_json, write_text
from ..image_processing_drmm import DrmmImageProcessor
from ..loading import load_checkpoint, read_config
from ..modeling_drmm import DrmmForObjectDetection, DrmmModel
from .card import CARD

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_MEASURED = ("metrics.json", "analysis.json")
_KNOWN = re.compile(
    rf"{re.escape(CONFIG)}|{re.escape(PROCESSOR)}|{re.escape(CARD)}|LICENSE|{_WEIGHTS.pattern}"
    r"|(metrics|results|analysis)\.json"
    r"|(images/)?[^/.][^/]*\.(png|jpe?g|svg|webp)"
)
_PACKAGE = Path(__file__).parents[1]
_AUTO_CLASSES: dict[str, type] = {
    "AutoConfig": DrmmConfig,
    "AutoModel": DrmmModel,
    "AutoModelForObjectDetection": DrmmForObjectDetection,
    "AutoImageProcessor": DrmmImageProcessor,
}
# What importing the package does, and importing a checkpoint's modeling file has to do in its place.
_REGISTRATION = """

# Added to this copy, which travels in a checkpoint: `pipeline` logs an error for a class that is not in this table.
from transformers.models.auto import modeling_auto  # noqa: E402

modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES["drmm"] = "DrmmForObjectDetection"
"""
# What the Hub answers, and broken connections: HTTPError of httpx or httpx2, whichever this version of huggingface_hub
# uses, and the RuntimeError that a failed upload becomes.
_FAILURES: tuple[type[Exception], ...] = (*(HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError, RuntimeError),)


@dataclass(frozen=True)
class UploadPlan:
    """What goes into a repository.

    Attributes:
        files: content, or the file that has it, by path in the repository ("/" between folders), in alphabetical order.
        left_out: paths in the checkpoint's folder that are not published.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]

    def read(self, name: str) -> bytes:
        """Content of one of the files."""
        content = self.files[name]
        return content if isinstance(content, bytes) else content.read_bytes()

    def size(self, name: str) -> int:
        """Bytes of one of the files."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def code_files() -> dict[str, str]:
    """Name and text of every module that a checkpoint with code carries, in alphabetical order.

    They are the modules of configuration, model and image processor and all that those import from the package, as
    transformers finds them: it reads `from .name import` lines, so they lie flat in one folder.
    """
    paths = {_PACKAGE / f"{_module(auto_class)}.py" for auto_class in _AUTO_CLASSES.values()}
    paths |= {Path(file) for entry in paths for file in get_relative_import_files(entry)}
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(paths)}
    texts[f"{_module(DrmmForObjectDetection)}.py"] += _REGISTRATION
    return texts


def export_with_code(folder: str | Path) -> list[Path]:
    """Make a checkpoint loadable with `trust_remote_code=True` where this package is not installed.

    Writes the modules of `code_files`, which are returned, beside the weights and names them in config.json
    (`auto_map`). Where the package is installed, it is used, and no code of the folder is run. Exporting a folder again
    brings its code up to date; `save_pretrained` of a model loaded through the package writes none, as it would after
    `register_for_auto_class`.

    Args:
        folder: written by `save_pretrained` of model and image processor; it is changed in place.

    Raises:
        FileNotFoundError, ValueError: config.json or preprocessor_config.json is missing or damaged, or not of D-RMM.
    """
    target = Path(folder)
    texts = _texts_with_code(target)
    for name, text in texts.items():
        write_text(target / name, text)
    return [target / name for name in texts if name.endswith(".py")]


def _texts_with_code(folder: Path) -> dict[str, str]:
    """What `export_with_code` writes; config.json last, so that after a crash none names code that is not there."""
    config, processor = read_config(folder, [DrmmConfig.model_type]), read_json(folder / PROCESSOR)
    # A type that transformers does not know would keep it from looking into config.json. With an entry here `pipeline`
    # would look for a video processor, too, and ask whether to run its code, even if the package is installed.
    processor = {name: value for name, value in processor.items() if name not in ("auto_map", "image_processor_type")}
    auto_map = {auto: f"{_module(auto_class)}.{auto_class.__name__}" for auto, auto_class in _AUTO_CLASSES.items()}
    return {**code_files(), PROCESSOR: json_text(processor), CONFIG: json_text({**config, "auto_map": auto_map})}


def plan_upload(folder: str | Path, with_code: bool = False) -> UploadPlan:
    """The files of a checkpoint folder that are published, checked.

    Known files only (`_KNOWN`): optimizer states, pickles, logs and all else stay. Of the folders that metrics and
    analysis name, only the last part is published: the rest tells of the machine. A folder that carries code is
    published with the code of this package, written anew.

    Args:
        folder: checkpoint with a README.md; nothing in it is changed.
        with_code: add the code of the model, see `export_with_code`.

    Raises:
        FileNotFoundError: the folder, or one of the files that a published model needs, is missing.
        ValueError: the checkpoint cannot be loaded, README.md is no model card, or a measurement no JSON.
    """
    source = Path(folder)
    load_checkpoint(str(source.resolve()))  # a folder only, never a name on the Hub
    _check_card(source / CARD)
    files: dict[str, Path | bytes] = {}
    left_out = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source).as_posix()
        if name in _MEASURED:
            files[name] = json_text(_without_folders(read_json(path))).encode()
        elif _KNOWN.fullmatch(name):
            files[name] = path
        else:
            left_out.append(name)
    if with_code or "auto_map" in read_json(source / CONFIG):
        files |= {name: text.encode() for name, text in _texts_with_code(source).items()}
    # old copies of the modules are replaced by new ones
    return UploadPlan(dict(sorted(files.items())), [name for name in left_out if name not in files])


def publish(
    plan: UploadPlan,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    message: str = "Upload D-RMM detector",
) -> CommitInfo:
    """Create or update a model repository.

    All files, and the removal of weights that the new ones replace, are one commit on top of the state seen at the
    start: readers see the old checkpoint or the new one, never a mixture. The token is the one of `hf auth login` or
    HF_TOKEN.

    Args:
        plan: from `plan_upload`.
        repo_id: `user/name` or `organization/name`; created if there is none.
        revision: branch to publish on, created if there is none; main by default.
        private: create the repository as a private one; an existing public one is refused.
        create_pr: open a pull request (against `revision`) in place of a commit on the branch.
        message: title of the commit.

    Raises:
        PermissionError: no token.
        ConnectionError: the Hub refuses something, fails, or cannot be reached.
        ValueError: the repository is public.
    """
    if get_token() is None:
        raise PermissionError("no token for the Hub; run `hf auth login` or set HF_TOKEN")
    api = HfApi(library_name="drmm-hf")
    with _explained(repo_id, "Nothing was published: check name and token (`hf auth login`), and run it again"):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        before = api.model_info(repo_id)
        if private and not before.private:
            raise ValueError(f"{repo_id} exists and is public; make it private in its settings, or choose another name")
        if revision not in (None, "main"):
            if not create_pr:
                api.create_branch(repo_id, branch=str(revision), exist_ok=True)
            before = api.model_info(repo_id, revision=revision)
    present = [file.rfilename for file in before.siblings or ()]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, content) for name, content in plan.files.items()),
        *(CommitOperationDelete(name) for name in present if _WEIGHTS.fullmatch(name) and name not in plan.files),
    ]
    # the answer may be what was lost
    with _explained(repo_id, "Look whether the commit is there; if not, run it again"):
        # not upload_folder, which makes several commits of a folder where hf_xet is installed
        return api.create_commit(
            repo_id,
            operations,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.sha,
            commit_message=message,
        )


@contextmanager
def _explained(repo_id: str, state: str) -> Iterator[None]:
    """Errors of the Hub with `state`; without the request, which holds the token."""
    try:
        yield
    except _FAILURES as error:
        raise ConnectionError(f"{repo_id}: {type(error).__name__}: {error}. {state}") from None


def _check_card(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a published model needs a model card; `drmm cards` writes one")
    try:
        data = ModelCard.load(path).data
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a model card: {' '.join(str(error).split())}") from error
    if not data.license:
        raise ValueError(f"{path}: the card's header has no field license; add one, such as license: apache-2.0")


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _module(auto_class: type) -> str:
    return auto_class.__module__.rpartition(".")[2]
