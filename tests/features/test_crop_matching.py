"""Crop matching: crops that share no pixel, no help from color, and a rate whose values are known."""

from __future__ import annotations

import math

import pytest
import torch

from opendino.data.sources.toy import ToySource
from opendino.features import pixels
from opendino.features.crop_matching import disjoint_crops, in_gray, match_rate
from opendino.features.pixel_baseline import color_histogram


def toys(num: int) -> torch.Tensor:
    source = ToySource("colorful", n=num, size=32)
    return torch.stack([torch.from_numpy(source.read(n)).permute(2, 0, 1) for n in range(num)])


@pytest.mark.parametrize("side", [32, 33])
def test_the_two_crops_share_no_pixel(side: int) -> None:
    """In each quarter of the image another brightness: the two crops of an image never show the same half."""
    images = torch.zeros(64, 3, side, side, dtype=torch.uint8)
    half = side // 2
    for number in range(32):
        images[number, :, :half] = 200  # upper half bright
        images[32 + number, :, :, :half] = 200
    one, other = disjoint_crops(images)
    assert one.shape == other.shape == images.shape and one.dtype == torch.uint8
    apart = (one.float().mean((1, 2, 3)) - other.float().mean((1, 2, 3))).abs()
    assert (apart > 60).sum() > 16, "about half of the images are cut along the edge"
    assert torch.equal(disjoint_crops(images), torch.stack([one, other])), "the same crops every time"
    assert not torch.equal(disjoint_crops(images, seed=1)[0], one)


def test_color_tells_little_about_the_image() -> None:
    images = toys(128)
    crops = disjoint_crops(images)
    assert match_rate(*(color_histogram(each) for each in crops)) > 95
    gray = in_gray(crops)
    assert gray.shape == crops.shape and gray.dtype == torch.uint8 and torch.equal(gray, in_gray(crops))
    assert ((gray.amax(2).int() - gray.amin(2).int()) <= 1).all(), "no color is left"
    assert match_rate(*(color_histogram(each) for each in gray)) < 75


def test_equal_crops_are_perfect_and_equal_features_are_chance() -> None:
    features = pixels(toys(20))
    assert match_rate(features, features) == 100
    assert match_rate(torch.ones(20, 4), torch.ones(20, 4)) == 50
    assert match_rate(torch.zeros(20, 4), torch.zeros(20, 4)) == 50
    assert 40 < match_rate(torch.randn(300, 8), torch.randn(300, 8)) < 60


def test_the_rate_counts_pairs_in_both_directions() -> None:
    one = torch.eye(3)
    other = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # images 1 and 2 find each other, not themselves
    # Of 12 comparisons image 0 wins 4; images 1 and 2 tie with image 0 (cosine 0) and lose against each other.
    assert match_rate(one, other) == pytest.approx(100 * (4 + 4 / 2) / 12)


def test_without_two_images_or_finite_features_there_is_no_rate() -> None:
    assert math.isnan(match_rate(torch.ones(1, 4), torch.ones(1, 4)))
    assert math.isnan(match_rate(torch.full((3, 4), math.nan), torch.ones(3, 4)))


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.uint8), (5, torch.uint16)])
def test_crops_of_any_channels_and_depth(channels: int, dtype: torch.dtype) -> None:
    values = torch.randint(256, (6, channels, 24, 24), generator=torch.Generator().manual_seed(0))
    images = (values * 257 if dtype == torch.uint16 else values).to(dtype)
    for crops in (disjoint_crops(images), in_gray(disjoint_crops(images))):
        assert crops.shape == (2, *images.shape) and crops.dtype == dtype
        assert crops.int().max() > 0.5 * torch.iinfo(dtype).max, "16 bits keep their range"
