"""Baselines without a network: color histograms and thumbnails."""

from __future__ import annotations

import torch

from opendino.data.open_source import open_source
from opendino.features.pixel_baseline import color_histogram, thumbnail_and_histogram


def test_a_histogram_is_of_frequencies_per_channel() -> None:
    crops = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    crops[0, 0, :2], crops[0, 1] = 255, 33
    found = color_histogram(crops).square().view(3, 8)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    torch.testing.assert_close(found[[0, 0, 1, 2], [0, 7, 1, 0]], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert color_histogram(crops[:0]).shape == (0, 24)
    many = torch.randint(0, 256, (300, 3, 5, 5), dtype=torch.uint8)
    torch.testing.assert_close(color_histogram(many)[299:], color_histogram(many[299:]))


def test_images_of_a_source() -> None:
    source = open_source("toy:textures?n=20&size=16")
    found = thumbnail_and_histogram(source, [3, 7], 1)
    assert found.shape == (2, 216) and not torch.equal(found[0], found[1])
    torch.testing.assert_close(found[:, 192:].square().sum(1), torch.full((2,), 3.0))
    assert torch.equal(thumbnail_and_histogram(source, [7], 1)[0], found[1])
