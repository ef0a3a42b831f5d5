"""Training through Accelerate."""

from .config import TrainConfig, parse_config
from .loop import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "parse_config", "train"]
