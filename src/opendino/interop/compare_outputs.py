"""Compare the outputs of a model and its exported copy on random images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.models.load import Model

TOLERANCE = 1e-4
"""Allowed difference relative to the largest output: float32 rounding in a different order of summation."""


def random_images(model: Model, batch: int = 2, height: int | None = None, width: int | None = None) -> Tensor:
    """Reproducible normal noise float32 `[B C H W]`; height and width default to the image size of the model."""
    side, channels = model.preprocessing["image_px"], model.backbone.in_chans
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height or side, width or side, generator=generator)


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor], where: str) -> float:
    """Largest absolute difference between outputs that must be equal.

    Args:
        ours: Outputs of the model.
        theirs: Outputs of the exported model, in the same order and shapes.
        where: Name of the library that computed them, for errors.

    Returns:
        The largest absolute difference.

    Raises:
        UserError: Shapes differ, or a difference exceeds `TOLERANCE` times our largest output or is not finite.
    """
    found = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            raise UserError(f"{where} returns the shape {list(other.shape)}, but {list(mine.shape)} was expected")
        difference = float((mine - other).abs().max())
        if not difference <= TOLERANCE * float(mine.abs().max()):
            raise UserError(f"{where} returns features that differ by up to {difference:.3g}, so nothing was written")
        found = max(found, difference)
    return found
