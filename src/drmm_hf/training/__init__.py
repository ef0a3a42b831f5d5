"""Training through Accelerate."""

from .config import TrainConfig
from .loop import TrainingStopped, TrainResult, train
from .options import parse_config, read_recipe, recipe_names

__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "parse_config",
    "read_recipe",
    "recipe_names",
    "train",
]
