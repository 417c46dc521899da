"""The threshold of near-duplicates: few chance pairs, copies found, also where all images are similar."""

from __future__ import annotations

import pytest
import torch

from opendino.features.duplicate_threshold import EQUAL, cosine_distribution
from opendino.features.near_duplicates import near_duplicates


def spread(num: int, common: float, dimensions: int = 6) -> torch.Tensor:
    """Random vectors of some intrinsic dimension that all point to one side, the more so the larger `common` is."""
    x = torch.randn(num, dimensions) @ torch.randn(dimensions, 64)
    x[:, 0] += 1
    return x + common * torch.nn.functional.normalize(torch.randn(64), dim=0)


@pytest.mark.parametrize("common", [0.0, 20.0, 200.0])
@pytest.mark.parametrize("num", [100, 1000])
def test_hardly_any_pair_by_chance_and_copies_are_found(num: int, common: float) -> None:
    vectors = spread(num, common)
    threshold = cosine_distribution(vectors).threshold
    assert sum(len(group.indices) for group in near_duplicates(vectors, threshold)) <= 8
    if common == 200:
        assert len(near_duplicates(vectors, 0.95)[0].indices) == num  # a fixed threshold takes all of them
    copied = torch.cat([vectors, vectors[:30] + 1e-3 * torch.randn(30, 64)])
    groups = near_duplicates(copied, cosine_distribution(copied).threshold)
    assert sum((row, num + row) == group.indices for group in groups for row in range(30)) >= 25


def test_a_set_of_exact_copies_and_a_small_one_have_only_equal_vectors() -> None:
    twice = torch.randn(5, 8).repeat(40, 1)
    assert cosine_distribution(twice).threshold == EQUAL
    assert cosine_distribution(torch.randn(30, 8)).threshold == EQUAL
    assert cosine_distribution(torch.eye(2)).nearest == pytest.approx((0,) * 4, abs=1e-6)


def test_the_quantiles_are_of_the_nearest_other_image() -> None:
    angles = torch.arange(101).double() ** 2 / 1e4
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    found = cosine_distribution(vectors)
    gaps = angles.diff()
    nearest = torch.cat([gaps[:1], torch.minimum(gaps[1:], gaps[:-1]), gaps[-1:]]).cos()
    expected = nearest.quantile(torch.tensor([0.05, 0.5, 0.95, 1]).double()).tolist()
    assert found.nearest == pytest.approx(expected, abs=1e-9)
