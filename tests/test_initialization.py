"""Initial values, from scratch and where a checkpoint lacks tensors: those of the authors' released code."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.layers_drmm import XavierLinear
from model_fixtures import small_config, small_model

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


# Released init_weights() of the first head with seed 0, measured on the authors' code (lhj815/D-RMM at 2c64057):
# name here -> standard deviation, largest absolute value.
RELEASED = {
    "stages.0.self_attn.qkv_proj.weight": (0.044191, 0.076547),
    "stages.0.self_attn.o_proj.weight": (0.062372, 0.108250),
    "stages.0.dynamic_conv.dynamic_layer.weight": (0.0077841, 0.0134791),
    "stages.0.dynamic_conv.dynamic_layer.bias": (0.036056, 0.0624966),
    "stages.0.dynamic_conv.out_layer.weight": (0.0124926, 0.0216506),
    "stages.0.dynamic_conv.out_layer.bias": (0.0051869, 0.0088990),
    "stages.0.fc1.weight": (0.029476, 0.051031),
    "stages.0.fc1.bias": (0.036556, 0.0624951),
    "stages.0.fc2.weight": (0.029468, 0.051031),
    "stages.0.fc2.bias": (0.012957, 0.0220714),
    "heads.0.class_layers.0.linear.weight": (0.062493, 0.108250),
    "heads.0.box_layers.2.linear.weight": (0.062456, 0.108253),
    "heads.0.classifier.weight": (0.077280, 0.133426),
    "heads.0.objectness.weight": (0.077280, 0.133426),
    "heads.0.box.weight": (0.086369, 0.150678),
    "pyramid.outputs.0.weight": (0.020831, 0.036084),
    "proposals.features": (1.001641, 4.846832),
}


@pytest.fixture(scope="module")
def full_width() -> dict[str, torch.Tensor]:
    """One stage of the paper's widths, on a small backbone."""
    backbone = small_config().backbone_config
    config = DrmmConfig(backbone_config=backbone, num_stages=1, pyramid_levels=[3])
    return dict(DrmmForObjectDetection(config).model.named_parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_statistics_of_a_full_stage_equal_the_released_ones(full_width, name):
    std, largest = RELEASED[name]
    # samples of a few hundred values spread by some per cent
    few = 0.12 if full_width[name].numel() < 2000 else 0.03
    assert full_width[name].std().item() == pytest.approx(std, rel=few)
    assert full_width[name].abs().max().item() == pytest.approx(largest, rel=0.12 if "features" in name else few)


@pytest.mark.parametrize(("count", "columns", "rows"), [(300, 20, 15), (12, 4, 3), (64, 9, 8)])
def test_proposals_start_as_a_row_major_grid(count, columns, rows):
    boxes = small_model(num_proposals=count, proposal_size=0.5, num_stages=1).model.proposals.boxes.detach()
    index = torch.arange(count)
    torch.testing.assert_close(boxes[:, 0], (index % columns + 0.5) / columns)
    torch.testing.assert_close(boxes[:, 1], (torch.div(index, columns, rounding_mode="floor") + 0.5) / rows)
    assert (boxes[:, 2:] == 0.5).all()


def test_released_grid_statistics():
    boxes = small_model(num_proposals=300, proposal_size=0.5, num_stages=1).model.proposals.boxes.detach()
    # the released rpn_head.init_proposal_bboxes.weight
    assert boxes.std(correction=0).item() == pytest.approx(0.203854, abs=2e-4)
    assert (boxes.min().item(), boxes.max().item()) == pytest.approx((0.025, 0.975))


def test_proposals_can_start_as_the_whole_image():
    boxes = small_model(proposal_init="full_image").model.proposals.boxes.detach()
    torch.testing.assert_close(boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]).expand(12, 4))


def test_seed_decides_the_initial_values():
    def weights(seed: int) -> torch.Tensor:
        return small_model(seed=seed).model.stages[0].fc1.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
