"""Command-line options and recipes: both fill the fields of `TrainConfig`, an option over a recipe."""

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..annotations_drmm import shown
from .config import TrainConfig

_FIELDS = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
_HINTS = get_type_hints(TrainConfig)
# Fields of one call, not of the recipe of a model.
_NOT_IN_RECIPES = ("resume", "debug")


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """The settings from command-line words."""
    return config_from(parser().parse_args(argv))


def config_from(arguments: argparse.Namespace) -> TrainConfig:
    """The settings from command-line options, over those of `--recipe` if there is one."""
    given = {name: value for name, value in vars(arguments).items()}
    recipe = read_recipe(given.pop("recipe")) if "recipe" in given else {}
    if "config" in given:
        given["config"] = {**(recipe.get("config") or {}), **_assignments(given["config"])}
    # the length of the training is one choice of two, and so is the beginning
    for one, other in (("epochs", "train_images"), ("model", "warm_start")):
        for name, rival in ((one, other), (other, one)):
            if given.get(name) is not None and rival not in given:
                recipe.pop(rival, None)
    if given.get("schedule", "multi_step") != "multi_step" and "milestones" not in given:
        recipe.pop("milestones", None)
    return TrainConfig(**{**recipe, **given})


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipe_folder().iterdir() if path.name.endswith(".yaml"))


def read_recipe(source: str) -> dict[str, Any]:
    """Fields of `TrainConfig` from a recipe of the package or a YAML file.

    Args:
        source: name of a recipe, or path of a file; whatever has a slash or ends in .yaml or .yml is a path.

    Raises:
        FileNotFoundError: no such recipe or file; the message lists the nearest names.
        ValueError: not YAML, an unknown field (with the nearest name), or a value of another type.
    """
    if "/" in source or source.endswith((".yaml", ".yml")):
        if not Path(source).is_file():
            raise FileNotFoundError(f"--recipe {source}: no such file")
        try:
            text = Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--recipe {source}: is not text in UTF-8 ({error})") from error
    else:
        if source not in recipe_names():
            near = difflib.get_close_matches(source, recipe_names(), n=3, cutoff=0.3) or recipe_names()
            raise FileNotFoundError(f"There is no recipe {source!r}. Nearest: {', '.join(near)}.")
        text = (_recipe_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # a date of month 13, a list as a key, ...
        raise ValueError(f"--recipe {source}: not valid YAML: {str(error)[:500]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--recipe {source}: holds no fields; write lines such as `epochs: 12`")
    fields = {str(name): value for name, value in content.items()}
    known = [name for name in _FIELDS if name not in _NOT_IN_RECIPES]
    for name, value in fields.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise ValueError(
                f"--recipe {source}: unknown field {shown(name)}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        fields[name] = _typed(value, name, source)
    return fields


def write_recipe(config: TrainConfig, path: Path) -> None:
    """The resolved settings as a recipe that repeats the run."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_IN_RECIPES}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def _dashed(word: str) -> str:
    name, *value = word.split("=", 1)
    return "=".join([name.replace("_", "-") if name.startswith("--") else name, *value])


def _recipe_folder() -> Any:
    return resources.files("drmm_hf.training") / "recipes"


def parser() -> argparse.ArgumentParser:
    # SUPPRESS: what was not given stays out, so that a recipe can fill it
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--recipe NAME] --data FOLDER [options]",
        description="Train or fine-tune a detector.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        help="settings to start from: " + ", ".join(recipe_names()) + ", or a YAML file such as OUTPUT/recipe.yaml",
    )
    groups: dict[str, Any] = {}
    for spec in _FIELDS.values():
        title = spec.metadata["group"]
        group = groups.setdefault(title, parser.add_argument_group(title)) if title not in groups else groups[title]
        options, shown = _argument(spec)
        names = dict.fromkeys((_dashed(f"--{spec.name}"), f"--{spec.name}"))
        group.add_argument(*names, dest=spec.name, help=spec.metadata["help"] + shown, **options)
    return parser


def _argument(spec: Any) -> tuple[dict[str, Any], str]:
    hint = _HINTS[spec.name]
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}, f" (default: {'yes' if spec.default else 'no'})"
    shown = "" if spec.default in (None, "") else f" (default: {spec.default})"
    if spec.name == "config":
        return {"nargs": "+", "metavar": "NAME=VALUE"}, ""
    if (kind := _element(hint)) is not None:
        return {"nargs": "+", "type": kind, "metavar": {"milestones": "EPOCH", "classes": "NAME"}[spec.name]}, ""
    kind = next(kind for kind in get_args(hint) or (hint,) if kind is not type(None))
    return {"type": kind, "metavar": kind.__name__.upper()}, shown.replace("%", "%%")


def _typed(value: Any, name: str, source: str) -> Any:
    """The value of a field as its type says; 1e-4, which YAML takes for a text, is a number."""
    hint = _HINTS[name]
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, str) and float in kinds and (number := _number(value)) is not None:
        return number
    for kind in kinds:
        base = get_origin(kind) or kind
        if (
            base is float
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and (isinstance(value, float) or abs(value) < 1e300)
        ):
            return float(value)
        if base is Sequence and isinstance(value, list):
            element = _element(kind)
            if all(isinstance(entry, str if element is str else int | float) for entry in value):
                return value
        if base is not Sequence and isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return value
    wanted = " or ".join(
        "nothing" if k is type(None) else getattr(get_origin(k) or k, "__name__", str(k)) for k in kinds
    )
    raise ValueError(f"--recipe {source}: field {name!r} is {shown(value)}, but must be of type {wanted}")


def _element(hint: Any) -> type | None:
    """The type of the elements of a field that is a sequence, else None."""
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((get_args(kind)[0] for kind in kinds if get_origin(kind) is Sequence), None)


def _assignments(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts to a dict; a value is read as YAML, so 1.0, true and [location] are what they look like."""
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ValueError(f"--config {text}: write NAME=VALUE, such as objective=nll.")
        try:
            number = _number(value)
            pairs[name.strip()] = yaml.safe_load(value) if number is None else number
        except yaml.YAMLError as error:
            raise ValueError(f"--config {text}: the value cannot be read as YAML.") from error
    return pairs


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else None
