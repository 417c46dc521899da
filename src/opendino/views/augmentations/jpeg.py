"""JPEG artifacts: the quantization of JPEG compression, computed on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction
from opendino.views.counter_rng import Numbers
from opendino.views.kernels import full_precision

ORDER = 80
Quality = Annotated[int, Meta(ge=1, le=100)]
# Tables K.1 and K.2 of the standard (ITU-T T.81), which libjpeg scales by the quality.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66,
    *(99,) * 38,
)  # fmt: skip


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the JPEG artifacts."""

    p: Fraction = 0.0
    """Probability."""
    quality: Annotated[tuple[Quality, Quality], ASCENDING] = (30, 90)
    """Lowest and highest quality, uniform, on the scale of libjpeg and Pillow."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Quantization tables for luma and chroma: float32 `[V B 2 8 8]`; 0 for none."""
    low, high = config.quality
    happens, quality = numbers.happens(config.p), np.floor(numbers.between(low, high + 1))
    percent = np.where(quality < 50, np.floor(5000 / quality), 200 - 2 * quality)[..., None, None, None]
    tables = np.array([_LUMA, _CHROMA], np.float64).reshape(2, 8, 8)
    scaled = np.clip(np.floor((tables * percent + 50) / 100), 1, 255)
    return {"tables": np.where(happens[..., None, None, None], scaled, 0.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    table = parameters["tables"]
    return f"first step {int(table[0, 0, 0])}" if table.any() else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return (parameters["tables"] > 0).flatten(2).any(-1)


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Compress and expand, without subsampling of the chroma. Other images than RGB: each channel as a gray image."""
    tables, (channels, height, width) = parameters["tables"], x.shape[-3:]
    pixels = x * 255
    planes = _to_ycc(pixels) if channels == 3 else pixels - 128  # [V B C H W]
    luma, chroma = tables.split(1, dim=2)
    table = torch.cat([luma, chroma, chroma], 2) if channels == 3 else luma  # [V B C 8 8]
    planes = torch.nn.functional.pad(planes, (0, -width % 8, 0, -height % 8, 0, 0), mode="replicate")
    blocks = planes.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # [V B C rows columns 8 8]
    dct = _dct(x)
    step = table[:, :, :, None, None].clamp(min=1)
    with full_precision(x.device):
        blocks = dct.mT @ ((dct @ blocks @ dct.mT / step).round() * step) @ dct
    planes = blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :height, :width].round().clamp(-128, 127)
    pixels = _to_rgb(planes) if channels == 3 else planes + 128
    return torch.where(tables[:, :, :1, :1, :1] > 0, pixels.round().clamp(0, 255) / 255, x)


def _dct(like: Tensor) -> Tensor:
    """The orthonormal 8 × 8 matrix of the discrete cosine transform, made on the device."""
    i = torch.arange(8, device=like.device, dtype=torch.float32)
    matrix = torch.cos(i[:, None] * (2 * i + 1) * (math.pi / 16)) / 2
    return torch.where(i[:, None] == 0, math.sqrt(1 / 8), matrix)


def _to_ycc(rgb: Tensor) -> Tensor:
    """Values in 0 … 255 to Y - 128, Cb - 128, Cr - 128 (JFIF), rounded as an encoder does."""
    r, g, b = rgb.unbind(-3)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y - 128, (b - y) / 1.772, (r - y) / 1.402], -3).round()


def _to_rgb(ycc: Tensor) -> Tensor:
    y, cb, cr = ycc.unbind(-3)
    y = y + 128
    return torch.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -3)
