"""The part of an analysis report that a model card shows, without names of images and folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.calibration import CalibrationReport
from ..files import read_json

_DATA = ("split", "images", "objects", "objects_per_class")
_DIGITS = 5


def condense_analysis(path: str | Path, model: str | Path | None = None) -> dict[str, Any]:
    """What a card shows of an `analysis.json` of `scripts/analyze.py`; such an extract is returned as it is.

    Args:
        path: analysis.json, or an extract of one.
        model: folder of the checkpoint, where the analysis compares several.

    Returns:
        Parts `data`, `accuracy`, `calibration`, `thresholds` and `duplicates` as `analyze_results` has them, numbers
        rounded, without the images and the paths.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an analysis, or one of several other checkpoints.
    """
    content = read_json(path)
    try:
        if "checkpoints" in content:
            part = _checkpoint(content["checkpoints"], model, path)
            content = {"data": content["data"], **part}
        facts = {
            "data": {name: content["data"][name] for name in _DATA},
            "accuracy": content["accuracy"],
            "calibration": {name: content["calibration"][name] for name in ("measures", "reliability")},
            "thresholds": content["thresholds"],
            "duplicates": {"counts": content["duplicates"]["counts"]},
        }
        reliability(facts)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not an analysis ({_words(error)}); give the analysis.json that scripts/analyze.py wrote"
        ) from error
    return _rounded(facts)


def reliability(facts: Mapping[str, Any]) -> CalibrationReport:
    """The report behind the reliability diagram of an extract."""
    fields = facts["calibration"]["reliability"]
    # JSON has None for the nan of an empty bin
    values: dict[str, Any] = {
        name: tuple(float("nan") if entry is None else entry for entry in value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return CalibrationReport(**values)


def _checkpoint(checkpoints: list[dict[str, Any]], model: str | Path | None, path: str | Path) -> dict[str, Any]:
    if len(checkpoints) == 1:
        return checkpoints[0]
    wanted = {Path(model).resolve(), (Path(model) / "model").resolve()} if model is not None else set()
    found = [part for part in checkpoints if Path(part["checkpoint"]).resolve() in wanted]
    if len(found) != 1:
        names = ", ".join(part["checkpoint"] for part in checkpoints)
        raise ValueError(f"{path}: is about {names}, not about {model}; run scripts/analyze.py with that checkpoint")
    return found[0]


def _words(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value
