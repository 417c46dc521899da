"""Horizontal flip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import Checked, Fraction
from opendino.views.counter_rng import Numbers
from opendino.views.placement import Placement

ORDER = 10


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the horizontal flip."""

    p: Fraction = 0.5
    """Probability; 0 if left and right matter (text, maps)."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Whether to flip: bool `[V B]`."""
    return {"flip": numbers.happens(config.p)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return "" if parameters["flip"] else None


def place(placement: Placement, parameters: dict[str, Tensor]) -> Placement:
    """Read the columns of the crop from right to left: no work of its own."""
    return replace(placement, mirror_x=placement.mirror_x ^ parameters["flip"])
