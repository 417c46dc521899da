"""Copies by pixels: images whose thumbnails are equal up to compression, resizing and slight changes of brightness."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opendino.features.near_duplicates import union

_SIDE_PX = 16
_CONTRAST_FRAC, _LEVELS = 0.1, 1.5
AREA_PX = (8 * _SIDE_PX) ** 2
"""Number of pixels to which images may be shrunk before `thumbnail`."""


def thumbnail(image: Image.Image | None) -> Tensor:
    """The image averaged over 16 × 16 areas, float32 `[16 * 16 * 3]` in 0 … 255; NaN for None."""
    if image is None:
        return torch.full((3 * _SIDE_PX**2,), torch.nan)
    small = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32).ravel().copy())


def copies(thumbnails: Tensor, chunk: int = 2048) -> Tensor:
    """For each image the first image that it is a copy of, directly or through other copies.

    Two images are copies if their thumbnails differ by at most 1.5 gray levels and a tenth of the smaller contrast
    (root mean square). JPEG at quality 50 and half the size stay below; neighboring frames of a texture do not.

    Args:
        thumbnails: float `[M P]` in 0 … 255, see `thumbnail`; one with NaN is a copy of nothing.
        chunk: Rows compared at a time.

    Returns:
        int64 `[M]`: its own row for the first of its copies, and for an image without copies.
    """
    contrast = thumbnails.std(1, correction=0)
    parent = torch.arange(len(thumbnails))
    for start in range(0, len(thumbnails), chunk):
        part = slice(start, start + chunk)
        difference = torch.cdist(thumbnails[part], thumbnails) / thumbnails.shape[1] ** 0.5
        limit = _LEVELS + _CONTRAST_FRAC * torch.minimum(contrast[part, None], contrast[None])
        rows, columns = (difference <= limit).nonzero(as_tuple=True)
        parent = union(parent, rows + start, columns)
    return parent
