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


@final
class Quadrants(Source):
    """The four quarters of every image: quarter `q` of image `i` has the index 4 i + q. They do not overlap."""

    def __init__(self, source: Source) -> None:
        self.source, self.classes = source, source.classes

    def __len__(self) -> int:
        return NUM_PARTS * len(self.source)

    def key(self, index: int) -> str:
        """The image's key."""
        return self.source.key(index // NUM_PARTS)

    def label(self, index: int) -> int:
        """The image's label."""
        return self.source.label(index // NUM_PARTS)

    def read(self, index: int) -> np.ndarray:
        """One quarter of the image, uint8 `[H/2 W/2 3]`.

        Raises:
            BadImage: The image cannot be read or is too small.
        """
        pixels = decode(self.source.read(index // NUM_PARTS))
        height, width = (side // 2 for side in pixels.shape[:2])
        if not (height and width):
            raise BadImage("smaller than 2 × 2 pixels")
        top, left = divmod(index % NUM_PARTS, 2)
        top, left = top * (pixels.shape[0] - height), left * (pixels.shape[1] - width)
        return np.ascontiguousarray(pixels[top : top + height, left : left + width])


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
