"""What `Model.prepare` does to a photograph, as tensor operations of a graph: resize, center-crop, normalize."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from opendino.core.errors import UserError
from opendino.models.image_reading import ImageReading
from opendino.models.load import Model

_BITS = 22
"""Fraction bits of Pillow's weights."""


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    angle = math.pi * torch.where(x == 0, 1.0, x)
    inside = torch.sin(angle) / angle * torch.sin(angle / 3) / (angle / 3)
    return torch.where(x == 0, 1.0, torch.where(x < 3, inside, 0.0))


_FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1.0, _bilinear), "bicubic": (2.0, _bicubic), "lanczos": (3.0, _lanczos),
}  # fmt: skip
"""Pillow's name → radius in pixels of the smaller image, and weight at a distance ≥ 0."""


class PhotographInput(nn.Module):
    """Decoded photographs uint8 `[B H W 3]` of one size → the network's input, float32 `[B 3 image_px image_px]`.

    Pixels are those of Pillow up to version 12, bit for bit: its weights of 22 bits, rows first, and the result of each
    direction rounded to 8 bits. All of that is exact in float64. Images longer than 64 times their width, which
    `Model.prepare` crops before it resizes, are only cropped after.

    Args:
        model: A model of 8-bit RGB photographs.

    Raises:
        UserError: The model reads other images, or resizes with another filter.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        wanted = model.preprocessing
        if model.reading != ImageReading():
            raise UserError(
                f"The model reads images of {len(wanted['mean'])} channels by their own range, not photographs",
                "Leave --photographs out, and prepare the images as the metadata of the file say",
            )
        if wanted["interpolation"] not in _FILTERS:
            raise UserError(
                f"The model resizes images with the filter '{wanted['interpolation']}', a graph can with "
                f"{', '.join(_FILTERS)}",
                "Leave --photographs out",
            )
        self.crop_px, self.short_px = wanted["image_px"], wanted["resize_px"]
        self.radius, self.weight = _FILTERS[wanted["interpolation"]]
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(wanted[key]).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Resize, center-crop and normalize uint8 `[B H W 3]`."""
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in images.shape[1:3])
        height, width = (torch.full((), side, dtype=torch.float64) for side in images.shape[1:3])
        short = torch.minimum(height, width)
        pixels = images.permute(0, 3, 1, 2).double()  # [B, 3, H, W]
        pixels = _to_8_bits(pixels @ self._weights(columns, width, short).mT)  # [B, 3, H, crop]
        pixels = _to_8_bits(self._weights(rows, height, short) @ pixels)  # [B, 3, crop, crop]
        return (pixels.float() / 255 - self.mean) / self.std

    def _weights(self, positions: Tensor, side: Tensor, short: Tensor) -> Tensor:
        """Weights of the pixels along a side for each pixel of the crop, in units of 2⁻²²: float64 `[crop side]`.

        Args:
            positions: float64 `[side]`, 0, 1, 2 ...
            side, short: float64 scalars, the number of pixels along this side of the image and along its shorter one.
        """
        resized = torch.floor(self.short_px * side / short)
        first = torch.round((resized - self.crop_px) / 2)  # halves to even, as Python does
        resized_positions = torch.arange(self.crop_px, dtype=torch.float64)[:, None] + first  # [crop, 1]
        scale = side / resized
        centers = (resized_positions + 0.5) * scale
        reach = torch.clamp(scale, min=1.0)  # antialiased: at least a pixel of either image
        weights = self.weight((positions - centers + 0.5).abs() * (1 / reach))
        weights = weights / weights.sum(1, keepdim=True)
        rounded = torch.sign(weights) * torch.floor(weights.abs() * 2**_BITS + 0.5)
        inside = (resized_positions >= 0) & (resized_positions < resized)
        return torch.where(inside, rounded, 0.0)  # a crop larger than the resized image is black around it


def _to_8_bits(sums: Tensor) -> Tensor:
    """Sums of pixels in units of 2⁻²² → whole numbers from 0 to 255, as Pillow rounds."""
    return torch.floor((sums + 2 ** (_BITS - 1)) / 2**_BITS).clamp(0, 255)
