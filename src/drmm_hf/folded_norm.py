"""BatchNorm with fixed statistics as part of the convolution before it: on a CPU, one pass over the map less.

A norm that is not in training mode multiplies and shifts each channel by numbers that do not depend on the image, so
they go into the convolution's weight and bias, anew in every call: nothing can be stale, the names in a state dict and
the gradients stay as they are, and the map between the two is never written. On a GPU the few small operations for the
weights would cost more launches than the norm itself, so there it stays.
"""

import itertools
from collections.abc import Iterator

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class _FoldableBatchNorm2d(nn.BatchNorm2d):
    def is_folded(self, device: torch.device) -> bool:
        return device.type == "cpu" and not self.training

    def forward(self, input: Tensor) -> Tensor:
        return input if self.is_folded(input.device) else super().forward(input)


class _FoldableFrozenBatchNorm2d(FrozenBatchNorm2d):
    def is_folded(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def forward(self, x: Tensor) -> Tensor:
        return x if self.is_folded(x.device) else super().forward(x)


_FOLDABLE = {nn.BatchNorm2d: _FoldableBatchNorm2d, FrozenBatchNorm2d: _FoldableFrozenBatchNorm2d}
_FOLDED = (_FoldableBatchNorm2d, _FoldableFrozenBatchNorm2d)


class _FoldingConv2d(nn.Conv2d):
    # The norm is looked up where it stands, because others may replace it, as conversions to SyncBatchNorm do.
    norm_place: tuple[nn.Module, str]

    def forward(self, input: Tensor) -> Tensor:
        parent, name = self.norm_place
        norm = getattr(parent, name)
        if not isinstance(norm, _FOLDED) or not norm.is_folded(input.device):
            return super().forward(input)
        assert norm.running_mean is not None  # checked when they were paired
        assert norm.running_var is not None
        # in float32 at least, as BatchNorm computes for maps of half precision
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
        shift = norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        weight = self.weight.to(exact) * scale[:, None, None, None]
        return self._conv_forward(input, weight.to(self.weight.dtype), shift.to(self.weight.dtype))


def fold_batch_norms(model: nn.Module) -> int:
    """Let the convolutions of a timm ResNet include the BatchNorm after them whenever its statistics are fixed.

    Changes the classes of the modules in place, neither their parameters nor their names. Other networks stay as they
    are, and so does what does not fit: a convolution with a bias, a norm without scale or statistics.

    Returns:
        number of pairs.
    """
    pairs = 0
    for parent, conv_name, norm_name in _neighbours(model):
        conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
        known = type(conv) is nn.Conv2d and conv.bias is None and type(norm) in _FOLDABLE
        if not known or norm.weight is None or norm.running_var is None:
            continue
        conv.__class__, norm.__class__ = _FoldingConv2d, _FOLDABLE[type(norm)]
        conv.norm_place = (parent, norm_name)
        pairs += 1
    return pairs


def _neighbours(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Names of convolutions and of the norms that are known to follow them directly, and the module that has both."""
    for module in model.modules():
        children = dict(module.named_children())
        # the last: a ResNet inside of timm's wrapper for its maps
        if type(module) in (BasicBlock, Bottleneck, ResNet) or {"conv1", "bn1", "act1", "layer1"} <= set(children):
            for number in (1, 2, 3):
                if {f"conv{number}", f"bn{number}"} <= set(children):
                    yield module, f"conv{number}", f"bn{number}"
            if isinstance(children.get("downsample"), nn.Sequential):
                names = list(dict(children["downsample"].named_children()))
                for first, second in itertools.pairwise(names):
                    yield children["downsample"], first, second
