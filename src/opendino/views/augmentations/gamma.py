"""Gamma: brighter or darker midtones, while black and white stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction
from opendino.views.counter_rng import Numbers

ORDER = 32
Exponent = Annotated[float, Meta(ge=0.05, le=20)]


@dataclass(frozen=True)
class Config(Checked):
    """Settings of gamma."""

    p: Fraction = 0.0
    """Probability."""
    exponent: Annotated[tuple[Exponent, Exponent], ASCENDING] = (0.7, 1.4)
    """Smallest and largest exponent, log-uniform; below 1 is brighter."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Exponents: float32 `[V B]`, 1 for none."""
    happens, (low, high) = numbers.happens(config.p), np.log(config.exponent)
    return {"exponent": np.where(happens, np.exp(numbers.between(low, high)), 1.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return f"{float(parameters['exponent']):.2f}" if parameters["exponent"] != 1 else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["exponent"] != 1


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Raise every value to the exponent."""
    exponent = parameters["exponent"][..., None, None, None]
    return torch.where(exponent == 1, x, x.clamp(min=0) ** exponent)
