"""Channel drop: one channel becomes black, so that no single channel is enough to recognize an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import Checked, Fraction
from opendino.views.counter_rng import Numbers

ORDER = 62


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the channel drop."""

    p: Fraction = 0.0
    """Probability that one channel, each equally likely, becomes black; images of one channel stay as they are."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Number of the dropped channel: int64 `[V B]`, 0 … C - 1; -1 for none."""
    happens = numbers.happens(config.p) & (numbers.channels > 1)
    return {"channel": np.where(happens, np.floor(numbers.channels * numbers.uniform()), -1).astype(np.int64)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    return str(int(parameters["channel"])) if parameters["channel"] >= 0 else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return parameters["channel"] >= 0


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Set the channel to 0."""
    number = torch.arange(x.shape[2], device=x.device)  # [C]
    return x * (parameters["channel"][..., None] != number)[..., None, None]
