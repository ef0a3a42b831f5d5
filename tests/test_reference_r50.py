"""The full-size ResNet-50 model against the authors' released one (tests/reference/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from reference.fill import fill, image
from released_names import from_released

REFERENCE = Path(__file__).parent / "reference"
GOLDEN = load_file(REFERENCE / "drmm_r50_stages.safetensors")
LOSSES = json.loads((REFERENCE / "drmm_r50_losses.json").read_text())
TOLERANCES = {"loc": 1e-3, "sc": 1e-4, "fg": 1e-5, "prob": 1e-5}


@pytest.fixture(scope="module")
def model() -> DrmmForObjectDetection:
    model = DrmmForObjectDetection(DrmmConfig.from_preset("drmm-sparse-rcnn-r50"))
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = from_released(name, tensor.shape, fill)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(image("A0", 256, 320)).unsqueeze(0)


@pytest.mark.parametrize(("ratio", "run"), [(None, "A"), (0.7, "A_topk0.7")])
def test_every_stage_equals_the_released_model(model, pixels, ratio, run) -> None:
    """Rows whose region has a negative area (no level, zero features) are among the compared."""
    model.config.top_k_ratio = ratio
    with torch.no_grad():
        stages = model.model(pixels).stages
    if ratio is None:
        assert any((GOLDEN[f"{run}/stage{i}/target_lvls"] < 0).any() for i in range(6)), "no such row is compared"
    for i, stage in enumerate(stages):
        rows = GOLDEN[f"{run}/stage{i}/rows"]
        ours = {
            "loc": stage.locations[0],
            "sc": stage.scales[0],
            "fg": stage.objectness_logits[0].sigmoid(),
            "prob": stage.class_logits[0].softmax(-1)[:, ::10],
        }
        for name, tolerance in TOLERANCES.items():
            expected = GOLDEN[f"{run}/stage{i}/{name}"]
            error = (ours[name][rows] - expected).abs().max().item()
            assert error < tolerance, f"stage {i + 1}, {name}: off by {error:.1e}"


@pytest.mark.parametrize("tag", ["A5", "A1", "A8", "AN"])
def test_losses_equal_the_released_model(model, pixels, tag) -> None:
    model.config.top_k_ratio = None
    boxes = GOLDEN[f"gt/{tag}/boxes"] / torch.tensor([320.0, 256.0, 320.0, 256.0])
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    labels = [{"boxes": torch.cat((center, size), dim=-1), "class_labels": GOLDEN[f"gt/{tag}/labels"]}]
    with torch.no_grad():
        outputs = model(pixels, labels=labels)
    expected = LOSSES[tag]
    assert outputs.loss.item() == pytest.approx(expected["total"], rel=1e-5)
    for i in range(6):
        stage = outputs.loss_dict[f"nll_stage_{i + 1}"] + 0.5 * outputs.loss_dict[f"mcm_stage_{i + 1}"]
        assert stage.item() == pytest.approx(expected[f"stage{i}_mm_loss"], rel=1e-5)
