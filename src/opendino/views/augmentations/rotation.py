"""Rotation by any angle, with reflected corners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import Checked, Fraction
from opendino.views.counter_rng import Numbers

ORDER = 20


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the rotation."""

    p: Fraction = 0.0
    """Probability."""
    degrees: Annotated[float, Meta(ge=0, le=180)] = 30.0
    """Largest angle; the angle is uniform in [-degrees, degrees]."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Counterclockwise angles in radians: float32 `[V B]`, 0 for none."""
    happens, most = numbers.happens(config.p), np.radians(config.degrees)
    return {"angle": np.where(happens, numbers.between(-most, most), 0.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return f"{np.degrees(float(parameters['angle'])):+.0f}°" if parameters["angle"] else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["angle"] != 0


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Rotate with bilinear interpolation; what lies outside the view is reflected at its edges."""
    angle, (height, width) = parameters["angle"], x.shape[-2:]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Output to input, in coordinates from -1 to 1 along each side, rows downwards.
    rows = [torch.stack(row, -1) for row in ((cos, -sin * height / width, zero), (sin * width / height, cos, zero))]
    flat, matrices = x.flatten(0, 1), torch.stack(rows, -2).flatten(0, 1)  # [V * B, C, H, W], [V * B, 2, 3]
    grid = torch.nn.functional.affine_grid(matrices, list(flat.shape), align_corners=False)
    turned = torch.nn.functional.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
    return torch.where(angle[..., None, None, None] != 0, turned.view_as(x), x)
