"""A training recipe as a command and as a sentence, without the folders of the machine it ran on."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training.config import TrainConfig

_PATHS = ("data", "model", "warm_start", "backbone_weights", "output")
# They have no effect on the weights, or are of one call only.
_LEFT_OUT = {"resume", "debug", "log_every", "report_to", "save_every", "save_total_limit", "num_workers", "timeout"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def training_command(recipe: Mapping[str, Any]) -> str:
    """The `scripts/train.py` call of a run: what its recipe has other than the defaults.

    Folders are given by their last part, so that a card tells nothing of the machine.

    Raises:
        ValueError: an unknown field.
    """
    fields = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(recipe) - set(fields))
    if unknown:
        raise ValueError(f"recipe: unknown field {unknown[0]!r}; give a recipe.yaml that training wrote")
    words = ["python scripts/train.py"]
    for name, spec in fields.items():
        value = recipe.get(name, spec.default)
        if name in _LEFT_OUT or (value == spec.default and name not in ("preset", "data", "seed")):
            continue
        if name == "preset" and (recipe.get("model") is not None):
            continue
        words += _option(name, value)
    return " ".join(words)


def public_name(path: Any) -> str:
    """The name of a data set or model: its Hub id, or the last part of its folder."""
    text = str(path)
    return text if _HUB_ID.fullmatch(text) and not Path(text).exists() else Path(text).name or text


def settings_text(recipe: Mapping[str, Any], images_per_step: int) -> str:
    """Length, batch, optimizer and schedule in a sentence; fields that the recipe has not are the defaults."""
    defaults = {spec.name: spec.default for spec in dataclasses.fields(TrainConfig)}
    values = {**defaults, **recipe}
    length = f"{values['epochs']:g} epochs" if values["epochs"] else f"{values['train_images']:,} images seen"
    schedule = f"{values['schedule'].replace('_', ' ')} schedule"
    if values["milestones"]:
        schedule = "learning rate divided by ten after epochs " + " and ".join(f"{n:g}" for n in values["milestones"])
    return (
        f"{length}, {images_per_step} images a step, AdamW with learning rate {values['learning_rate']:g} and weight "
        f"decay "
        f"{values['weight_decay']:g}, {schedule}, gradient clipped at norm {values['max_grad_norm']:g}, augmentation "
        f"`{values['augmentation']}`."
    )


def _option(name: str, value: Any) -> list[str]:
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if name in _PATHS:
        shown = public_name(value)
        value = f"runs/{shown}" if name == "output" else shown
    if isinstance(value, Mapping):
        return [option, *(shlex.quote(f"{key}={_yaml(entry)}") for key, entry in value.items())]
    if isinstance(value, list | tuple):
        return [option, *(shlex.quote(_yaml(entry)) for entry in value)]
    return [option, shlex.quote(_yaml(value))]


def _yaml(value: Any) -> str:
    """As the command line reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return "null" if value is None else str(value)
