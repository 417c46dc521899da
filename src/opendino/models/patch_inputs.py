"""Patch size of a model, and normalization of whole images for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.models.load import Model


def patch_px(model: Model) -> int:
    """Patch side of a model in pixels; for a convolutional network the total stride.

    Raises:
        UserError: Its features do not form a grid.
    """
    side, advice = model.preprocessing["image_px"], "Choose a network whose features lie on a grid, such as a ViT"
    try:
        rows = model.features(torch.zeros(1, model.backbone.in_chans, side, side)).grid[0]
    except NotImplementedError as error:
        raise UserError(str(error), advice) from error
    if not rows:
        raise UserError(f"{model.backbone.name} gives one vector for an image and no map of it", advice)
    return side // rows


def to_network_input(pixels: np.ndarray, model: Model) -> Tensor:
    """Normalize pixels `[H W C]` as the model does, see `Model.normalize` → float32 `[1 C H W]`."""
    return model.normalize(pixels)[None]
