"""Gaussian noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction
from opendino.views.counter_rng import Numbers

ORDER = 60


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the Gaussian noise."""

    p: Fraction = 0.0
    """Probability."""
    std: Annotated[tuple[Fraction, Fraction], ASCENDING] = (0.0, 0.1)
    """Smallest and largest standard deviation, uniform, for pixels in [0, 1]."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Standard deviation: float32 `[V B]`, 0 for none; and key of the noise: int64 `[V B]`, 32 bits."""
    happens = numbers.happens(config.p)
    std = np.where(happens, numbers.between(*config.std), 0.0).astype(np.float32)
    return {"std": std, "key": (numbers.uniform() * 2**32).astype(np.int64)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return f"{float(parameters['std']):.2f}" if parameters["std"] else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["std"] > 0


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Add noise that is a function of the key and the position of the value, on any device; clipped to [0, 1]."""
    std, key = (parameters[name][..., None, None, None] for name in ("std", "key"))
    place = torch.arange(x[0, 0].numel(), device=x.device).view(x.shape[2:])
    bits = _hash(_hash(place) ^ key)  # [V B C H W]
    radius = ((_hash(bits ^ 0x5BD1E995).float() + 1) / 2**32).clamp(max=1).log().mul(-2).sqrt()
    normal = radius * (2 * math.pi / 2**32 * bits.float()).cos()  # Box and Muller, 1958
    return torch.where(std > 0, (x + std * normal).clamp(0, 1), x)


def _hash(x: Tensor) -> Tensor:
    """A 32-bit hash ("lowbias32", C. Wellons) of int64 values in 0 … 2^32 - 1."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
