"""A report as `scripts/analyze.py` writes it: the parts that the demo reads."""

from typing import Any

CLASSES = ["disc", "ring", "star"]


def report() -> dict[str, Any]:
    """Four bins of 100, 20, 0 and 10 detections, of which 10, 10, 0 and 9 are right."""
    return {
        "data": {"images": 7},
        "checkpoints": [
            {
                "checkpoint": "runs/mine",
                "calibration": {
                    "reliability": {
                        "bin_edges": [0.0, 0.25, 0.5, 0.75, 1.0],
                        "bin_counts": [100, 20, 0, 10],
                        "bin_confidences": [0.1, 0.3, None, 0.8],
                        "bin_accuracies": [0.1, 0.5, None, 0.9],
                        "iou_threshold": 0.5,
                    }
                },
                "thresholds": {"per_class": {name: {"score_threshold": None} for name in CLASSES}},
                "uncertainty": {
                    "levels": [0.5, 0.8, 0.9],
                    "coverage": [0.6, 0.9, 0.99],
                    "coverage_after": [0.4, 0.8, 0.95],
                    "factor": 0.5,
                },
            }
        ],
    }
