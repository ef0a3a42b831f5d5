"""The comparisons of likelihood and matching, of a stock detector's own loss with it, and data sets under shift."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers.models.rf_detr import modeling_rf_detr

import compare_detectors
import compare_objectives
from drmm_hf.data import generate_scenes, load_detection_dataset
from drmm_hf.training import TrainConfig, write_recipe
from reproduction.comparison import Side, compare, localized
from reproduction.shifts import SHIFTS, shifted_split

FITTED = ["own loss", "own loss, isotonic", "D-RMM", "D-RMM, isotonic"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, num_train=4, num_val=4, image_size=(64, 96))
    annotations = folder / "annotations"
    (annotations / "instances_test.json").write_text((annotations / "instances_val.json").read_text())
    return folder


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shifted_split_has_other_pixels_and_the_same_objects(name, scenes, tmp_path):
    folder = shifted_split(str(scenes), "val", name, tmp_path)
    old, new = load_detection_dataset(scenes, "val"), load_detection_dataset(folder, "val")
    assert [row["objects"] for row in old.dataset] == [row["objects"] for row in new.dataset]
    assert [row["image_id"] for row in old.dataset] == [row["image_id"] for row in new.dataset]
    (first, *_), (changed, *_) = (
        [np.asarray(Image.open(row["image"]["path"]), dtype=float) for row in one.dataset] for one in (old, new)
    )
    assert first.shape == changed.shape
    assert 0.5 < np.abs(first - changed).mean() < 128
    before = Path(new.dataset[0]["image"]["path"]).read_bytes()
    again = shifted_split(str(scenes), "val", name, tmp_path / "again")
    assert next((again / "images").glob("000000.png")).read_bytes() == before


def test_finished_runs_are_taken_for_what_they_are(tmp_path):
    """Measured again where a shift is missing, and refused where they were trained in another way."""
    measures = {"AP": 0.5}
    asked = []

    def compared(*shifts: str, images: int = 4):
        def side(rate: float, seed: int) -> TrainConfig:
            return TrainConfig(data="d", output=str(tmp_path), train_images=images, learning_rate=rate, seed=seed)

        def measure(folder: Path):
            asked.append(shifts)
            return {condition: {"raw": measures} for condition in ("test", *shifts)}

        return compare([Side("own", side)], [1e-3], [0], shifts, measure)

    write_recipe(
        TrainConfig(data="d", output=str(tmp_path), train_images=4, learning_rate=1e-3), tmp_path / "recipe.yaml"
    )
    (tmp_path / "metrics.json").write_text(json.dumps(measures))
    for shifts, times in (((), 1), (("blur 2",), 2), (("blur 2",), 2), ((), 2)):
        clean, shift, tuning = compared(*shifts)
        assert len(asked) == times
        assert clean["own"]["AP"]["mean"] == 0.5
        assert list(shift) == [f"{name}: own" for name in shifts]
        assert tuning["own"]["chosen"] == 1e-3
    with pytest.raises(ValueError, match="train_images"):
        compared(images=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "seeds", "rates", "weights"),
    [
        ("rt_detr_v2", ["0", "1"], ["1e-5", "1e-4"], ["0.5"]),
        ("d_fine", ["0"], ["1e-4"], ["0.5", "2"]),
        ("rf_detr", ["0"], ["1e-4"], ["0.5"]),
    ],
)
def test_both_sides_are_trained_and_measured(family, seeds, rates, weights, scenes, tmp_path, monkeypatch):
    # the script puts another in its place; no other test may find that
    monkeypatch.setattr(modeling_rf_detr, "RfDetrDinov2Backbone", modeling_rf_detr.RfDetrDinov2Backbone)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.pth")
    words = [family, "--data", str(scenes), "--backbone", str(tmp_path / "weights.pth"), "--output", str(tmp_path)]
    short = ["--start-images", "4", "--images", "4", "--size", "128", "160", "--shifts", "blur 2"]
    assert (
        compare_detectors.main(
            [*words, *short, "--seeds", *seeds, "--learning-rates", *rates, "--mcm-weights", *weights]
        )
        == 0
    )
    clean, shift = (json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("clean", "shift"))
    assert list(clean)[:6] == ["start", *FITTED, "D-RMM, × E[IoU]"]
    assert ("D-RMM (β = 2)" in clean) == ("2" in weights)
    assert list(shift)[:4] == [f"blur 2: {label}" for label in FITTED]
    for row in (clean["D-RMM"], shift["blur 2: own loss"]):
        assert 0 <= row["ECE"]["mean"] <= 1
        assert list(row["AP"]["seeds"]) == seeds
    # what both began from is the stock detector
    assert json.loads((tmp_path / "start/deployed/config.json").read_text())["model_type"] == family


@pytest.mark.slow
def test_likelihood_and_matching_are_compared_on_every_data_set(scenes, tmp_path):
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "weights.pth")
    foreign = tmp_path / "foreign"
    generate_scenes(foreign, num_train=1, num_val=2, image_size=(64, 96), classes=["ring"])
    (foreign / "annotations/instances_val.json").rename(foreign / "annotations/instances_test.json")
    words = [str(scenes), "--backbone", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "runs")]
    words += ["--decoders", "adamixer", "--images", "4", "--seeds", "0", "1", "--learning-rates", "1e-5", "1e-4"]
    words += ["--shifts", "blur 2", "--foreign", str(foreign), "--", "--config", "num_stages=1", "num_proposals=8"]
    assert compare_objectives.main(words) == 0
    clean, shift = (
        json.loads((tmp_path / f"runs/{scenes.name}/{name}.json").read_text()) for name in ("clean", "shift")
    )
    sides = ("D-RMM", "D-RMM, anchored", "D-RMM, anchored, annealed", "matching")
    labels = [f"AdaMixer, {side}{fitted}" for side in sides for fitted in ("", ", isotonic")]
    assert set(clean["rows"]) == {*labels, *(f"AdaMixer, {side}, × E[IoU]" for side in sides[:3])}
    values = [clean["rows"][f"AdaMixer, {side}"]["ECE"]["mean"] for side in sides]
    assert len(set(values)) == 4  # trained each in its own way
    assert list(shift["rows"]) == [f"blur 2: {label}" for label in labels]
    assert clean["learning rates"]["AdaMixer, matching"]["chosen"] in (1e-5, 1e-4)
    for label in labels:
        row = clean["rows"][label]
        assert list(row["AP"]["seeds"]) == ["0", "1"]
        assert 0 <= row["foreign, scores above 0.5"]["mean"] <= 8


def test_a_score_is_lowered_by_the_uncertainty_of_its_edges():
    box = {"image_id": 0, "category_id": 1, "bbox": [10.0, 10.0, 100.0, 50.0], "score": 0.8}
    sharp, wide, lost = (
        one["score"] for one in localized([{**box, "scales": [scale] * 4} for scale in (1e-6, 5.0, 1e6)])
    )
    assert sharp == pytest.approx(0.8, abs=1e-3)
    assert 0 <= lost < 0.1 < wide < 0.7
