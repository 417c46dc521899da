"""Random crop: a part of the image by area and aspect ratio, or with the size of the view in pixels of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from opendino.core.ranges import ASCENDING, Checked, FractionRange
from opendino.views.counter_rng import Numbers

ORDER = 0
TRIES = 10  # attempts per crop, as in torchvision's RandomResizedCrop
Aspect = Annotated[float, Meta(ge=0.01, le=100)]


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the random crop."""

    scale: FractionRange | Literal["auto"] = (0.25, 1.0)
    """Smallest and largest area, as a fraction of the image."""
    ratio: Annotated[tuple[Aspect, Aspect], ASCENDING] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height); multiplied by that of the view."""
    fixed: bool = False
    """Cut as many pixels as the view has, without resizing; for tiny objects. Ignores scale and ratio."""


def sample(config: Config, numbers: Numbers) -> dict[str, NDArray[np.generic]]:
    """Crop boxes: int32 `[V B 4]`, (top, left, height, width) in pixels of the canvas, inside the image.

    The algorithm of torchvision's RandomResizedCrop: each of ten attempts has an area uniform in `scale` (times the
    image area) and an aspect ratio log-uniform in `ratio`. The first attempt that fits into the image is used, at a
    uniform position. If none fits, the box is the largest centered crop with an aspect ratio in `ratio`.
    """
    height, width = numbers.image_px.T  # [B]
    position = numbers.uniform(2)
    if config.fixed:
        h, w = (
            np.broadcast_to(np.minimum(side, px), numbers.shape)
            for side, px in zip((height, width), numbers.view_px, strict=True)
        )
        return {"box": _at(position, h, w, height, width)}
    assert config.scale != "auto"
    (scale_low, scale_high), view_ratio = config.scale, numbers.view_px[1] / numbers.view_px[0]
    ratio_low, ratio_high = (view_ratio * ratio for ratio in config.ratio)
    log_low, log_high = math.log(ratio_low), math.log(ratio_high)
    # An attempt that does not fit is followed by the next one; at first the fallback, a center crop: a side is cut only
    # if the image's aspect ratio is outside the range.
    full_w = np.minimum(width, np.maximum(1, np.rint(height * ratio_high)))
    full_h = np.minimum(height, np.maximum(1, np.rint(width / ratio_low)))
    box = np.stack([(height - full_h) // 2, (width - full_w) // 2, full_h, full_w], axis=-1).astype(np.int32)
    box, found = np.broadcast_to(box, (*numbers.shape, 4)), np.zeros(numbers.shape, np.bool_)
    for _ in range(TRIES):
        area, aspect = np.moveaxis(numbers.uniform(2), -1, 0)  # [V B]
        side = np.sqrt(height * width * (scale_low + area * (scale_high - scale_low)))
        root = np.exp((log_low + aspect * (log_high - log_low)) / 2)
        w, h = np.rint(side * root), np.rint(side / root)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height) & ~found
        box = np.where(fits[..., None], _at(position, h, w, height, width), box)
        found |= fits
        if found.all():  # usually after the first attempt
            break
    return {"box": box}


def _at(
    position: NDArray[np.float64],
    h: NDArray[Any],
    w: NDArray[Any],
    height: NDArray[np.int64],
    width: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Boxes of size (h, w) at a position in [0, 1)² of all that fit into the image."""
    box = np.empty((*h.shape, 4), np.int32)
    box[..., 0], box[..., 1] = position[..., 0] * (height - h + 1), position[..., 1] * (width - w + 1)  # rounded down
    box[..., 2], box[..., 3] = h, w
    return box
