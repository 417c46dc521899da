"""Each channel of each image as an image of its own: what a network learns from that takes any number of channels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import final

import numpy as np

from opendino.core.contracts import Source
from opendino.core.types import PixelFormat
from opendino.data.decode import decode


@final
class ChannelImages(Source):
    """C images of one channel for each image of a source, one after the other, with its label.

    Channel c of an image has the key "KEY#c". Every reading decodes the whole image; a cache keeps the channels apart.

    Args:
        source: Images of C channels.
    """

    def __init__(self, source: Source) -> None:
        self.source, self._channels = source, source.pixel_format.channels
        self.classes, self.folder_classes = source.classes, source.folder_classes
        self.shard_sizes = source.shard_sizes * self._channels
        self.pixel_format = PixelFormat(1, source.pixel_format.bits)

    def __len__(self) -> int:
        return len(self.source) * self._channels

    def key(self, index: int) -> str:
        """The image's key and the number of the channel."""
        image, channel = divmod(index, self._channels)
        return f"{self.source.key(image)}#{channel}"

    def label(self, index: int) -> int:
        """The image's label."""
        return self.source.label(index // self._channels)

    def read(self, index: int) -> np.ndarray:
        """One channel of an image, uint8 or uint16 `[H W 1]`.

        Raises:
            BadImage: The image cannot be read.
        """
        image, channel = divmod(index, self._channels)
        pixels = decode(self.source.read(image), pixel_format=self.source.pixel_format)
        return np.ascontiguousarray(pixels[..., channel : channel + 1])

    def checksum(self, index: int) -> int:
        """Checksum of the image and the number of the channel."""
        image, channel = divmod(index, self._channels)
        return zlib.crc32(str(channel).encode(), self.source.checksum(image))

    def prefetch(self, indices: np.ndarray) -> None:
        """Let the source prefetch the images of these channels."""
        self.source.prefetch(np.unique(indices // self._channels))


def pooled(mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the values of all channels together, from those of each."""
    center = sum(mean) / len(mean)
    square = sum(m * m + s * s for m, s in zip(mean, std, strict=True)) / len(mean)
    return round(center, 4), round(math.sqrt(max(square - center * center, 1e-6)), 4)
