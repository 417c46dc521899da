"""Color jitter: brightness, contrast, saturation and hue in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.errors import UsageError
from opendino.core.ranges import Checked, Fraction, Hue, Strength
from opendino.views import functional
from opendino.views.counter_rng import Numbers

ORDER = 30
_NEUTRAL = np.array(functional.NEUTRAL)


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the color jitter."""

    p: Fraction = 0.8
    """Probability."""
    brightness: Strength | Literal["auto"] = 0.4
    """Factor uniform in [1 - x, 1 + x]. auto: from the network."""
    contrast: Strength | Literal["auto"] = 0.4
    """Factor uniform in [1 - x, 1 + x]. auto: from the network."""
    saturation: Strength | Literal["auto"] = 0.2
    """Factor uniform in [1 - x, 1 + x]; only for RGB. Lower it if color identifies your classes."""
    hue: Hue | Literal["auto"] = 0.1
    """Shift uniform in [-x, x] turns of the color wheel; only for RGB. Lower it if color identifies your classes."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Factors and their order.

    Returns:
        factors: float32 `[V B 4]`: brightness, contrast, saturation, each ≥ 0, and hue shift in [-0.5, 0.5] turns;
            (1, 1, 1, 0) for views without jitter.
        order: int64 `[V B 4]`, a permutation of 0 … 3: which column of `factors` is applied first, second, ...
    """
    assert "auto" not in (config.brightness, config.contrast, config.saturation, config.hue)
    strength = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    low = np.maximum(_NEUTRAL - strength, [0.0, 0.0, 0.0, -0.5])
    happens, fraction, order = numbers.happens(config.p), numbers.uniform(4), numbers.uniform(4)
    factors = low + fraction * (_NEUTRAL + strength - low)
    return {
        "factors": np.where(happens[..., None], factors, _NEUTRAL).astype(np.float32),
        "order": np.argsort(order, axis=-1, kind="stable").astype(np.int64),
    }


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    factors = [round(x, 3) for x in parameters["factors"].tolist()]
    return None if factors == [1, 1, 1, 0] else "b{:.1f} c{:.1f} s{:.1f} h{:+.2f}".format(*factors)


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Change the colors.

    Raises:
        UsageError: The images are not RGB, and saturation or hue is set.
    """
    if x.shape[-3] == 3:
        return functional.jitter_(x, parameters["factors"], parameters["order"])
    if any(config.p and (config.saturation or config.hue) for config in configs):
        raise UsageError(
            f"color_jitter changes saturation and hue, and the images have {x.shape[-3]} channels, not RGB",
            "Add --views.all.color-jitter.saturation 0 --views.all.color-jitter.hue 0",
        )
    return functional.jitter_light(x, parameters["factors"], parameters["order"])
