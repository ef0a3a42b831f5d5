"""Data: folders as the usual tools write them and tables of the Hub as rows, generated scenes, training transforms."""

from .coco import coco_ground_truth
from .images import decode_image, open_image
from .load import load_detection_dataset
from .rows import DatasetReport, DetectionDataset
from .scenes import generate_scenes
from .stream import StreamingDetectionDataset, load_streaming_dataset
from .tables import objects_dataset
from .transforms import PaperTransform, TrainTransform

__all__ = [
    "DatasetReport",
    "DetectionDataset",
    "PaperTransform",
    "StreamingDetectionDataset",
    "TrainTransform",
    "coco_ground_truth",
    "decode_image",
    "generate_scenes",
    "load_detection_dataset",
    "load_streaming_dataset",
    "objects_dataset",
    "open_image",
]
