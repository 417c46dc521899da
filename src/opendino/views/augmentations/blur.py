"""Gaussian blur."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction
from opendino.views import functional
from opendino.views.counter_rng import Numbers

ORDER = 50
Sigma = Annotated[float, Meta(ge=0, le=100)]


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the Gaussian blur."""

    p: Fraction | Literal["auto"] = 0.0
    """Probability."""
    sigma_px: Annotated[tuple[Sigma, Sigma], ASCENDING] = (0.1, 2.0)
    """Smallest and largest sigma in pixels of the view, uniform."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Sigma in pixels of the view: float32 `[V B]`, 0 for none."""
    assert config.p != "auto"
    happens = numbers.happens(config.p)
    return {"sigma": np.where(happens, numbers.between(*config.sigma_px), 0.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return f"{float(parameters['sigma']):.1f} px" if parameters["sigma"] else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["sigma"] > 0


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Blur, with replicated edge pixels."""
    reach_px = math.ceil(5 * max(config.sigma_px[1] for config in configs))
    return functional.blur(x, parameters["sigma"], reach_px)
