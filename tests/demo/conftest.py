"""A checkpoint to show, and its report."""

from pathlib import Path
from typing import Any

import pytest

from drmm_hf.data.scenes import CATEGORIES
from model_fixtures import save_small


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the generated scenes' classes with random weights."""
    names = dict(enumerate(CATEGORIES))
    labels = {name: label for label, name in names.items()}
    return Path(save_small(tmp_path_factory.mktemp("demo") / "model", id2label=names, label2id=labels))


@pytest.fixture
def report() -> dict[str, Any]:
    """What the demo reads of an analysis.json: four bins of 100, 20, 0 and 10 detections, 10, 10, 0 and 9 right."""
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
                "thresholds": {"per_class": {name: {"score_threshold": None} for name in ("disc", "ring", "star")}},
                "uncertainty": {
                    "levels": [0.5, 0.8, 0.9],
                    "coverage": [0.6, 0.9, 0.99],
                    "coverage_after": [0.4, 0.8, 0.95],
                    "factor": 0.5,
                },
            }
        ],
    }
