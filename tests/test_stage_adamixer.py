"""The parts of an AdaMixer stage against their definitions, written out one query at a time."""

import math

import pytest
import torch

from drmm_hf import DrmmConfig
from drmm_hf.decoder import ScaleSpace
from drmm_hf.stage_adamixer import AdaMixerStage, IntersectionBias, position_encoding, sample_3d

STRIDES = (4, 8, 16, 32)


def test_position_encoding_is_sines_and_cosines_of_the_four_coordinates() -> None:
    x, y, z, r = 320.0, 40.0, 5.5, -0.5
    encoding = position_encoding(torch.tensor([[[x, y, z, r]]]), 16)[0, 0]
    expected = []
    for value in (x / 1000, y / 1000, z, r):
        for pair in range(2):
            angle = value / 10000 ** (2 * pair / 4)
            expected += [math.sin(angle), math.cos(angle)]
    torch.testing.assert_close(encoding, torch.tensor(expected))


def test_intersection_bias_is_the_log_of_the_covered_share() -> None:
    bias = IntersectionBias(2)
    with torch.no_grad():
        bias.tau.copy_(torch.tensor([1.0, 3.0]))
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 25.0, 10.0], [40.0, 40.0, 50.0, 50.0]]])
    share = torch.tensor([[1.0, 0.5, 0.0], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.log(share + 1e-7)
    torch.testing.assert_close(bias(boxes)[0], torch.stack((expected, 3 * expected)))


def test_an_empty_box_has_a_finite_bias() -> None:
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 9.0, 9.0]]], requires_grad=True)
    bias = IntersectionBias(1)(boxes)
    bias.sum().backward()
    assert torch.isfinite(bias).all()
    assert torch.isfinite(boxes.grad).all()


class TestSampling:
    @staticmethod
    def ramps(channels: int) -> list[torch.Tensor]:
        """Maps of a 128x64 image that hold the x coordinate of each cell in pixels, plus 1000 times the channel."""
        maps = []
        for stride in STRIDES:
            x = (torch.arange(128 // stride) + 0.5) * stride
            channel = 1000.0 * torch.arange(channels).view(1, -1, 1, 1)
            maps.append((x + channel).expand(1, channels, 64 // stride, 128 // stride).contiguous())
        return maps

    def test_every_level_gives_the_coordinate_of_the_point(self) -> None:
        points = torch.tensor([[50.0, 30.0, 2.0], [70.0, 33.0, 4.5], [64.0, 20.0, 9.0]]).view(1, 3, 1, 1, 3)
        values = sample_3d(self.ramps(2), STRIDES, points).view(3, 2)
        expected = torch.tensor([[50.0, 1050.0], [70.0, 1070.0], [64.0, 1064.0]])
        torch.testing.assert_close(values, expected)

    @pytest.mark.parametrize("z", [2.0, 3.0, 4.2])
    def test_levels_are_weighted_by_the_distance_in_log_scale(self, z: float) -> None:
        maps = [torch.full((1, 1, 64 // s, 128 // s), float(i)) for i, s in enumerate(STRIDES)]
        value = sample_3d(maps, STRIDES, torch.tensor([[[[[64.0, 32.0, z]]]]])).item()
        weights = [math.exp(-((z - math.log2(s)) ** 2) / 2) for s in STRIDES]
        assert value == pytest.approx(sum(i * w for i, w in enumerate(weights)) / sum(weights), rel=1e-5)

    def test_a_group_reads_its_share_of_the_channels(self) -> None:
        points = torch.tensor([[40.0, 30.0, 3.0], [80.0, 30.0, 3.0]]).view(1, 1, 2, 1, 3)
        values = sample_3d(self.ramps(4), STRIDES, points)
        assert values.shape == (1, 1, 2, 1, 2)
        expected = torch.tensor([[40.0, 1040.0], [2080.0, 3080.0]])
        torch.testing.assert_close(values[0, 0, :, 0], expected)

    def test_outside_the_image_there_is_nothing(self) -> None:
        values = sample_3d(self.ramps(2), STRIDES, torch.tensor([[[[[900.0, 900.0, 3.0]]]]]))
        assert values.abs().max() == 0

    def test_images_and_queries_keep_their_own_samples(self) -> None:
        maps = [torch.randn(2, 4, 64 // s, 128 // s) for s in STRIDES]
        points = torch.rand(2, 5, 2, 3, 3) * torch.tensor([128.0, 64.0, 5.0])
        together = sample_3d(maps, STRIDES, points)
        alone = sample_3d([m[1:] for m in maps], STRIDES, points[1:, 3:4])
        torch.testing.assert_close(together[1:, 3:4], alone)


def test_points_start_inside_the_box_one_octave_finer() -> None:
    config = DrmmConfig.from_preset("drmm-adamixer-tiny")
    stage = AdaMixerStage(config)
    box = torch.tensor([[[100.0, 50.0, 180.0, 90.0]]])
    region = ScaleSpace().encode(box)
    points = stage.sampling_points(torch.randn(1, 1, config.hidden_size), region)[0, 0]
    assert points.shape == (config.num_sampling_groups, config.num_sampling_points, 3)
    assert (points[..., 0] >= 100).all()
    assert (points[..., 0] <= 180).all()
    assert (points[..., 1] >= 50).all()
    assert (points[..., 1] <= 90).all()
    torch.testing.assert_close(points[..., 2], (region[0, 0, 2] - 1).expand_as(points[..., 2]))
