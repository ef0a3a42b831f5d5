"""Checkpoints that carry the code of their model, for readers who have transformers but not this package."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from ..configuration_drmm import DrmmConfig
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection, DrmmModel

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"

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


def code_files() -> dict[str, str]:
    """Name and text of every module that a checkpoint with code carries, in alphabetical order.

    They are the modules of configuration, model and image processor and all that those import from the package, as
    transformers finds them: it reads `from .name import` lines, so they lie flat in one folder.
    """
    entries = {_PACKAGE / f"{_module(auto_class)}.py" for auto_class in _AUTO_CLASSES.values()}
    paths = set(entries)
    for entry in entries:
        paths.update(Path(file) for file in get_relative_import_files(entry))
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(paths)}
    texts[f"{_module(DrmmForObjectDetection)}.py"] += _REGISTRATION
    return texts


def export_with_code(folder: str | os.PathLike[str]) -> list[Path]:
    """Make the checkpoint in `folder` loadable with `trust_remote_code=True` where this package is not installed.

    Writes the modules of `code_files` beside the weights and names them in config.json (`auto_map`). Where the
    package is installed, it is used, and no code of the folder is run. `save_pretrained` of a model loaded through
    the package writes neither; exporting a folder again brings its code up to date.

    The image processor is named in config.json, too, and not in preprocessor_config.json: with an entry there,
    `pipeline` looks for a video processor as well and asks whether to run its code, even if the package is installed.

    Args:
        folder: written by `save_pretrained` of model and image processor; it is changed in place.

    Returns:
        The modules written.

    Raises:
        FileNotFoundError: the folder, its config.json or its preprocessor_config.json is missing.
        ValueError: one of the two is no JSON object, or the model is not D-RMM's.
    """
    target = Path(folder)
    if not target.is_dir():
        raise FileNotFoundError(f"{target}: no such folder; give one that save_pretrained wrote")
    config, processor = read_json(target / CONFIG), read_json(target / PROCESSOR)
    if config.get("model_type") != DrmmConfig.model_type:
        raise ValueError(
            f"{target / CONFIG}: field model_type is {config.get('model_type')!r}, expected {DrmmConfig.model_type!r}; "
            "give the folder of a D-RMM detector"
        )
    references = {auto: f"{_module(auto_class)}.{auto_class.__name__}" for auto, auto_class in _AUTO_CLASSES.items()}
    # A type that transformers does not know would keep it from looking into config.json.
    for field in ("auto_map", "image_processor_type"):
        processor.pop(field, None)
    written = []
    for name, text in code_files().items():
        _replace(target / name, text)
        written.append(target / name)
    _replace(target / PROCESSOR, json.dumps(processor, indent=2) + "\n")
    # Last, so that a crash leaves no checkpoint that names code it does not have.
    _replace(target / CONFIG, json.dumps({**config, "auto_map": references}, indent=2) + "\n")
    return written


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; FileNotFoundError or ValueError with the fix if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); save the checkpoint again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found a {type(content).__name__}; save the checkpoint again")
    return content


def _module(auto_class: type) -> str:
    return auto_class.__module__.rpartition(".")[2]


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; a link in its place is replaced, its target left alone."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
