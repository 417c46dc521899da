"""Rotation by 0, 90, 180 or 270 degrees, each equally likely: exact, without empty corners."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Fraction
from opendino.views.counter_rng import Numbers
from opendino.views.placement import Placement

ORDER = 12


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the quarter turns."""

    p: Fraction = 0.0
    """Probability of a random number of quarter turns (0 to 3); 1 if no direction matters. Square views only."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Number of counterclockwise quarter turns: int64 `[V B]`, 0 … 3.

    Raises:
        UsageError: The views are not square.
    """
    if config.p and numbers.view_px[0] != numbers.view_px[1]:
        raise UsageError(
            "quarter_turns needs square views, and these have {} × {} pixels".format(*numbers.view_px),
            "Set a square size, or --views.all.quarter-turns.p 0",
        )
    happens = numbers.happens(config.p)
    return {"turns": np.where(happens, np.floor(4 * numbers.uniform()), 0).astype(np.int64)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return f"{90 * int(parameters['turns'])}°" if parameters["turns"] else None


def place(placement: Placement, parameters: dict[str, Tensor]) -> Placement:
    """A quarter turn is a transposition and a mirror image of the rows, after the flips before it."""
    turns = parameters["turns"]
    odd, half = turns % 2 == 1, turns >= 2
    mirror_x, mirror_y = placement.mirror_x, placement.mirror_y
    # rot90(x) = transpose(x).flip(rows) = transpose(x.flip(columns)); a half turn mirrors both.
    return replace(placement, mirror_x=mirror_x ^ odd ^ half, mirror_y=mirror_y ^ half, transpose=odd)
