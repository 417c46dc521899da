"""Brightness, contrast, sharpness: known values, uniform p without a difference, and a fifth of brighter images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tests.factories import noise_image

from opendino.features.appearance import anderson_darling, appearance, appearance_test


def test_known_images_have_known_values() -> None:
    assert appearance(Image.new("RGB", (8, 6), (51, 51, 51))) == pytest.approx((0.2, 0, 0))
    checks = np.indices((20, 20)).sum(0) % 2 * 255
    assert appearance(Image.fromarray(checks.astype(np.uint8))) == pytest.approx((0.5, 0.5, 4.0))
    assert appearance(Image.new("L", (1, 1), 255)) == (1.0, 0.0, 0.0)
    sharp, soft = (appearance(image) for image in (noise_image(), noise_image().filter(ImageFilter.GaussianBlur(1))))
    assert soft[0] == pytest.approx(sharp[0], abs=0.02) and soft[2] < 0.2 * sharp[2]


def test_the_statistic_is_the_weighted_distance_of_the_two_distribution_functions() -> None:
    a, b = np.random.default_rng(0).normal(0, 1, 30), np.random.default_rng(1).normal(0.3, 2, 12)
    at = np.sort(np.concatenate([a, b]))[:-1]
    of_a, of_b, of_both = ((each[:, None] <= at).mean(0) for each in (a, b, np.concatenate([a, b])))
    integral = ((of_a - of_b) ** 2 / (of_both * (1 - of_both))).sum() / 42  # over the distribution of both
    in_a = torch.from_numpy(np.argsort(np.concatenate([a, b])) < 30)
    assert float(anderson_darling(in_a[None])) == pytest.approx(30 * 12 / 42 * integral)


@pytest.mark.parametrize("ties", [False, True])
def test_without_a_difference_the_smallest_p_is_uniform(ties: bool) -> None:
    torch.manual_seed(0)
    p, of_first = [], []
    for draw in range(500):
        values = torch.rand(45, 3)
        values[:, 1] += values[:, 0]  # measurements go together
        a, b = ((values * 3).floor() if ties else values).split([30, 15])
        found = appearance_test(a, b, 99, draw).p
        p.append(min(found))
        of_first.append(found[0])
    assert 0.46 < np.mean(p) < 0.54
    for level in (0.05, 0.25, 0.5):
        error = (level * (1 - level) / 500) ** 0.5
        assert abs(np.mean(np.array(p) <= level) - level) < 3.5 * error
        assert np.mean(np.array(of_first) <= level) < level + 3.5 * error  # corrected for the others, so it is less


def test_a_fifth_of_brighter_images_is_found() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.08, (850, 3)), rng.normal(0.5, 0.08, (250, 3))
    same = appearance_test(torch.from_numpy(a), torch.from_numpy(b), 1000)
    assert min(same.p) > 0.05
    b[::5, 0] *= 1.35
    b[::5, 2] /= 1.35
    found = appearance_test(torch.from_numpy(a), torch.from_numpy(b), 1000)
    assert found.p[0] < 0.01 and found.p[2] < 0.01 and found.p[1] > 0.05
    assert found.high[0] and not found.high[2]


def test_a_change_of_the_mean_counts_where_values_vary_much() -> None:
    """The corrected p-value is at most the number of statistics times that of the difference of means alone."""
    a, b = torch.rand(60, 1), torch.rand(40, 1) + 0.15
    exchanged = torch.stack([torch.cat([a, b])[torch.randperm(100)] for _ in range(2000)])  # [P N 1]
    alone = (exchanged[:, :60].mean(1) - exchanged[:, 60:].mean(1)).abs() >= (a.mean() - b.mean()).abs()
    assert appearance_test(a, b, 2000).p[0] <= 2 * float((1 + alone.sum()) / 2001) + 0.01
