"""Where the crops of a batch read their pixels; flips and quarter turns change this instead of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opendino.views.crop_resize import crop_resize


@dataclass(frozen=True)
class Placement:
    """Crop boxes and how the crops are mirrored.

    Attributes:
        box: int32 `[V B 4]`, (top, left, height, width) in pixels of the canvas.
        mirror_x: bool `[V B]`, columns from right to left.
        mirror_y: bool `[V B]`, rows from bottom to top.
        transpose: bool `[V B]`, exchange rows and columns after mirroring; None for no view. Square views only.
    """

    box: Tensor
    mirror_x: Tensor
    mirror_y: Tensor
    transpose: Tensor | None = None

    def cut(self, canvas: Tensor, view_px: tuple[int, int]) -> Tensor:
        """Cut the crops and resize them: `[B C Sy Sx]` → `[V B C *view_px]`."""
        x = crop_resize(canvas, self.box, self.mirror_x, view_px, self.mirror_y)
        if self.transpose is None:
            return x
        # int16 holds the bits of uint16, for which PyTorch has few operations on a GPU.
        values = x.view(torch.int16) if x.dtype == torch.uint16 else x
        turned = torch.where(self.transpose[..., None, None, None], values.transpose(-1, -2), values)
        return turned.view(x.dtype)
