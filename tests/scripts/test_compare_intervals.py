"""Intervals of γ beside conformal ones, on scenes that the quick start's detector knows."""

import json

import numpy as np
import pytest

import compare_intervals
from drmm_hf.commands.quickstart import checkpoint
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.evaluation import interval_report, predict_dataset
from drmm_hf.loading import load_detector


def test_intervals_of_the_level_hold_that_share_of_new_edges(tmp_path):
    known = {"classes": ["disc", "rectangle", "triangle", "cross"], "image_size": (192, 256)}
    scenes = generate_scenes(tmp_path / "scenes", num_train=40, num_val=40, min_object_size=24.0, **known)
    (scenes / "annotations/instances_train.json").rename(scenes / "annotations/instances_test.json")
    words = [checkpoint(), "--data", str(scenes), "--output", str(tmp_path / "tables" / "intervals.json")]
    assert compare_intervals.main(words) == 0
    rows = json.loads((tmp_path / "tables/intervals.json").read_text())["rows"]
    values = {kind: {name: one["mean"] for name, one in row.items()} for kind, row in rows.items()}

    model, processor = load_detector(checkpoint(), "cpu")
    for split in ("val", "test"):
        dataset = load_detection_dataset(scenes, split, id2label=model.config.id2label)
        results = predict_dataset(model, processor, dataset, with_scales=True, progress=False)
        report = interval_report(dataset.annotations_path, results)
        assert [values["γ"][f"{split}, {level}"] for level in ("50%", "80%", "90%")] == pytest.approx(
            report.coverage, abs=1e-4
        )
    for kind in ("γ, conformal", "box, conformal", "constant, conformal"):
        assert values[kind]["test, 80%"] == pytest.approx(0.8, abs=0.08)  # about 200 boxes
    for level in ("50%", "80%", "90%"):
        # conformal ones are narrow where the density's are too wide
        covered, width = values["γ"][f"val, {level}"], values["γ"][f"width, {level}"]
        conformal = values["γ, conformal"][f"width, {level}"]
        assert np.sign(covered - float(level.rstrip("%")) / 100) == np.sign(width - conformal)
