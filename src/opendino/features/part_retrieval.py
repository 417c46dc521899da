"""A measure without labels: whether two parts of an image find each other among the parts of all images."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.core.errors import BadImage
from opendino.data.decode import decode
from opendino.features.nearest_neighbors import nearest

NUM_PARTS = 4
_FACTORS = 0.6, 1.4  # of brightness and contrast


@final
class Quadrants(Source):
    """The four quarters of every image, without overlap: quarter `q` of image `i` has the index 4 i + q.

    In gray and of random light: color and brightness differ from image to image, so with them any network, and even a
    color histogram, would find the other quarters. Of other than 3 channels, each gets a light of its own.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.classes, self.pixel_format = source, source.classes, source.pixel_format

    def __len__(self) -> int:
        return NUM_PARTS * len(self.source)

    def key(self, index: int) -> str:
        """The image's key."""
        return self.source.key(index // NUM_PARTS)

    def label(self, index: int) -> int:
        """The image's label."""
        return self.source.label(index // NUM_PARTS)

    def read(self, index: int) -> np.ndarray:
        """One quarter of the image, uint8 or uint16 `[H/2 W/2 C]`.

        Raises:
            BadImage: The image cannot be read or is too small.
        """
        pixels = decode(self.source.read(index // NUM_PARTS), pixel_format=self.pixel_format)
        height, width = (side // 2 for side in pixels.shape[:2])
        if not (height and width):
            raise BadImage("smaller than 2 × 2 pixels")
        top, left = divmod(index % NUM_PARTS, 2)
        top, left = top * (pixels.shape[0] - height), left * (pixels.shape[1] - width)
        return _in_random_light(pixels[top : top + height, left : left + width], np.random.default_rng(index))


def _in_random_light(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    channels = pixels.shape[2]
    values = pixels.astype(np.float32)
    if channels == 3:
        values = values.mean(2, keepdims=True)
    brightness, contrast = rng.uniform(*_FACTORS, (2, values.shape[2])).astype(np.float32)
    values = values * brightness
    middle = values.mean((0, 1))
    values = ((values - middle) * contrast + middle).clip(0, np.iinfo(pixels.dtype).max)
    return np.ascontiguousarray(np.broadcast_to(values, pixels.shape).round().astype(pixels.dtype))


def found_frac(features: Tensor) -> Tensor:
    """How often the parts of an image find each other: the most similar of all images' parts is the image's own.

    Args:
        features: float `[N 4 D]` of the four quarters of each image, on the CPU.

    Returns:
        float64 `[N]`, fraction of the 12 ordered pairs of parts, 0 to 1; chance is 1 / N.
    """
    hits = torch.zeros(len(features), dtype=torch.float64)
    own = torch.arange(len(features))
    for query in range(NUM_PARTS):
        for bank in range(NUM_PARTS):
            if query != bank:
                _, found = nearest(features[:, bank], features[:, query], 1)
                hits += found[:, 0] == own
    return hits / (NUM_PARTS * (NUM_PARTS - 1))
