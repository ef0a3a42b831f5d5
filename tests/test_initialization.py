"""Initial values, from scratch and where a checkpoint lacks tensors: those of the authors' released code."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.conversion import released_state_dict
from drmm_hf.decoder import XavierLinear
from model_fixtures import small_model

ZERO_BIAS = ("qkv_proj", "o_proj", "objectness", "classifier", "box")


def uniform_bound(name: str, module: XavierLinear) -> float:
    """Xavier's bound; objectness and classes are one matrix of 1 + 3 rows in the released code."""
    rows = 4 if name.endswith(("objectness", "classifier")) else module.out_features
    return math.sqrt(6 / (module.in_features + rows))


def assert_uniform(tensor: torch.Tensor, bound: float, name: str) -> None:
    assert tensor.abs().max() <= bound * 1.00001, name
    if tensor.numel() >= 64:
        assert tensor.abs().max() > 0.9 * bound, f"{name} does not fill its range"
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name


def assert_initial(model: DrmmForObjectDetection) -> None:
    """Every tensor outside the backbone has its initial distribution."""
    linears = 0
    for name, module in model.model.named_modules():
        if name.startswith("backbone"):
            continue
        if isinstance(module, XavierLinear):
            linears += 1
            assert_uniform(module.weight, uniform_bound(name, module), name)
            if name.endswith(ZERO_BIAS):
                assert module.bias.abs().max() == 0, f"{name}.bias"
            elif module.bias is not None:
                assert_uniform(module.bias, 1 / math.sqrt(module.in_features), f"{name}.bias")
        elif isinstance(module, nn.Linear):
            pytest.fail(f"{name} is a plain nn.Linear: transformers would give it its own initial values")
        elif isinstance(module, nn.Conv2d):
            cells = module.kernel_size[0] * module.kernel_size[1]
            bound = math.sqrt(6 / (cells * (module.in_channels + module.out_channels)))
            assert_uniform(module.weight, bound, name)
            assert module.bias.abs().max() == 0, f"{name}.bias"
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert linears == 2 * 13
    proposals = model.model.proposals
    torch.testing.assert_close(proposals.boxes.detach(), proposals.initial_boxes(), rtol=0, atol=0)
    assert proposals.features.mean().item() == pytest.approx(0.0, abs=0.2)
    assert proposals.features.std().item() == pytest.approx(1.0, abs=0.15)


def test_a_model_from_scratch_has_the_released_initial_values():
    assert_initial(small_model())


def test_tensors_that_a_checkpoint_lacks_get_their_initial_values(tmp_path):
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    backbone = {k: v for k, v in load_file(file).items() if ".backbone." in k}
    save_file(backbone, file, metadata={"format": "pt"})
    loaded = DrmmForObjectDetection.from_pretrained(tmp_path)
    assert_initial(loaded)
    weights = [v for k, v in loaded.named_parameters() if ".backbone." in k]
    assert all((v == 7.0).all() for v in weights), "the backbone was in the checkpoint"


def test_the_backbone_starts_as_timm_starts_it():
    model = small_model()
    for name, module in model.model.backbone.named_modules():
        if isinstance(module, nn.Conv2d):  # timm: Kaiming normal by fan-out
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), name
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.running_mean == 0).all(), name
            assert (module.running_var == 1).all(), name


RELEASED = {
    family: json.loads((Path(__file__).parent / "reference" / f"{family}_init_stats.json").read_text())
    for family in ("drmm", "sparse_rcnn", "adamixer")
}
PRESET_OF = {"drmm": "drmm-sparse-rcnn-r50", "sparse_rcnn": "sparse-rcnn-r50", "adamixer": "adamixer-r50"}
# queries of the released models whose statistics these are
NUM_PROPOSALS = {"drmm": 300, "sparse_rcnn": 300, "adamixer": 100}


@pytest.fixture(scope="module")
def first_stage() -> dict[str, dict[str, torch.Tensor]]:
    """Tensors under the released names of models of the released widths with one stage, on a narrow backbone."""
    models = {}
    for family, preset in PRESET_OF.items():
        torch.manual_seed(0)
        fields = {"num_stages": 1, "num_proposals": NUM_PROPOSALS[family], "num_labels": 80}
        narrow = {"channels": [8, 8, 16, 16], "stem_width": 8}
        config = DrmmConfig.from_preset(preset, **fields, backbone_kwargs=narrow)
        models[family] = released_state_dict(DrmmForObjectDetection(config))
    return models


@pytest.mark.parametrize("family", RELEASED)
def test_a_full_stage_has_the_released_tensors(first_stage, family):
    ours = {name for name in first_stage[family] if not name.startswith("backbone.")}
    assert ours == set(RELEASED[family])


# the laterals read the backbone, whose channels this test does not pay for
@pytest.mark.parametrize(
    ("family", "name"),
    [(f, name) for f, stats in RELEASED.items() for name in stats if not name.startswith("neck.lateral_convs")],
)
def test_statistics_of_a_full_stage_equal_the_released_ones(first_stage, family, name):
    std, low, high = RELEASED[family][name]
    tensor = first_stage[family][name].float()
    if low == high:
        assert (tensor == low).all()
        return
    if name.endswith("iof_tau"):  # eight uniform numbers
        assert 0 <= tensor.min() <= tensor.max() <= 4
        assert tensor.unique().numel() == 8
        return
    # four standard errors of the difference of two samples' deviations, for uniform numbers
    few = max(0.01, 4 * math.sqrt(0.4 / tensor.numel()))
    assert tensor.std().item() == pytest.approx(std, rel=few)
    normal = name.endswith("features.weight")
    assert tensor.min().item() == pytest.approx(low, rel=0.15 if normal else few)
    assert tensor.max().item() == pytest.approx(high, rel=0.15 if normal else few)


@pytest.mark.parametrize(("count", "columns", "rows"), [(300, 20, 15), (12, 4, 3), (64, 9, 8)])
def test_proposals_start_as_a_row_major_grid(count, columns, rows):
    boxes = small_model(num_proposals=count, proposal_size=0.5, num_stages=1).model.proposals.boxes.detach()
    index = torch.arange(count)
    torch.testing.assert_close(boxes[:, 0], (index % columns + 0.5) / columns)
    torch.testing.assert_close(boxes[:, 1], (torch.div(index, columns, rounding_mode="floor") + 0.5) / rows)
    assert (boxes[:, 2:] == 0.5).all()
    if count == 300:  # the released rpn_head.init_proposal_bboxes.weight
        assert boxes.std(correction=0).item() == pytest.approx(0.203854, abs=2e-4)
        assert (boxes.min().item(), boxes.max().item()) == pytest.approx((0.025, 0.975))


def test_proposals_can_start_as_the_whole_image():
    boxes = small_model(proposal_init="full_image").model.proposals.boxes.detach()
    torch.testing.assert_close(boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(12, 4))
