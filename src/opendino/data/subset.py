"""A subset of the images of a source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from opendino.core.contracts import Source


@final
class Subset(Source):
    """Images `indices` of `source`, in that order, with the same classes (as `torch.utils.data.Subset`)."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices
        self.classes, self.folder_classes = source.classes, source.folder_classes
        self.pixel_format = source.pixel_format
        if len(source.shard_sizes) and (np.diff(indices) > 0).all():
            sizes = np.diff(np.searchsorted(indices, np.cumsum(source.shard_sizes)), prepend=0)
            self.shard_sizes = sizes[sizes > 0]

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """The image's key in the source."""
        return self.source.key(self.indices[index])

    def label(self, index: int) -> int:
        """The image's label in the source."""
        return self.source.label(self.indices[index])

    def read(self, index: int) -> bytes | np.ndarray:
        """Read the image from the source."""
        return self.source.read(self.indices[index])

    def checksum(self, index: int) -> int:
        """The image's checksum in the source."""
        return self.source.checksum(self.indices[index])

    def prefetch(self, indices: np.ndarray) -> None:
        """Let the source prefetch these images."""
        self.source.prefetch(np.asarray(self.indices)[indices])


def evenly_spaced(count: int, num: int) -> list[int]:
    """At most `num` indices from 0 to `count` - 1, in order, at even distances."""
    return np.unique(np.linspace(0, count - 1, min(num, count)).round().astype(int)).tolist()
