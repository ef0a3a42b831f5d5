"""Reading regions: every way of computing them against torchvision's operator on each box's own level."""

import pytest
import torch
from torchvision.ops import roi_align

from drmm_hf.roi_align import (
    multilevel_roi_align,
    pyramid_level,
    read_by_one_table,
    read_by_operator,
    read_by_tables,
)

STRIDES = [4, 8, 16, 32]


def pyramid(height: int = 128, width: int = 192, dim: int = 5, batch: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, dim, height // s, width // s, generator=g) for s in STRIDES]


def boxes_of_every_kind() -> torch.Tensor:
    """(2, 60, 4): every level, across and outside the border, inverted, mirrored, empty and huge."""
    g = torch.Generator().manual_seed(1)
    center = torch.rand(2, 50, 2, generator=g) * torch.tensor([260.0, 200.0]) - 30
    size = torch.exp(torch.rand(2, 50, 2, generator=g) * 5.5)
    ordinary = torch.cat((center - size / 2, center + size / 2), dim=-1)
    special = torch.tensor(
        [
            [50.0, 20.0, 10.0, 90.0],  # w < 0: no level
            [10.0, 90.0, 50.0, 20.0],  # h < 0: no level
            [150.0, 90.0, 20.0, 10.0],  # both: mirrored
            [30.0, 30.0, 30.0, 30.0],
            [30.0, 30.0, 60.0, 30.0],
            [-900.0, -900.0, -800.0, -800.0],
            [900.0, 900.0, 1000.0, 1000.0],
            [-5000.0, -5000.0, 5000.0, 5000.0],
            [0.0, 0.0, 192.0, 128.0],
            [-50.0, -60.0, 200.0, 190.0],
            [188.0, 124.0, 196.0, 132.0],
        ]
    )
    return torch.cat((ordinary, special.expand(2, -1, -1)), dim=1)


def one_by_one(features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """The operator called for each box alone, on its level; zeros where there is none."""
    levels = pyramid_level(boxes, len(features), 56.0)
    rows = []
    for image in range(len(boxes)):
        for box, level in zip(boxes[image], levels[image].tolist(), strict=True):
            if level < 0:
                rows.append(features[0].new_zeros(features[0].shape[1], 7, 7))
                continue
            map_ = features[level][image : image + 1]
            rows.append(roi_align(map_, [box[None]], 7, 1 / STRIDES[level], 2, aligned=True)[0])
    return torch.stack(rows).flatten(2).transpose(1, 2).view(*boxes.shape[:2], 49, -1)


@pytest.mark.parametrize("pool", [read_by_tables, read_by_one_table, read_by_operator])
def test_values_and_gradients_equal_the_operator(pool) -> None:
    boxes = boxes_of_every_kind()
    levels = pyramid_level(boxes, 4, 56.0)
    assert set(levels.unique().tolist()) == {-1, 0, 1, 2, 3}
    expected_leaves = [f.requires_grad_() for f in pyramid()]
    leaves = [f.requires_grad_() for f in pyramid()]
    expected = one_by_one(expected_leaves, boxes)
    pooled = pool(leaves, boxes, levels, STRIDES, (7, 2))
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (pooled * weights).sum().backward()
    for ours, theirs in zip(leaves, expected_leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [20.0, 300.0])
def test_levels_without_a_box(size: float) -> None:
    boxes = torch.tensor([[[30.0, 20.0, 30.0 + size, 20.0 + size]] * 3] * 2)
    assert len(set(pyramid_level(boxes, 4, 56.0).flatten().tolist())) == 1
    torch.testing.assert_close(
        multilevel_roi_align(pyramid(), boxes, STRIDES), one_by_one(pyramid(), boxes), atol=2e-5, rtol=1e-5
    )


def test_level_changes_at_every_octave() -> None:
    sides = torch.tensor([1.0, 111.0, 112.5, 223.0, 225.0, 447.0, 449.0, 5000.0])
    boxes = torch.stack((torch.zeros(8), torch.zeros(8), sides, sides), dim=-1)
    assert pyramid_level(boxes, 4, 56.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pyramid_level(boxes, 1, 56.0).tolist() == [0] * 8
    inverted = torch.tensor([[10.0, 0.0, 0.0, 10.0], [0.0, 10.0, 10.0, 0.0], [200.0, 200.0, 0.0, 0.0]])
    assert pyramid_level(inverted, 4, 56.0).tolist() == [-1, -1, 1]


def test_boxes_get_no_gradient_and_features_keep_their_type() -> None:
    features, boxes = pyramid(), boxes_of_every_kind().requires_grad_()
    pooled = multilevel_roi_align([f.bfloat16().requires_grad_() for f in features], boxes, STRIDES)
    assert pooled.dtype == torch.bfloat16
    pooled.float().sum().backward()
    assert boxes.grad is None
    exact = multilevel_roi_align(features, boxes.detach(), STRIDES)
    torch.testing.assert_close(pooled.float(), exact, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 6), (5, 1), (1, 1)])
def test_maps_of_one_row_or_column(height: int, width: int) -> None:
    feature = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.0, 0.0, 40.0, 30.0], [5.0, 5.0, 12.0, 9.0]]])
    level = torch.zeros(1, 2, dtype=torch.long)
    expected = read_by_operator([feature], boxes, level, [8], (3, 2))
    for pool in (read_by_tables, read_by_one_table):
        torch.testing.assert_close(pool([feature], boxes, level, [8], (3, 2)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.no_cover
def test_compiled_in_one_graph_for_all_sizes() -> None:
    def read(features: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        return multilevel_roi_align(features, boxes, STRIDES)

    compiled = torch.compile(read, fullgraph=True, dynamic=True, backend="aot_eager")
    boxes = boxes_of_every_kind()
    for size in ((128, 192), (160, 256)):
        leaves, expected_leaves = ([f.requires_grad_() for f in pyramid(*size)] for _ in range(2))
        pooled, expected = compiled(leaves, boxes), read(expected_leaves, boxes)
        torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=1e-5)
        pooled.square().sum().backward()
        expected.square().sum().backward()
        for ours, theirs in zip(leaves, expected_leaves, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
