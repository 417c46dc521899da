"""Whole images for a network that cuts them into patches: how large a patch is, and pixels as it wants them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opendino.core.errors import UserError
from opendino.models.load import Model


def patch_px(model: Model) -> int:
    """Side of the square that one of the model's patch features stands for; the stride of a convolutional network.

    Raises:
        UserError: Its features are no grid.
    """
    side = model.preprocessing["image_px"]
    try:
        return side // model.features(torch.zeros(1, 3, side, side)).grid[0]
    except NotImplementedError as error:
        raise UserError(str(error), "Choose a network whose features lie on a grid, such as a ViT") from error


def to_network_input(pixels: Tensor | np.ndarray, model: Model) -> Tensor:
    """Pixels `[H W 3]` in 0 .. 255 → float32 `[1 3 H W]`, normalized as the model was trained."""
    mean, std = (torch.tensor(model.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    return ((torch.as_tensor(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
