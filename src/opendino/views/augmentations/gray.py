"""Conversion to grayscale, 0.299 R + 0.587 G + 0.114 B in all three channels."""

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

ORDER = 40


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the conversion to grayscale."""

    p: Fraction | Literal["auto"] = 0.2
    """Probability; only for RGB. 0 if color identifies your classes."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Whether to convert: bool `[V B]`."""
    assert config.p != "auto"
    return {"gray": numbers.happens(config.p)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return "" if parameters["gray"] else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["gray"]


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Convert.

    Raises:
        UsageError: The images are not RGB.
    """
    if x.shape[-3] != 3:
        raise UsageError(f"gray converts RGB images, and these have {x.shape[-3]} channels", "Add --views.all.gray.p 0")
    return functional.gray(x, parameters["gray"])
