"""Shading: one side of the image is brighter, as under a lamp that is not in the middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from opendino.core.ranges import Checked, Fraction

ORDER = 34  # after gamma, before gray: see the table in docs/augmentations.md


@dataclass(frozen=True)
class Config(Checked):
    """Settings of shading."""

    p: Fraction = 0.0
    """Probability."""
    strength: Fraction = 0.5
    """Largest change of brightness at the border, as a fraction."""


def sample(config, numbers):
    """Change of brightness at the right and at the lower border: float32 `[V B 2]`, 0 for none."""
    happens, angle = numbers.happens(config.p), numbers.between(0, 2 * np.pi)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1) * numbers.between(0, config.strength)[..., None]
    return {"slope": np.where(happens[..., None], direction, 0.0).astype(np.float32)}


def title(parameters):
    """The parameters of one view as text; None if it stays as it is."""
    across, down = parameters["slope"].tolist()
    return f"{across:+.2f} {down:+.2f}" if across or down else None


def apply(x, parameters, configs):
    """Multiply pixels `[V B C H W]` in [0, 1] by a plane that is 1 in the middle."""
    across, down = parameters["slope"][..., None, None, None].unbind(2)  # each [V, B, 1, 1, 1]
    height, width = (torch.linspace(-1, 1, side, device=x.device) for side in x.shape[-2:])
    return (x * (1 + across * width + down * height[:, None])).clamp(0, 1)
