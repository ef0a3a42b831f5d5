"""Data: COCO-format folders, generated scenes, training transforms."""

from .coco import DatasetReport, DetectionDataset, load_detection_dataset
from .images import decode_image, open_image
from .objects import coco_ground_truth, objects_dataset
from .paper_transform import PaperTransform
from .scenes import generate_scenes
from .streaming import StreamingDetectionDataset, load_streaming_dataset
from .transforms import TrainTransform

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
