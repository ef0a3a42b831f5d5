"""Settings: fields of a configuration, and recipes."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.training import TrainConfig, parse_config
from fuzz.judge import Refusal
from fuzz.mutate import HOSTILE, mutate_bytes, mutate_value
from model_fixtures import small_config

_SKIP = ("transformers_version", "architectures", "dtype", "model_type", "label2id", "chunk_size_feed_forward")
_CONFIG_FIELDS = sorted({field.name for field in fields(DrmmConfig)} - set(_SKIP))
_RECIPE = {
    "preset": "drmm-sparse-rcnn-tiny",
    "config": {"objective": "nll", "num_proposals": 50},
    "epochs": 12.0,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "schedule": "multi_step",
    "milestones": [8, 11],
    "warmup_steps": 100,
    "ema_decay": 0.99,
    "augmentation": "affine",
    "num_workers": 0,
    "eval_every_epochs": 0.5,
    "cpu": True,
}
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


class ConfigTarget:
    """`DrmmConfig` of changed fields, what it is after saving, and now and then the model on the meta device."""

    name = "config"

    def __init__(self) -> None:
        base = small_config().to_dict()
        self.base = {name: base[name] for name in _CONFIG_FIELDS if name in base}

    def draw(self, random: Random) -> dict[str, Any]:
        name = random.choice(_CONFIG_FIELDS)
        if random.random() < 0.7:
            changes = {name: random.choice(HOSTILE)}
        else:
            changes = mutate_value(random, {name: self.base.get(name, 1), "id2label": {"0": "a", "1": "b"}})
        changes = changes if isinstance(changes, dict) else {name: changes}
        return {"build": random.random() < 0.1, "fields": {str(key): value for key, value in changes.items()}}

    def run(self, value: dict[str, Any], folder: Path) -> None:
        config = DrmmConfig(**{**self.base, **value["fields"]})
        DrmmConfig.from_dict(config.to_dict())
        sizes = [number for number in config.to_dict().values() if isinstance(number, int)]
        if value["build"] and max(sizes) < 5000:  # who asks for a billion layers gets them
            with torch.device("meta"):
                DrmmForObjectDetection(config)

    def names(self, value: dict[str, Any]) -> Sequence[str]:
        return ("DrmmConfig.", *value["fields"], *_CONFIG_FIELDS)


class RecipeTarget:
    """`train.py --recipe FILE` with changed files."""

    name = "recipes"

    def draw(self, random: Random) -> str:
        chance = random.random()
        if chance < 0.02:
            return _LAUGHS + random.choice(
                ("epochs: *i\n", "config: *i\n", "config: {objective: *i}\n", "*i: 1\n", "milestones: *i\n")
            )
        if chance < 0.04:
            return random.choice(
                ("[" * 5000, "{a: " * 3000, "epochs: 2001-99-99", "epochs: " + "9" * 6000, "a: !!python/x")
            )
        text = yaml.safe_dump(_without_surrogates(mutate_value(random, _RECIPE)), sort_keys=False)
        return mutate_bytes(random, text.encode()).decode("latin-1") if random.random() < 0.4 else text

    def run(self, value: str, folder: Path) -> None:
        path = folder / "my.yaml"
        path.write_bytes(value.encode("latin-1", "replace"))
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                parse_config(["--recipe", str(path), "--data", "x"])
        except SystemExit as error:
            if error.code != 2:
                raise
            raise Refusal(errors.getvalue().splitlines()[-1]) from None

    def names(self, value: str) -> Sequence[str]:
        return ("my.yaml", *(field.name for field in fields(TrainConfig)))


def _without_surrogates(value: Any) -> Any:
    """YAML files cannot hold them at all."""
    if isinstance(value, str):
        return value.replace("\ud800", "?")
    if isinstance(value, list):
        return [_without_surrogates(entry) for entry in value]
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(entry) for key, entry in value.items()}
    return value
