"""Maps of a backbone to maps of equal width: Sparse R-CNN's feature pyramid, AdaMixer's channel mapping."""

from torch import Tensor, nn
from torch.nn import functional as F


class DrmmFeaturePyramid(nn.Module):
    """Feature pyramid network: 1x1 laterals, nearest upsampling, 3x3 outputs; no norm, no activation.

    Computes only the levels that are read.
    """

    def __init__(self, channels: list[int], hidden_size: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.finest = min(levels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, hidden_size, 1) for c in channels[self.finest :])
        self.outputs = nn.ModuleList(nn.Conv2d(hidden_size, hidden_size, 3, padding=1) for _ in levels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        merged = [lateral(m) for lateral, m in zip(self.laterals, maps[self.finest :], strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        return [output(merged[level - self.finest]) for output, level in zip(self.outputs, self.levels, strict=True)]


class DrmmChannelMapping(nn.Module):
    """A 1x1 convolution per level and one group normalisation that the levels share; nothing flows between levels."""

    def __init__(self, channels: list[int], hidden_size: int, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.laterals = nn.ModuleList(nn.Conv2d(channels[level], hidden_size, 1) for level in levels)
        self.norm = nn.GroupNorm(hidden_size // 8, hidden_size)  # 32 groups of the released 256 channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.norm(lateral(maps[level])) for lateral, level in zip(self.laterals, self.levels, strict=True)]
