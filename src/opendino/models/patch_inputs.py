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
    side = model.preprocessing["image_px"]
    try:
        return side // model.features(torch.zeros(1, 3, side, side)).grid[0]
    except NotImplementedError as error:
        raise UserError(str(error), "Choose a network whose features lie on a grid, such as a ViT") from error


def to_network_input(pixels: Tensor | np.ndarray, model: Model) -> Tensor:
    """Normalize pixels `[H W 3]` in 0 to 255 with the model's mean and std → float32 `[1 3 H W]`."""
    mean, std = (torch.tensor(model.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    return ((torch.as_tensor(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
