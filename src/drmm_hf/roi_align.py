"""RoIAlign over a feature pyramid: the features of each box, read from the level that fits its size.

The boxes receive no gradient, as in the released code. Two ways compute the same values. On a CPU every bin is a
weighted sum of a few cells, an embedding bag over the cells of the maps: several times faster than torchvision's
operator, forward and backward (docs/results/speed.md). Elsewhere, and in exported graphs, torchvision's operator runs
on all boxes and levels, so that no shape depends on data and nothing synchronises.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def pyramid_level(boxes: Tensor, num_levels: int, canonical_size: float) -> Tensor:
    """Pyramid level of each box: clamp(floor(log2(sqrt(w * h) / canonical_size + 1e-6)), 0, num_levels - 1).

    A box with w * h < 0 gets -1, no level at all: the released code's level is NaN there and the features stay
    zero. With w and h both negative the product is positive and the box is read mirrored.

    Args:
        boxes: (..., 4) xyxy, pixels of the network input.

    Returns:
        (...) int64.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    octave = torch.log2(area.clamp(min=0).sqrt() / canonical_size + 1e-6).floor()
    level = octave.clamp(0, num_levels - 1).long()
    return torch.where(area >= 0, level, -1)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    strides: Sequence[int],
    output_size: int = 7,
    sampling_ratio: int = 2,
    canonical_size: float = 56.0,
) -> Tensor:
    """RoIAlign (aligned, average) of every box on its pyramid level.

    Args:
        features: L maps (B, D, H_l, W_l), finest first.
        boxes: (B, K, 4) xyxy, pixels of the network input; detached here.
        strides: L strides of the maps, pixels per cell.
        output_size, sampling_ratio: bins along a side, samples per bin along a side.
        canonical_size: see `pyramid_level`.

    Returns:
        (B, K, output_size**2, D), row-major bins, in the type of the features.
    """
    # torchvision has no half-precision kernel on a CPU, and box coordinates need more than bfloat16's 8 bits.
    boxes, maps = boxes.detach().float(), [f.float() for f in features]
    level = pyramid_level(boxes, len(maps), canonical_size)
    if boxes.device.type != "cpu" or torch.compiler.is_exporting() or torch.jit.is_tracing():
        read = read_by_operator  # in compiled graphs, too, with torch 2.11, which takes them for exported ones
    else:
        read = read_by_one_table if torch.compiler.is_compiling() else read_by_tables
    return read(maps, boxes, level, strides, (output_size, sampling_ratio)).to(features[0].dtype)


