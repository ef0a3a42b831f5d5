"""Data: COCO-format folders, generated scenes, training transforms."""

from .coco import DatasetReport, DetectionDataset, load_detection_dataset
from .images import decode_image, open_image
from .scenes import generate_scenes
from .transforms import TrainTransform

__all__ = [
    "DatasetReport",
    "DetectionDataset",
    "TrainTransform",
    "decode_image",
    "generate_scenes",
    "load_detection_dataset",
    "open_image",
]
