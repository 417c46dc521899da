"""Random erasing: a rectangle of the view becomes its mean color (Zhong et al. 2017, arXiv:1708.04896)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opendino.core.ranges import ASCENDING, Checked, Fraction, FractionRange
from opendino.views.augmentations.crop import Aspect
from opendino.views.counter_rng import Numbers

ORDER = 90


@dataclass(frozen=True)
class Config(Checked):
    """Settings of random erasing."""

    p: Fraction = 0.0
    """Probability."""
    scale: FractionRange = (0.02, 0.33)
    """Smallest and largest area of the rectangle, as a fraction of the view, uniform."""
    ratio: Annotated[tuple[Aspect, Aspect], ASCENDING] = (0.3, 3.3)
    """Smallest and largest aspect ratio (width / height), log-uniform."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Rectangles: float32 `[V B 4]`, (top, left, bottom, right) as fractions of the view; all 0 for none."""
    happens, area = numbers.happens(config.p), numbers.between(*config.scale)
    ratio = np.exp(numbers.between(*np.log(config.ratio))) * numbers.view_px[0] / numbers.view_px[1]
    height, width = (np.minimum(1, np.sqrt(area * each)) for each in (1 / ratio, ratio))
    top, left = numbers.uniform() * (1 - height), numbers.uniform() * (1 - width)
    box = np.stack([top, left, top + height, left + width], axis=-1)
    return {"box": np.where(happens[..., None], box, 0.0).astype(np.float32)}


def title(parameters: dict[str, Tensor]) -> str | None:
    """The parameters of one view as text; None if it stays as it is."""
    top, left, bottom, right = parameters["box"].tolist()
    return f"{(bottom - top) * (right - left):.0%}" if bottom else None


def drawn(parameters: dict[str, Tensor]) -> Tensor:
    """Whether a view changes: bool `[V B]`."""
    return (parameters["box"] > 0).any(-1)


def apply(x: Tensor, parameters: dict[str, Tensor], configs: tuple[Config, ...]) -> Tensor:
    """Fill the rectangle with the view's mean of each channel."""
    top, left, bottom, right = parameters["box"][..., None, :].unbind(-1)  # [V B 1]
    y, x_ = ((torch.arange(side, device=x.device) + 0.5) / side for side in x.shape[-2:])
    rows, columns = (y >= top) & (y < bottom), (x_ >= left) & (x_ < right)  # [V B H], [V B W]
    inside = (rows[..., :, None] & columns[..., None, :])[:, :, None]
    return torch.where(inside, x.mean((-2, -1), keepdim=True), x)
