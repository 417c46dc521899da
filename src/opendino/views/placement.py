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
        return self._turned(x)

    def cut_labels(self, canvas: Tensor, view_px: tuple[int, int]) -> Tensor:
        """Cut the same crops from label maps, each pixel the nearest one: uint8 `[B Sy Sx]` → `[V B *view_px]`."""
        top, left, height, width = self.box.long().unbind(-1)
        rows = _nearest(top, height, self.mirror_y, view_px[0])  # [V, B, H]
        columns = _nearest(left, width, self.mirror_x, view_px[1])
        image = torch.arange(len(canvas), device=canvas.device)[None, :, None, None]
        return self._turned(canvas[image, rows[..., None], columns[..., None, :]][:, :, None])[:, :, 0]

    def _turned(self, x: Tensor) -> Tensor:
        """Exchange rows and columns of the views `[V B C H W]` that are transposed."""
        if self.transpose is None:
            return x
        # int16 holds the bits of uint16, for which PyTorch has few operations on a GPU.
        values = x.view(torch.int16) if x.dtype == torch.uint16 else x
        turned = torch.where(self.transpose[..., None, None, None], values.transpose(-1, -2), values)
        return turned.view(x.dtype)


def _nearest(start: Tensor, length: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Pixel under the center of each output pixel along one axis: `[V B]` → `[V B size]`; see `crop_resize._taps`."""
    i = torch.arange(size, device=start.device)
    i = torch.where(mirror[..., None], size - 1 - i, i)
    return start[..., None] + (2 * i + 1) * length[..., None] // (2 * size)
