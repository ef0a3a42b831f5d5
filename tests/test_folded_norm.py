"""BatchNorm inside of the convolution before it gives what both give one after the other."""

import copy

import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from drmm_hf import DrmmForObjectDetection
from drmm_hf.folded_norm import fold_batch_norms
from model_fixtures import small_config


def network(name: str = "resnet26", frozen: bool = False, **kwargs) -> nn.Module:
    model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **kwargs)
    if frozen:
        model = freeze_batch_norm_2d(model)
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if hasattr(module, "running_var"):
            for values, low, high in (
                ("running_mean", -1, 1),
                ("running_var", 0.3, 3),
                ("weight", 0.3, 2),
                ("bias", -1, 1),
            ):
                getattr(module, values).data.uniform_(low, high, generator=draw)
    return model


def pair(**kwargs) -> tuple[nn.Module, nn.Module]:
    """A network and its folded copy."""
    plain = network(**kwargs)
    folded = copy.deepcopy(plain)
    assert fold_batch_norms(folded) > 0
    return plain, folded


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("name", "pairs"),
    [("resnet18", 20), ("resnet26", 29), ("resnet50", 53), ("resnet18d", 19), ("swin_tiny_patch4_window7_224", 0)],
)
def test_pairs_that_are_found(name: str, pairs: int) -> None:
    """18d has a stem of three convolutions: its last norm only is beside the stem, and its shortcuts pool first."""
    model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3) if "swin" in name else (1, 2, 3, 4))
    assert fold_batch_norms(model) == pairs
    assert fold_batch_norms(model) == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_same_maps_and_same_names(frozen: bool, images: torch.Tensor) -> None:
    plain, folded = pair(frozen=frozen)
    assert list(folded.state_dict()) == list(plain.state_dict())
    for model in (plain, folded):
        model.eval()
    calls = []
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: calls.append(float(output.detach().std())))
    assert_same(folded(images), plain(images))
    raw = []
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: raw.append(float(output.detach().std())))
    plain(images)
    assert all(abs(a - b) > 1e-3 * b for a, b in zip(calls, raw, strict=True)), "the convolutions do the norms' work"


@pytest.mark.parametrize("frozen", [False, True])
def test_same_gradients(frozen: bool, images: torch.Tensor) -> None:
    """In float64, with the statistics fixed and all parameters trained."""
    plain, folded = (model.double().eval() for model in pair(frozen=frozen))
    for model in (plain, folded):
        sum(values.square().mean() for values in model(images.double())).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert {name for name, _ in folded.named_parameters()} == set(expected)
    for name, parameter in folded.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_in_training_mode_the_statistics_move_as_before(images: torch.Tensor) -> None:
    plain, folded = pair()
    assert_same(folded.train()(images), plain.train()(images))
    for name, value in plain.state_dict().items():
        assert torch.equal(folded.state_dict()[name], value), name
    folded.layer1.eval()  # some fixed, some not
    plain.layer1.eval()
    assert_same(folded(images), plain(images))


def test_a_norm_that_is_replaced_is_not_folded(images: torch.Tensor) -> None:
    plain, folded = pair()
    replaced = convert_sync_batchnorm(folded).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in replaced.modules())
    assert_same(replaced(images), plain.eval()(images))


def test_a_copy_reads_its_own_norms(images: torch.Tensor) -> None:
    _, folded = pair()
    twin = copy.deepcopy(folded).eval()
    before = twin(images)
    for module in folded.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(1.0)
    assert_same(twin(images), before)


def test_half_precision(images: torch.Tensor) -> None:
    plain, folded = (model.eval() for model in pair())
    with torch.autocast("cpu", torch.bfloat16):
        found = folded(images)
    exact = plain(images)
    assert found[-1].dtype == torch.bfloat16
    for ours, theirs in zip(found, exact, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.05
    half = folded.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert float((half[-1] - exact[-1]).norm() / exact[-1].norm()) < 0.05


def test_the_detector_s_backbone_is_folded() -> None:
    model = DrmmForObjectDetection(small_config())
    assert fold_batch_norms(model.model.backbone.model) == 0, "already done"
    assert any(type(module).__name__ == "_FoldingConv2d" for module in model.modules())
