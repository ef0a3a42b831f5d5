"""Backbones: what is frozen, which statistics move, other architectures, and pretrained weights from a file."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForObjectDetection, ConvNextConfig, ResNetConfig, SwinConfig

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from model_fixtures import inputs, small_model

NARROW = {"hidden_size": 32, "decoder_ffn_dim": 32, "dynamic_dim": 8, "num_proposals": 6, "num_stages": 1}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET18 = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
SWIN = {"model_type": "timm_backbone", "backbone": "swin_tiny_patch4_window7_224", "out_indices": [0, 1, 2, 3]}
SWIN_KWARGS = {"strict_img_size": False, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


def narrow_model(**fields) -> DrmmForObjectDetection:
    torch.manual_seed(0)
    return DrmmForObjectDetection(DrmmConfig(**{**NARROW, "num_labels": 3, **fields}))


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_the_default_freezes_what_the_released_model_freezes():
    # 33 of the released model's 417 parameter tensors: the stem's 3 and the 30 of the first stage
    names = frozen(narrow_model())
    assert len(names) == 33
    stem = {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert {n.removeprefix("model.backbone.model._backbone.") for n in names if ".layer1." not in n} == stem


@pytest.mark.parametrize(
    ("fields", "first_trained"),
    [
        ({"backbone_config": RESNET18, "frozen_stages": 2}, "_backbone.layer3.0.conv1.weight"),
        ({"backbone_config": {**RESNET18, "out_indices": [2, 3, 4]}}, "_backbone.layer2.0.conv1.weight"),
        (
            {"backbone_config": SWIN, "backbone_kwargs": SWIN_KWARGS, "frozen_stages": 2},
            "_backbone.layers_2.downsample.norm.weight",
        ),
        (
            {"backbone_config": ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)},
            "encoder.stages.1.layers.0",
        ),
        (
            {"backbone_config": ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)},
            "encoder.stages.1.downsampling_layer",
        ),
        (
            {"backbone_config": SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=STAGES)},
            "swin.encoder.layers.1",
        ),
        ({"backbone_config": RESNET18, "frozen_stages": 0}, "_backbone.conv1.weight"),
    ],
)
def test_stages_are_frozen_in_order_with_the_stem(fields, first_trained):
    names = [name for name, _ in narrow_model(**fields).model.backbone.model.named_parameters()]
    model = narrow_model(**fields).model.backbone.model
    trained = [name for name in names if model.get_parameter(name).requires_grad]
    start = next(i for i, name in enumerate(names) if name.startswith(first_trained))
    assert trained == names[start:]


@pytest.mark.parametrize("count", [5, 9])
def test_more_frozen_stages_than_there_are_is_refused(count):
    with pytest.raises(ValueError, match=f"frozen_stages={count}: .* has 4 stages .*give at most 4, or 0 to train all"):
        narrow_model(backbone_config=RESNET18, frozen_stages=count)


@pytest.mark.parametrize("loader", [DrmmForObjectDetection, AutoModelForObjectDetection])
def test_loading_leaves_frozen_stages_frozen(tmp_path, loader):
    model = small_model(frozen_stages=2, backbone_norm="frozen")
    assert frozen(model)
    model.save_pretrained(tmp_path)
    loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert frozen(loaded) == frozen(model)


def test_a_step_changes_no_frozen_parameter_or_statistic():
    model = small_model(frozen_stages=1, backbone_norm="train").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**inputs()).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    network = "model.backbone.model._backbone."
    stem_and_first = (f"{network}conv1", f"{network}bn1", f"{network}layer1")
    assert not any(name.startswith(stem_and_first) for name in changed)
    assert f"{network}layer2.0.bn1.running_mean" in changed
    assert f"{network}layer2.0.bn1.weight" in changed


@pytest.mark.parametrize(
    ("mode", "statistics_move", "affine_trains"),
    [("train", True, True), ("eval", False, True), ("frozen", False, False)],
)
def test_norm_modes(mode, statistics_move, affine_trains):
    model = small_model(backbone_norm=mode, frozen_stages=0).train()
    network = model.model.backbone.model._backbone
    before = network.layer4[0].bn1.running_mean.clone()
    model(**inputs()).loss.backward()
    assert torch.equal(network.layer4[0].bn1.running_mean, before) != statistics_move
    gradient = network.layer4[0].bn1.weight
    assert (gradient.requires_grad and gradient.grad is not None) == affine_trains
    assert not any(m.training for m in model.eval().modules())


def test_maps_are_channels_first_whatever_the_backbone_gives():
    model = narrow_model(backbone_config=SWIN, backbone_kwargs=SWIN_KWARGS, frozen_stages=0)
    maps = model.model.backbone(torch.randn(1, 3, 96, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 24, 16), (1, 32, 12, 8), (1, 64, 6, 4), (1, 128, 3, 2)]


@pytest.mark.parametrize("backbone", [SWIN, ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)])
def test_other_backbones_detect_and_survive_saving(tmp_path, backbone):
    kwargs = SWIN_KWARGS if backbone is SWIN else None
    model = narrow_model(backbone_config=backbone, backbone_kwargs=kwargs).eval()
    model.save_pretrained(tmp_path)
    loaded = DrmmForObjectDetection.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": {**RESNET18, "backbone": "resnet999"}}, "backbone_config .*Unknown model"),
        ({"backbone_config": RESNET18, "backbone_kwargs": {"colour": 1}}, "backbone_kwargs={'colour': 1}: .*'colour'"),
        ({"backbone_config": RESNET18, "pyramid_levels": []}, r"pyramid_levels=\[\]: the backbone gives levels 0\.\.3"),
        ({"backbone_config": RESNET18, "pyramid_levels": [2, 1]}, r"pyramid_levels=\[2, 1\]: .*in ascending order"),
        ({"backbone_config": RESNET18, "pyramid_levels": [1, 1]}, r"pyramid_levels=\[1, 1\]: .*in ascending order"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        narrow_model(**fields)


@pytest.fixture
def timm_resnet18() -> nn.Module:
    """timm's own network with statistics that differ from a fresh one's."""
    network = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def test_weights_from_a_file_give_timms_features(tmp_path, timm_resnet18):
    file = tmp_path / "resnet18.safetensors"
    save_file(timm_resnet18.state_dict(), file)
    model = narrow_model(backbone_config=RESNET18).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = timm_resnet18(pixel_values)
        assert not torch.allclose(model.model.backbone(pixel_values)[3], expected[3], atol=1e-3)
        model.load_backbone(str(file))
        for ours, theirs in zip(model.model.backbone(pixel_values), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any("layer1" in name for name in frozen(model))


def test_weights_that_do_not_fit_are_refused(tmp_path, timm_resnet18):
    file = tmp_path / "resnet18.safetensors"
    save_file(timm_resnet18.state_dict(), file)
    with pytest.raises(ValueError, match=r"resnet18\.safetensors: the weights do not fit the backbone resnet10t"):
        small_model().load_backbone(str(file))
    file.write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"resnet18\.safetensors: damaged or cut off"):
        narrow_model(backbone_config=RESNET18).load_backbone(str(file))


def test_a_file_of_weights_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file; give a file of timm weights"):
        small_model().load_backbone(str(tmp_path / "none.safetensors"))


def test_without_a_connection_the_hubs_weights_are_named():
    with pytest.raises(FileNotFoundError, match=r"resnet18 cannot be fetched from the Hub .*give a local file"):
        narrow_model(backbone_config=RESNET18).load_backbone()


def test_a_backbone_of_transformers_takes_no_timm_weights(tmp_path):
    model = narrow_model(backbone_config=ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES))
    with pytest.raises(ValueError, match="the backbone is a ResNetBackbone of transformers"):
        model.load_backbone(str(tmp_path / "any.safetensors"))


def test_only_the_levels_that_are_read_are_computed():
    model = small_model(pyramid_levels=[1, 3]).model
    assert len(model.pyramid.laterals) == 3, "levels 1 to 3; the finest is not needed"
    maps = model.pyramid(model.backbone(torch.randn(1, 3, 64, 96)))
    assert [tuple(m.shape[-2:]) for m in maps] == [(8, 12), (2, 3)]


def test_the_pyramid_equals_its_definition():
    model = small_model(pyramid_levels=[0, 1, 2, 3]).model.eval()
    maps = model.backbone(torch.randn(1, 3, 64, 96))
    merged = [lateral(m) for lateral, m in zip(model.pyramid.laterals, maps, strict=True)]
    for i in (2, 1, 0):
        merged[i] = merged[i] + merged[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    for output, expected, conv in zip(model.pyramid(maps), merged, model.pyramid.outputs, strict=True):
        torch.testing.assert_close(output, conv(expected), atol=1e-5, rtol=1e-5)
