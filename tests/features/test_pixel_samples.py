"""Sampled pixels: those of a mask, balanced over classes, and heads that a few of them train."""

from __future__ import annotations

import numpy as np
import torch

from opendino.features.pixel_samples import PixelSamples, sample_points


def test_sampled_pixels_have_their_class_and_void_is_left_out() -> None:
    mask = np.full((20, 30), 255, np.uint8)
    mask[:, :15], mask[3, 20] = 7, 2
    places, numbers = sample_points(mask, 10, 0, 4)
    assert numbers.bincount().nonzero().flatten().tolist() == [2, 7]
    assert (numbers == 2).sum() == 1 and (numbers == 7).sum() == 200
    assert mask[tuple(places.T.numpy())].tolist() == numbers.tolist()
    assert len({tuple(place) for place in places.tolist()}) == 201, "no pixel twice"
    assert torch.equal(places, sample_points(mask, 10, 0, 4)[0]), "the same every time"
    assert not torch.equal(places, sample_points(mask, 10, 0, 5)[0])
    assert len(sample_points(mask, 100_000, 0, 4)[1]) == 21
    assert [len(part) for part in sample_points(np.full((2, 2), 255, np.uint8), 1, 0, 0)] == [0, 0]


def samples(labels: torch.Tensor, images: torch.Tensor) -> PixelSamples:
    features = labels[:, None] + 0.3 * torch.randn(len(labels), 5)
    return PixelSamples(features, labels, images, torch.randint(0, 64, (len(labels), 2)))


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    labels = torch.tensor([0] * 900 + [1] * 50 + [2] * 3)
    own = samples(labels, torch.arange(len(labels)) % 3).balanced(torch.tensor([0, 2]), 0)
    assert own.labels.bincount().tolist() == [1333, 1333, 1333]
    assert set(own.images.tolist()) == {0, 2}
    rare = own.features[own.labels == 2]
    assert len(rare.unique(dim=0)) == 2, "its own two pixels in these images, repeated"


def test_heads_from_several_images_one_image_and_one_class() -> None:
    labels = torch.randint(0, 2, (600,))
    for images in (torch.arange(600) % 4, torch.zeros(600, dtype=torch.int64)):
        own = samples(labels, images)
        weight, bias = own.balanced(images.unique(), 0).linear(3, 0)
        scores = own.features @ weight.T + bias
        assert (scores.argmax(1) == labels).double().mean() > 0.9
        assert scores.isfinite().all() and (scores[:, 2] < -1e8).all(), "no pixel has class 2"
    weight, bias = samples(torch.ones(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)).linear(3, 0)
    assert (torch.randn(4, 5) @ weight.T + bias).argmax(1).tolist() == [1] * 4
