"""Brightness and contrast of each channel apart: for microscopes and sensors whose channels vary independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import Checked, Fraction, Strength
from opendino.views.counter_rng import Numbers

ORDER = 31


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the channel jitter."""

    p: Fraction = 0.0
    """Probability."""
    brightness: Strength | Literal["auto"] = 0.2
    """Factor of a channel uniform in [1 - x, 1 + x], above 0. auto: from the network."""
    contrast: Strength | Literal["auto"] = 0.2
    """Factor of a channel's distance to its mean, uniform in [1 - x, 1 + x], above 0. auto: from the network."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Factors of brightness and contrast per channel: float32 `[V B 2 C]`, 1 for none."""
    assert "auto" not in (config.brightness, config.contrast)
    strength = np.array([config.brightness, config.contrast])[:, None]
    low, happens = np.maximum(1 - strength, 0), numbers.happens(config.p)[..., None, None]
    factors = low + numbers.uniform(2, numbers.channels) * (1 + strength - low)
    return {"factors": np.where(happens, factors, 1.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    brightness, contrast = parameters["factors"].tolist()
    if {*brightness, *contrast} == {1.0}:
        return None
    return " ".join(["b", *(f"{x:.1f}" for x in brightness), "c", *(f"{x:.1f}" for x in contrast)])


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return (parameters["factors"] != 1).flatten(2).any(-1)


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Scale each channel, then its distance to its mean; values are clipped to [0, 1]."""
    brightness, contrast = (each[..., None, None] for each in parameters["factors"].unbind(-2))  # [V B C 1 1]
    x = (x * brightness).clamp(0, 1)
    return (x * contrast + x.mean((-2, -1), keepdim=True) * (1 - contrast)).clamp(0, 1)
