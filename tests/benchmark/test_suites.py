"""Every suite runs at a small size."""

from typing import Any

import pytest
import torch

from benchmarks import data, forward, loss, scaling
from benchmarks.measure import Settings
from benchmarks.models import DETECTORS, PARTS, build_detector, tiny_fields
from drmm_hf.data import load_detection_dataset
from drmm_hf.evaluation import evaluate_coco

ONCE = Settings(rounds=1)
TINY = ("drmm-sparse-rcnn-tiny", "drmm-adamixer-tiny")


def timed(suite: dict[str, Any]) -> list[str]:
    """Names of all rows; each has a positive time."""
    names = []
    for table in suite["tables"]:
        for name, row in table["rows"].items():
            names.append(name)
            assert min(row["timing"]["wall"] + row["timing"]["cpu"]) > 0
        assert table["base"] is None or table["base"] in table["rows"]
        assert all({over, under} <= table["rows"].keys() for _, over, under in table["comparisons"])
    return names


def test_loss() -> None:
    suite = loss.measure_loss(ONCE, batch=3, proposals=20, stages=2, sweep_proposals=(10, 20), sweep_batch=(2,))
    rows = suite["tables"][0]["rows"]
    assert list(rows) == [loss.OURS, loss.LINEAR, loss.LOOKUP, "RT-DETR", "Deformable DETR", "DETR", "D-FINE"]
    assert all(row["extra"]["saved for backward (MB)"] > 0 and row["extra"]["peak (MB)"] > 0 for row in rows.values())
    assert [len(points) for points in suite["figures"][0]["curves"].values()] == [2, 2, 2, 2]
    timed(suite)


def test_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"decoder_layers": 1, "encoder_layers": 1, "backbone_config": tiny_fields()["backbone_config"]}
    monkeypatch.setattr(forward, "build_detector", lambda name: build_detector(name, **small))
    settings = Settings(rounds=1, quick=True)
    suite = forward.measure_inference(settings, height=64, width=96, presets=TINY, peers=("DETR R50",))
    assert {*TINY, "DETR R50", f"{TINY[0]}, bfloat16", "regions, forward"} <= set(timed(suite))
    for row in suite["tables"][0]["rows"].values():
        parts = [row["extra"][f"{part} (ms)"] for part in (*PARTS, "rest")]
        assert min(parts) > 0
        clock = row["timing"]["cpu" if torch.get_num_threads() == 1 else "wall"]
        assert sum(parts) == pytest.approx(clock[0] * 1e3, rel=0.3)


def test_training() -> None:
    suite = forward.measure_training(ONCE, [("tiny", TINY, True, (2, 64, 96))])
    row = suite["tables"][0]["rows"]["Deformable DETR, as small"]
    assert row["extra"]["images/s"] == pytest.approx(2 / row["timing"]["wall"][0])
    assert row["extra"]["peak (MB)"] > 1
    timed(suite)


def test_postprocessing() -> None:
    suite = forward.measure_postprocessing(ONCE, cases=[(2, 20)])
    assert timed(suite) == [forward.OURS, "RT-DETR", "Deformable DETR", "DETR", "per-class NMS (torchvision)"]


def test_evaluation() -> None:
    assert data.PYCOCOTOOLS in timed(data.measure_evaluation(ONCE, num_images=5))


def test_what_is_generated_is_like_coco(tmp_path) -> None:
    truth = data.generate_ground_truth(200)
    assert len(truth["annotations"]) / 200 == pytest.approx(data.OBJECTS_PER_IMAGE, rel=0.2)
    results = data.generate_results(truth)
    assert len(results) == 200 * 100
    metrics = evaluate_coco(truth, results)
    assert 0.1 < metrics["AP"] < 0.6, "neither perfect nor useless"
    report = load_detection_dataset(data.write_coco(tmp_path, 20), "train").report
    assert (report.images, report.changed_boxes) == (20, 0)


def test_our_batches_are_those_of_a_training(tmp_path) -> None:
    rows = data.photos(tmp_path, 2).dataset
    pixels = data.augmented_batch([rows[0], rows[1]])
    assert pixels.shape[:2] == (2, 3)
    assert all(side % 32 == 0 and side > 400 for side in pixels.shape[2:])
    assert pixels.abs().max() < 3


@pytest.mark.slow
def test_data() -> None:
    suite = data.measure_data(Settings(rounds=1, quick=True), num_images=5)
    rows = {name: row for table in suite["tables"] for name, row in table["rows"].items()}
    assert {data.OURS, data.PYCOCOTOOLS} <= set(rows)
    assert all(len(row["timing"]["cpu"]) == 1 for row in rows.values())


def test_scaling() -> None:
    suite = scaling.measure_scaling(
        ONCE, backbone="tiny", height=64, width=96, proposals=(8, 16), resolutions=((64, 96),), peers=()
    )
    assert [point[0] for point in suite["figures"][0]["curves"]["AdaMixer"]] == [8.0, 16.0]
    timed(suite)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_every_peer_is_built_without_a_download(name: str) -> None:
    model = build_detector(name)
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 128, 160)).logits  # RT-DETR wants 300 cells
    assert logits.shape[-1] == 80 + (name == "DETR R50")
