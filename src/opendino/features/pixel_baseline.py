"""Baseline features that need no network: a thumbnail and a color histogram."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opendino.core.contracts import Source
from opendino.data.decode import decode
from opendino.features.crop_features import pixels
from opendino.features.image_stream import read_ahead

NAME = "8×8 pixels and color histogram"
_BINS, _SIDE = 8, 8


def color_histogram(crops: Tensor) -> Tensor:
    """Square roots of the color frequencies in 8 bins per channel, so that cosine compares distributions.

    Args:
        crops: uint8 or uint16 `[M C H W]`.

    Returns:
        float32 `[M 8·C]`, values in [0, 1].
    """

    def frequencies(part: Tensor) -> Tensor:
        values = 256 if part.dtype == torch.uint8 else 65536
        bins = part.flatten(2).int() // (values // _BINS)  # [M C H·W]
        return torch.stack([(bins == each).float().mean(2) for each in range(_BINS)], 2).flatten(1)

    empty = torch.empty(0, crops.shape[1] * _BINS)
    return torch.cat([empty, *(frequencies(part) for part in crops.split(256) if len(part))]).sqrt()


def thumbnail_and_histogram(source: Source, indices: Sequence[int], workers: int) -> Tensor:
    """Features of the whole image: its 8×8 thumbnail and its `color_histogram`.

    Args:
        source: The images.
        indices: Positions of images that can be read, M.
        workers: Number of threads that read and decode.

    Returns:
        float32 `[M 72·C]`, values in [0, 1]; zeros for an image that can no longer be read.
    """

    def load(position: int) -> Tensor:
        image = torch.from_numpy(decode(source.read(indices[position]), pixel_format=source.pixel_format)).permute(
            2, 0, 1
        )[None]
        return torch.cat([pixels(image, _SIDE), color_histogram(image)], 1)

    found = torch.zeros(len(indices), source.pixel_format.channels * (_SIDE**2 + _BINS))
    for position, row in read_ahead(load, len(indices), workers):
        if isinstance(row, Tensor):
            found[position] = row
    return found
