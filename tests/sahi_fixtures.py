"""A minimal stand-in of SAHI, with what its documentation says of a detection model, for tests without it."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest


class DetectionModel:
    """Subclasses load, predict one array, and make object predictions; the rest is SAHI's."""

    def __init__(self, model_path: str, confidence_threshold: float = 0.3, device: str = "cpu") -> None:
        self.model_path, self.confidence_threshold, self.device = model_path, confidence_threshold, device
        self._original_predictions: Any = None
        self._object_prediction_list_per_image: list[list[Any]] = []
        self.load_model()

    def load_model(self) -> None:
        raise NotImplementedError

    def convert_original_predictions(self, shift_amount: Any = ((0, 0),), full_shape: Any = None) -> None:
        self._create_object_prediction_list_from_original_predictions(shift_amount, full_shape)


@dataclass
class ObjectPrediction:
    """Corners in pixels of the slice, and where the slice lies in the image."""

    bbox: list[float]
    category_id: int
    category_name: str
    score: float
    shift_amount: list[int]
    full_shape: list[int] | None


def listed(values: Any) -> Any:
    """One pair as a list of pairs, as SAHI's `fix_..._list` do."""
    return values if values is None or not isinstance(values[0], int) else [values]


def use_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import sahi` find it."""
    contents: dict[str, dict[str, Any]] = {
        "sahi": {},
        "sahi.models": {},
        "sahi.models.base": {"DetectionModel": DetectionModel},
        "sahi.prediction": {"ObjectPrediction": ObjectPrediction},
        "sahi.utils": {},
        "sahi.utils.compatibility": {"fix_full_shape_list": listed, "fix_shift_amount_list": listed},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
