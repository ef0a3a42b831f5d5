"""Training through Accelerate."""

from .config import TrainConfig, parse_config, read_recipe, recipe_names, write_recipe
from .faults import TrainingStopped
from .loop import TrainResult, train

__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainingStopped",
    "parse_config",
    "read_recipe",
    "recipe_names",
    "train",
    "write_recipe",
]
