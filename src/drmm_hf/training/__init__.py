"""Training through Accelerate."""

from .config import TrainConfig
from .faults import TrainingStopped
from .loop import TrainResult, train
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
