"""Brightness, contrast, sharpness: known values, uniform p without a difference, and a fifth of brighter images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tests.factories import noise_image

from opendino.features.appearance import _statistic, appearance, distributions_differ


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
    assert float(_statistic(in_a[None])) == pytest.approx(30 * 12 / 42 * integral)


@pytest.mark.parametrize("ties", [False, True])
def test_without_a_difference_p_is_uniform(ties: bool) -> None:
    torch.manual_seed(0)
    p = []
    for draw in range(200):
        values = torch.rand(60)
        a, b = ((values * 3).floor() if ties else values).split([40, 20])
        p.append(distributions_differ(a, b, 99, draw))
    assert 0.4 < np.mean(p) < 0.6
    for level in (0.05, 0.25, 0.5):
        assert abs(np.mean(np.array(p) <= level) - level) < 4 * (level * (1 - level) / 200) ** 0.5


def test_a_fifth_of_brighter_images_is_found() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 0.08, 850), rng.normal(0.5, 0.08, 250)
    same = distributions_differ(torch.from_numpy(a), torch.from_numpy(b), 200)
    b[::5] *= 1.35
    assert distributions_differ(torch.from_numpy(a), torch.from_numpy(b), 200) < 0.01 < same
