"""The channels of images as images of their own."""

from __future__ import annotations

import numpy as np
import pytest

from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.core.types import PixelFormat
from opendino.data.cache import DecodedImages
from opendino.data.channel_images import ChannelImages, pooled


class Images(Source):
    """Two classes, uint16 `[4 5 3]`; the image 2 is unreadable."""

    classes, shard_sizes, pixel_format = ("a", "b"), np.array([2, 2]), PixelFormat(3, 16)

    def __init__(self) -> None:
        self.prefetched: list[int] = []

    def __len__(self) -> int:
        return 4

    def key(self, index: int) -> str:
        return f"{index}.tif"

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> np.ndarray:
        if index == 2:
            raise BadImage("torn")
        return np.random.default_rng(index).integers(0, 65536, (4, 5, 3), np.uint16)

    def prefetch(self, indices: np.ndarray) -> None:
        self.prefetched += indices.tolist()


def test_each_channel_is_an_image_with_the_label_of_the_whole() -> None:
    whole = Images()
    images = ChannelImages(whole)
    assert len(images) == 12 and images.shard_sizes.tolist() == [6, 6] and images.pixel_format == PixelFormat(1, 16)
    assert [images.key(index) for index in (0, 2, 3)] == ["0.tif#0", "0.tif#2", "1.tif#0"]
    assert [images.label(index) for index in (2, 3)] == [0, 1]
    assert np.array_equal(images.read(4), whole.read(1)[..., 1:2])
    assert np.array_equal(DecodedImages(images, 1000).read(4), images.read(4))
    with pytest.raises(BadImage, match="torn"):
        images.read(7)
    assert len({images.checksum(index) for index in (*range(6), *range(9, 12))}) == 9
    images.prefetch(np.array([0, 1, 5, 11]))
    assert whole.prefetched == [0, 1, 3]


def test_statistics_of_all_channels_together() -> None:
    values = np.random.default_rng(0).normal([0.2, 0.5, 0.6], [0.1, 0.05, 0.2], (200_000, 3))
    mean, std = pooled(values.mean(0).tolist(), values.std(0).tolist())
    assert (mean, std) == pytest.approx((values.mean(), values.std()), abs=1e-4)
