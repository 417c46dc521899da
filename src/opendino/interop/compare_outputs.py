"""Random images for both sides, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.models.load import Model

TOLERANCE = 1e-4
"""What another order of the same float32 sums may change, as a share of the largest number."""


def random_images(model: Model, batch: int = 2, height: int | None = None, width: int | None = None) -> Tensor:
    """Normal noise float32 `[B C H W]`, the same each time; of the size the model is used at where none is given."""
    side, kwargs = model.preprocessing["image_px"], model.backbone.kwargs
    channels: Any = kwargs.get("in_chans", 3)
    chance = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height or side, width or side, generator=chance)


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], where: str) -> float:
    """Between numbers that shall be the same ones.

    Args:
        ours: From the model.
        theirs: From what it was exported to, pair by pair of the same shape.
        where: What they were computed with.

    Raises:
        UserError: Shapes differ, or a difference is above `TOLERANCE` of the largest of our numbers, or not finite.
    """
    found = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise UserError(f"{where} gives {list(other.shape)} where {list(mine.shape)} was expected")
        difference = float((mine - other).abs().max())
        if not difference <= TOLERANCE * float(mine.abs().max()):
            raise UserError(f"{where} gives features that differ by up to {difference:.3g}, so nothing was written")
        found = max(found, difference)
    return found
