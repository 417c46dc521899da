"""Vertical flip, for images without an upright direction: micrographs, aerial images, surfaces."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import Checked, Fraction
from opendino.views.counter_rng import Numbers
from opendino.views.placement import Placement

ORDER = 11


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the vertical flip."""

    p: Fraction = 0.0
    """Probability; 0.5 if up and down do not matter."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Whether to flip: bool `[V B]`."""
    return {"flip": numbers.happens(config.p)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return "" if parameters["flip"] else None


def place(placement: Placement, parameters: dict[str, Tensor]) -> Placement:
    """Read the rows of the crop from bottom to top: no work of its own."""
    return replace(placement, mirror_y=placement.mirror_y ^ parameters["flip"])
