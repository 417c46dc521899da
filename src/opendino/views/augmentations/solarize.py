"""Solarization: invert bright values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Fraction
from opendino.views import functional
from opendino.views.counter_rng import Numbers

ORDER = 70


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the solarization."""

    p: Fraction | Literal["auto"] = 0.0
    """Probability of inverting all values of at least 128/255; only for RGB."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Whether to solarize: bool `[V B]`."""
    assert config.p != "auto"
    return {"solarize": numbers.happens(config.p)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return "" if parameters["solarize"] else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["solarize"]


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Invert bright values.

    Raises:
        UsageError: The images are not RGB.
    """
    if x.shape[-3] != 3:
        raise UsageError(
            f"solarize is for RGB images, and these have {x.shape[-3]} channels", "Add --views.all.solarize.p 0"
        )
    return functional.solarize(x, parameters["solarize"])