def read_by_operator(
    features: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """torchvision's operator on all boxes and levels; another level's boxes lie off the map and read zeros.

    Arguments and result of this and the other two are those of `multilevel_roi_align`, with `level` (B, K) and
    `grid`, the bins along a side and the samples per bin along a side.
    """
    batch, num_boxes, _ = boxes.shape
    image = torch.arange(batch, device=boxes.device, dtype=boxes.dtype).repeat_interleave(num_boxes)
    pooled = []
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        own = torch.where((level == i).unsqueeze(-1), boxes, -1e4 * stride)
        regions = torch.cat((image.unsqueeze(-1), own.reshape(-1, 4)), dim=-1)
        pooled.append(roi_align(feature, regions, grid[0], 1.0 / stride, grid[1], aligned=True))
    return sum(pooled[1:], pooled[0]).flatten(2).transpose(1, 2).reshape(batch, num_boxes, grid[0] ** 2, -1)


def read_by_tables(
    features: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """Each bin as a bag of (2 * sampling_ratio)**2 weighted cells of its box's level.

    Level by level: one table of all maps would have to be written anew in every stage. Maps in the channels-last
    format are tables as they are.
    """
    batch, num_boxes, _ = boxes.shape
    image = torch.arange(batch).repeat_interleave(num_boxes)
    own, readable = level.flatten().clamp(min=0), level.flatten() >= 0
    pooled, members = [], []
    for i, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        chosen = (own == i).nonzero().squeeze(1)
        edges = boxes.flatten(0, 1)[chosen] / stride - 0.5
        height, width = feature.shape[-2:]
        first = image[chosen] * height * width
        pooled.append(_bins(_table(feature), edges, readable[chosen], first, height, width, grid))
        members.append(chosen)
    if len(features) == 1:  # all boxes, in their order
        return pooled[0].unflatten(0, (batch, num_boxes))
    place = torch.cat(members).argsort()
    return torch.cat(pooled)[place].unflatten(0, (batch, num_boxes))


def read_by_one_table(
    features: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """The same bags from one table of all levels, without a shape that depends on data.

    For compiled graphs, in which the table that all stages share is written once.
    """
    batch, num_boxes, _ = boxes.shape
    own = level.flatten().clamp(min=0)

    def of_level(values: Sequence[float]) -> Tensor:
        chosen = own.new_full(own.shape, values[0])
        for i, value in enumerate(values[1:], start=1):
            chosen = torch.where(own == i, value, chosen)
        return chosen

    heights, widths = ([feature.shape[axis] for feature in features] for axis in (-2, -1))
    height, width = of_level(heights), of_level(widths)
    sizes = [batch * rows * columns for rows, columns in zip(heights, widths, strict=True)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    image = torch.arange(batch).repeat_interleave(num_boxes)
    edges = boxes.flatten(0, 1) / of_level(strides).unsqueeze(-1) - 0.5
    first = of_level(starts) + image * height * width
    table = torch.cat([_table(feature) for feature in features])
    return _bins(table, edges, level.flatten() >= 0, first, height, width, grid).unflatten(0, (batch, num_boxes))


def _table(feature: Tensor) -> Tensor:
    """(B, D, H, W) as rows of one cell each, (B * H * W, D)."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def _bins(
    table: Tensor,
    edges: Tensor,
    readable: Tensor,
    first: Tensor,
    height: int | Tensor,
    width: int | Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """The bins (R, output_size**2, D) of R boxes.

    Args:
        table: one row for each cell.
        edges: (R, 4) xyxy in cells, the center of cell 0 at 0.
        readable: (R,), False for a box that reads zeros.
        first: (R,) the row of the first cell of each box's map.
        height, width: of the maps, one or (R,).
    """
    rows, weight_y = _axis_cells(edges[:, 1], edges[:, 3], height, grid)
    columns, weight_x = _axis_cells(edges[:, 0], edges[:, 2], width, grid)
    rows = rows * _beside(width, 2) + _beside(first, 2)
    weight_y = weight_y * _beside(readable, 2)
    # (boxes, bin row, bin column, cell row, cell column)
    index = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    bag = (2 * grid[1]) ** 2
    bins = F.embedding_bag(index.view(-1, bag), table, per_sample_weights=weight.view(-1, bag), mode="sum")
    return bins.unflatten(0, (len(edges), grid[0] ** 2))


def _axis_cells(start: Tensor, end: Tensor, size: int | Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cells that the bins of one axis read, and their weights: (R, output_size, 2 * sampling_ratio) each.

    Args:
        start, end: (R,) edges of the boxes in cells, the center of cell 0 at 0.
        size: number of cells of the axis, one or (R,).
    """
    output_size, sampling_ratio = grid
    num_samples = output_size * sampling_ratio
    offsets = (torch.arange(num_samples, dtype=start.dtype) + 0.5) / num_samples
    position = start.unsqueeze(-1) + (end - start).unsqueeze(-1) * offsets
    size = _beside(size, 1)
    inside = (position >= -1.0) & (position <= size)  # the operator's own margin
    position = position.nan_to_num().clamp(min=0).clamp(max=size - 1)
    lower = position.floor()
    upper_weight = position - lower
    cells = torch.stack((lower, (lower + 1).clamp(max=size - 1)), dim=-1).long()
    weights = torch.stack((1 - upper_weight, upper_weight), dim=-1) * inside.unsqueeze(-1) / sampling_ratio
    shape = (output_size, 2 * sampling_ratio)
    return cells.flatten(-2).unflatten(-1, shape), weights.flatten(-2).unflatten(-1, shape)


def _beside(value: int | Tensor, axes: int) -> int | Tensor:
    """A number of each box (R,) with `axes` more axes; one for all as it is."""
    return value.view(-1, *[1] * axes) if isinstance(value, Tensor) else value
